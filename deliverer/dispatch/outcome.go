package dispatch

import (
	"context"
	"log/slog"
	"time"

	"github.com/betterdata/webhooks/deliverer/replay"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Reasons of a delivery's death (CONTRACT §5).
const (
	reasonExhausted = "exhausted"
	reasonGone      = "gone"
	reasonDisabled  = "endpoint_disabled"
	reasonDeleted   = "endpoint_deleted"
)

// reasonFailing is, beside reasonGone, why an endpoint is disabled.
const reasonFailing = "failing"

// verdict is what becomes of a delivery.
type verdict struct {
	status string
	// reason is of a dead one.
	reason string
	// due is the next attempt of a waiting one.
	due time.Time
}

// judge says what the result of an attempt means.
func (t *task) judge(f *flight) verdict {
	switch {
	case f.result.Success():
		return verdict{status: schemas.DeliveryDelivered}
	case f.result.Class == sender.HTTP410:
		return verdict{status: schemas.DeliveryDead, reason: reasonGone}
	}
	due, ok := t.policy(f.ep).Next(f.step, f.result.Ended(), f.result.RetryAfter, f.luck)
	if !ok {
		return verdict{status: schemas.DeliveryDead, reason: reasonExhausted}
	}
	return verdict{status: schemas.DeliveryWaiting, due: due}
}

// policy is the endpoint's own schedule, or the service's.
func (t *task) policy(e *endpoint) schedule.Policy {
	own := e.spec.GetRetrySchedule()
	if own == nil {
		return t.d.cfg.Retries
	}
	p := schedule.Policy{Jitter: t.d.cfg.Retries.Jitter}
	for _, ms := range own.GetDelaysMs() {
		p.Delays = append(p.Delays, time.Duration(ms)*time.Millisecond)
	}
	return p
}

// handOver brings the results that have come in into the transaction.
func (t *task) handOver(tx *stream.Tx) error {
	results := t.results
	t.results = nil
	for _, f := range results {
		if f.detached {
			t.results = append(t.results, f)
			continue
		}
		t.hand(f)
		if err := t.conclude(tx, f); err != nil {
			return err
		}
	}
	return nil
}

// conclude writes what an attempt changes: its row, the delivery's row, the schedule. It ends the commands that waited for
// the attempt.
func (t *task) conclude(tx *stream.Tx, f *flight) error {
	if f.test != nil {
		return t.concludeTest(tx, f)
	}
	before, holds, err := t.standing(tx, f)
	if err != nil || !holds {
		f.verdict = verdict{} // it ended or moved on by another way: this attempt is none of it
		return err
	}
	f.verdict = t.judge(f)
	waiting := t.waitingForAttempt(f)
	again := f.overrule(waiting)
	if err := t.emitAttempt(tx, f); err != nil {
		return err
	}
	if f.result.Class == sender.HTTP410 {
		if err := t.emitDisable(tx, f); err != nil {
			return err
		}
	}
	var ended time.Time
	if f.verdict.status == schemas.DeliveryWaiting {
		if err := t.wait(tx, f, before, again); err != nil {
			return err
		}
	} else {
		ended = f.result.Ended()
		if err := t.stopWaiting(tx, f, before); err != nil {
			return err
		}
	}
	if err := t.emitDelivery(tx, f, f.number, ended); err != nil {
		return err
	}
	if f.verdict.reason == reasonExhausted && f.delivered == 0 {
		if err := t.emitExhausted(tx, f); err != nil {
			return err
		}
	}
	return t.answerWaiting(tx, waiting, f.row(f.number, ended), f.result.Success())
}

// overrule lets the commands that waited for an attempt which failed decide what comes of it; the last one holds. again says
// that another attempt was asked for.
func (f *flight) overrule(waiting []*keptCommand) (again bool) {
	if f.result.Success() {
		return false
	}
	for _, c := range waiting {
		f.verdict = verdict{status: schemas.DeliveryDead, reason: reasonCanceled}
		if again = c.cmd.GetRetryDelivery() != nil; again {
			f.verdict = verdict{status: schemas.DeliveryWaiting, due: f.result.Ended()}
		}
	}
	return again
}

// standing is where the delivery of a flight waits, nil for one that is on the input or in the hand of its replay. holds
// is false for a flight that is of no delivery any more.
func (t *task) standing(tx *stream.Tx, f *flight) (before *webhooksv1.WaitingState, holds bool, err error) {
	switch {
	case f.fresh():
		return nil, true, nil
	case f.taken:
		r := f.ep.replay(f.replay)
		return nil, r != nil && replay.Taken(r.state, f.event.GetId()) != nil, nil
	}
	before, err = schedule.State(tx, f.id)
	if err != nil || before == nil || before.GetAttempts()+1 != f.number {
		return nil, false, err
	}
	f.follow(before)
	return before, true, nil
}

// wait puts a delivery whose attempt failed to the schedule.
func (t *task) wait(tx *stream.Tx, f *flight, before *webhooksv1.WaitingState, again bool) error {
	s := f.state(webhooksv1.WaitingReason_WAITING_REASON_BACKOFF, f.verdict.due)
	s.Attempts, s.ScheduleStep, s.RowVersion = f.number, f.step+1, f.rowVersion+1
	if s.Manual = manualRetry(again, f.delivered); again {
		s.ScheduleStep = 0
	}
	t.holdBehind(f, tx.Now())
	if before == nil {
		return t.beginWaiting(tx, f, s)
	}
	t.census.remove(f.id, before.GetReason())
	t.census.add(f.id, s.GetReason())
	f.due = f.verdict.due
	return schedule.Put(tx, f.id, s, before)
}

// stopWaiting takes a delivery that ends off what has it: the input, a replay or the schedule. What waited for it may go.
func (t *task) stopWaiting(tx *stream.Tx, f *flight, before *webhooksv1.WaitingState) error {
	if before == nil {
		t.leaveSource(tx, f)
	} else {
		t.census.remove(f.id, before.GetReason())
		schedule.Remove(tx, f.id, before)
	}
	return t.advanceOrder(tx, f, tx.Now())
}

// leaveSource ends what the input, or the replay, has to do with a delivery.
func (t *task) leaveSource(tx *stream.Tx, f *flight) {
	if f.fresh() {
		tx.Finish(f.pending, f.unit)
		return
	}
	t.settle(f.ep.replay(f.replay), f.event.GetId())
}

// end lets a delivery die without another attempt. One that may be under way, sent by an earlier owner, cannot be sent
// again to find out, and is one that was made and broke off: a request that was seen has its row.
func (t *task) end(tx *stream.Tx, f *flight, reason string, now time.Time) error {
	t.hand(f)
	before, holds, err := t.standing(tx, f)
	if err != nil || !holds {
		f.verdict = verdict{}
		return err
	}
	f.verdict = verdict{status: schemas.DeliveryDead, reason: reason}
	if err := t.stopWaiting(tx, f, before); err != nil {
		return err
	}
	if err := t.breakOff(tx, f, now); err != nil {
		return err
	}
	return t.emitDelivery(tx, f, f.made(), now)
}

// breakOff records the attempt of a flight that ends without being sent, where an earlier owner may have begun it.
func (t *task) breakOff(tx *stream.Tx, f *flight, now time.Time) error {
	if !f.maybe {
		return nil
	}
	f.result = sender.Result{Started: now, Class: sender.Reset, RequestBytes: len(f.event.GetBody())}
	return t.emitAttempt(tx, f)
}

// made is how many attempts have been made of a flight that is not sent: one that may have been counts, and has its row.
func (f *flight) made() uint32 {
	if f.maybe {
		return f.number
	}
	return f.number - 1
}

// report counts and logs what a durable transaction said of a delivery.
func (t *task) report(f *flight) {
	m := t.d.metrics
	if f.landed && f.verdict.status != "" {
		m.attempt(f)
		if !f.result.Success() && t.log.Enabled(context.Background(), slog.LevelDebug) {
			t.log.Debug("attempt failed", append(f.logged(), "attempt", f.number, "class", f.result.Class.String(),
				"status", f.result.StatusCode, "error", f.result.Err)...)
		}
	}
	if f.test != nil || f.delivered != 0 {
		return // it is no delivery of the ledger's, or was counted
	}
	switch f.verdict.status {
	case schemas.DeliveryDelivered:
		m.delivered.Inc()
	case schemas.DeliveryDead:
		m.dead.Inc()
		if f.verdict.reason == reasonGone {
			m.gone.Inc()
		}
		t.log.Info("delivery died", append(f.logged(), "reason", f.verdict.reason, "class", f.result.Class.String())...)
	}
}

// logged names the delivery in a log line.
func (f *flight) logged() []any {
	return []any{
		slog.String("org", f.event.GetOrganizationId()), slog.String("endpoint", f.ep.id),
		slog.String("event_id", f.event.GetId()), slog.String("delivery_id", f.id),
	}
}
