package dispatch

import (
	"slices"
	"time"

	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// heldRecord is a record on its way into hand: it is held until the copy of endpoints is as new as its fan-out's was.
type heldRecord struct {
	deliveries *webhooksv1.Deliveries
	pending    *stream.Pending
	offset     int64
	load       *load
	// seq is the transaction that brought it.
	seq uint64
}

// heldPoll is how often the copy of endpoints is asked for what it had not seen.
const heldPoll = 10 * time.Millisecond

// known reports whether the copy of endpoints is as new as the record asks.
func (t *task) known(r *heldRecord) (bool, error) {
	org := r.deliveries.GetEvent().GetOrganizationId()
	return t.d.sets.holds(t.d.deps.Endpoints, org, r.deliveries.GetEndpointSetVersion())
}

func (r *heldRecord) org() string { return r.deliveries.GetEvent().GetOrganizationId() }

// holds reports whether an earlier record of the same organization is held, which must not be overtaken.
func (t *task) holds(r *heldRecord) bool {
	return slices.ContainsFunc(t.held, func(earlier *heldRecord) bool { return earlier.org() == r.org() })
}

// admitHeld takes the held records whose endpoints are known by now into hand.
func (t *task) admitHeld(tx *stream.Tx, now time.Time) error {
	records := t.held
	t.held = nil
	waiting := map[string]bool{}
	for i, r := range records {
		if waiting[r.org()] {
			t.held = append(t.held, r)
			continue
		}
		known, err := t.known(r)
		if err != nil {
			t.held = append(t.held, records[i:]...)
			return err
		}
		if !known {
			waiting[r.org()] = true
			t.held = append(t.held, r)
			continue
		}
		if err := t.admit(tx, r, now); err != nil {
			t.held = append(t.held, records[i+1:]...)
			return err
		}
	}
	if len(t.held) > 0 {
		t.part.WakeAt(now.Add(heldPoll))
	}
	return nil
}

// admit takes each delivery of a record that is not done into hand, unless it is already.
func (t *task) admit(tx *stream.Tx, r *heldRecord, now time.Time) error {
	defer t.drop(r.load)
	event := r.deliveries.GetEvent()
	for unit, target := range r.deliveries.GetTargets() {
		if r.pending.Done(unit) {
			continue
		}
		if f := t.flights[target.GetDeliveryId()]; f != nil {
			t.meetAgain(tx, f, r, unit, now)
			continue
		}
		f := &flight{
			id:         target.GetDeliveryId(),
			ep:         t.endpoint(target.GetEndpointId(), event.GetOrganizationId(), now),
			event:      event,
			replay:     r.deliveries.GetReplayId(),
			number:     1,
			maybe:      r.pending.MaybeStarted(),
			rowVersion: 1,
			created:    r.deliveries.GetCreatedUnixMs(),
			order:      r.offset,
			pending:    r.pending,
			unit:       unit,
			load:       r.load.share(),
			seq:        r.seq,
			ready:      now,
		}
		t.flights[f.id] = f
		t.fresh++
		t.taken = append(t.taken, f)
		if err := t.place(tx, f, now); err != nil {
			return err
		}
	}
	return nil
}

// meetAgain recognises a delivery that is in hand. It is that of a record given again after an abort; were it of another
// record, that record would ask for what is being done already.
func (t *task) meetAgain(tx *stream.Tx, f *flight, r *heldRecord, unit int, now time.Time) {
	if !f.fresh() || f.order != r.offset {
		tx.Finish(r.pending, unit)
		return
	}
	f.pending, f.unit, f.seq = r.pending, unit, r.seq
	if f.load == nil {
		f.load = r.load.share()
	}
	f.detached = false
	t.taken = append(t.taken, f)
	t.touch(f.ep, now)
}

// place finds a delivery that has just come its way: out, into the queue, or to the schedule.
func (t *task) place(tx *stream.Tx, f *flight, now time.Time) error {
	e := f.ep
	if err := t.refresh(e); err != nil {
		return err
	}
	if group, ok := e.orderGroup(f); ok {
		e.join(f, group)
	}
	if m := e.mode(); m != sending {
		return t.turnAway(tx, f, m, now)
	}
	switch wait, err := t.mustWait(tx, f); {
	case err != nil:
		return err
	case wait:
		return t.spill(tx, f, webhooksv1.WaitingReason_WAITING_REASON_ORDERED, now)
	}
	if e.overdue(now) || len(e.queue) >= e.control.Keep(now) || t.fresh > window/2 && len(e.queue) > 0 ||
		e.inHand() >= t.d.room.share(e.control, now) {
		return t.spill(tx, f, e.whyFull(), now)
	}
	e.queue = append(e.queue, f)
	return t.serve(tx, e, now)
}

// whyFull is why an endpoint that takes none now has no room.
func (e *endpoint) whyFull() webhooksv1.WaitingReason {
	if e.control.Broken() {
		return webhooksv1.WaitingReason_WAITING_REASON_BREAKER
	}
	return webhooksv1.WaitingReason_WAITING_REASON_SATURATED
}

// turnAway ends, or lets wait, a delivery whose endpoint takes none.
func (t *task) turnAway(tx *stream.Tx, f *flight, m mode, now time.Time) error {
	switch m {
	case deleted:
		return t.end(tx, f, reasonDeleted, now)
	case disabled:
		return t.end(tx, f, reasonDisabled, now)
	}
	if f.fresh() {
		return t.spill(tx, f, webhooksv1.WaitingReason_WAITING_REASON_PAUSED, now)
	}
	return t.unmark(tx, f, webhooksv1.WaitingReason_WAITING_REASON_PAUSED)
}

// serve lets out of the queue what control admits. With an open breaker what is fresh goes to the schedule, so that it
// does not hold up the input.
func (t *task) serve(tx *stream.Tx, e *endpoint, now time.Time) error {
	if err := t.takeBack(tx, e, now); err != nil {
		return err
	}
	verdict := t.letOut(e, now)
	if verdict == control.Open {
		if err := t.spillFresh(tx, e, now); err != nil {
			return err
		}
	}
	switch verdict {
	case control.Open, control.Limited:
		if next := e.control.NextTry(now); !next.IsZero() {
			t.touch(e, next)
		}
	case control.Full:
		if e.control.Running() >= t.d.room.share(e.control, now) {
			t.touch(e, now.Add(crowdPoll))
		}
	}
	return nil
}

func (t *task) spillFresh(tx *stream.Tx, e *endpoint, now time.Time) error {
	queue := e.queue
	e.queue = nil
	for _, f := range queue {
		if f.detached || !f.fresh() {
			e.queue = append(e.queue, f)
			continue
		}
		if err := t.spill(tx, f, webhooksv1.WaitingReason_WAITING_REASON_BREAKER, now); err != nil {
			return err
		}
	}
	return nil
}
