package dispatch

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// What is wrong with an endpoint outlives its owner: breaker, throttling and the streak of failures are one record of the
// store `endpoint-health`, written in the task's transactions when that changes, one an endpoint and transaction however
// many attempts failed, and tombstoned once the endpoint is well. An endpoint that is well has none, and nothing is
// written for it.
//
// The transaction that writes down that a streak was judged carries the command to disable the endpoint: one a version,
// whatever is aborted or killed.

// healthStore is the state store of what is wrong with endpoints.
func healthStore() stream.StoreSpec { return stream.StoreSpec{Topic: schemas.EndpointHealth} }

// ailment is a change of an endpoint's health in the open transaction.
type ailment struct {
	ep     *endpoint
	before *webhooksv1.EndpointHealth
}

// restoreHealth learns what the last owner held against endpoints.
func (t *task) restoreHealth(tx *stream.Tx, now time.Time) error {
	return tx.Scan(schemas.EndpointHealth, nil, nil, func(key, value []byte) bool {
		kept := new(webhooksv1.EndpointHealth)
		if err := proto.Unmarshal(value, kept); err != nil {
			t.log.Error("health of an endpoint cannot be read, it counts as well", "endpoint", string(key), "error", err)
			return true
		}
		e := t.endpoint(string(key), kept.GetOrganizationId(), now)
		e.written = kept
		e.control = control.Restore(control.Limits{Concurrency: t.d.cfg.Concurrency}, snapshotOf(kept), now)
		e.streak = streakOf(kept)
		t.touch(e, now) // it may have been disabled or deleted since
		return true
	})
}

// felt takes what an attempt that has just ended says of its endpoint's health.
func (t *task) felt(f *flight, now time.Time) {
	e := f.ep
	switch {
	case e.loaded && e.off():
		t.forgive(e)
		return
	case f.result.Success():
		e.streak = control.Streak{}
	case t.d.cfg.DisableAfter > 0:
		e.streak.Fail(now, f.version, t.d.cfg.DisableAfter)
	}
	if !f.result.Success() || e.written != nil {
		t.ail(e)
	}
}

// ail has the endpoint's health written, if it has changed.
func (t *task) ail(e *endpoint) {
	if !e.ailing {
		e.ailing = true
		t.ailing = append(t.ailing, e)
	}
}

// forgive ends what is held against an endpoint that is not in use, or was not for a while: it begins anew.
func (t *task) forgive(e *endpoint) {
	e.control.Forget()
	e.streak = control.Streak{}
	if e.written != nil {
		t.ail(e)
	}
}

// writeHealth brings the changes of endpoints' health into the transaction.
func (t *task) writeHealth(tx *stream.Tx) error {
	ailing := t.ailing
	t.ailing = nil
	for i, e := range ailing {
		e.ailing = false
		next := e.health()
		if !worthKeeping(e.written, next) {
			continue
		}
		if err := putHealth(tx, e.id, next); err != nil {
			t.ailing = append(t.ailing, ailing[i+1:]...)
			return err
		}
		if next.GetJudged() && !e.written.GetJudged() {
			if err := t.emitFailing(tx, e); err != nil {
				return err
			}
		}
		t.ailments = append(t.ailments, ailment{e, e.written})
		e.written = next
	}
	return nil
}

func putHealth(tx *stream.Tx, endpoint string, h *webhooksv1.EndpointHealth) error {
	if h == nil {
		tx.Delete(schemas.EndpointHealth, []byte(endpoint))
		return nil
	}
	value, err := proto.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode health of %s: %w", endpoint, err)
	}
	tx.Put(schemas.EndpointHealth, []byte(endpoint), value)
	return nil
}

// settleHealth reports what is durable, or has it written again.
func (t *task) settleHealth(committed bool) {
	for i := len(t.ailments) - 1; i >= 0; i-- { // the oldest last: an endpoint may be there twice
		a := t.ailments[i]
		if committed {
			t.reportHealth(a)
			continue
		}
		a.ep.written = a.before
		t.ail(a.ep)
	}
	clear(t.ailments)
	t.ailments = t.ailments[:0]
}

func (t *task) reportHealth(a ailment) {
	if a.ep.written.GetJudged() && !a.before.GetJudged() {
		t.d.metrics.failing.Inc()
		t.log.Warn("endpoint has done nothing but fail, it is disabled", "org", a.ep.org, "endpoint", a.ep.id,
			"since", a.ep.streak.Since, "version", a.ep.streak.Version)
	}
	was, is := a.before.GetBreakerWaitMs() > 0, a.ep.written.GetBreakerWaitMs() > 0
	switch {
	case is && !was:
		t.log.Info("breaker opened", "org", a.ep.org, "endpoint", a.ep.id)
	case was && !is:
		t.log.Info("breaker closed", "org", a.ep.org, "endpoint", a.ep.id)
	}
}

// health is what is wrong with the endpoint; nil when it is well.
func (e *endpoint) health() *webhooksv1.EndpointHealth {
	s := e.control.Snapshot()
	if s.Healthy() && e.streak == (control.Streak{}) {
		return nil
	}
	return &webhooksv1.EndpointHealth{
		OrganizationId:     e.org,
		Failures:           uint32(s.Failures),
		BreakerWaitMs:      uint32(s.Wait.Milliseconds()),
		BreakerUntilUnixMs: unixMS(s.Until),
		Allowed:            uint32(s.Allowed),
		Concurrency:        uint32(s.Concurrency),
		FailingSinceUnixMs: unixMS(e.streak.Since),
		FailingSeenUnixMs:  unixMS(e.streak.Seen),
		FailingVersion:     e.streak.Version,
		Judged:             e.streak.Judged,
	}
}

func snapshotOf(h *webhooksv1.EndpointHealth) control.Snapshot {
	s := control.Snapshot{
		Failures:    int(h.GetFailures()),
		Wait:        time.Duration(h.GetBreakerWaitMs()) * time.Millisecond,
		Allowed:     int(h.GetAllowed()),
		Concurrency: int(h.GetConcurrency()),
	}
	if s.Wait > 0 {
		s.Until = time.UnixMilli(h.GetBreakerUntilUnixMs())
	}
	return s
}

func streakOf(h *webhooksv1.EndpointHealth) control.Streak {
	if h.GetFailingSinceUnixMs() == 0 {
		return control.Streak{}
	}
	return control.Streak{
		Since: time.UnixMilli(h.GetFailingSinceUnixMs()), Seen: time.UnixMilli(h.GetFailingSeenUnixMs()),
		Version: h.GetFailingVersion(), Judged: h.GetJudged(),
	}
}

// worthKeeping reports whether next is to be written over kept. Concurrency that successes give back, bit by bit, is
// written when something else is.
func worthKeeping(kept, next *webhooksv1.EndpointHealth) bool {
	if kept == nil || next == nil {
		return kept != next
	}
	if next.GetAllowed() > kept.GetAllowed() && next.GetConcurrency() == kept.GetConcurrency() {
		next = proto.CloneOf(next)
		next.Allowed = kept.GetAllowed()
	}
	return !proto.Equal(kept, next)
}
