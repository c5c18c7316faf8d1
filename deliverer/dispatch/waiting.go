package dispatch

import (
	"time"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// findWaiting learns for which endpoints something waits, and from when.
func (t *task) findWaiting(tx *stream.Tx, now time.Time) error {
	t.knowsWaiting = true
	if err := t.findReplays(tx, now); err != nil {
		return err
	}
	return schedule.Heads(tx, func(id string, due time.Time) {
		t.waits(t.endpoint(id, "", now), due, now)
	})
}

// visit looks after one endpoint: lets out what may go, and pulls what is due.
func (t *task) visit(tx *stream.Tx, e *endpoint, now time.Time) error {
	if e.org == "" {
		if err := t.findOrg(tx, e, now); err != nil || e.org == "" {
			return err
		}
	}
	if err := t.refresh(e); err != nil {
		return err
	}
	if err := t.serveTests(tx, e, now); err != nil {
		return err
	}
	m := e.mode()
	if m != sending {
		return t.visitClosed(tx, e, m, now)
	}
	if err := t.serve(tx, e, now); err != nil {
		return err
	}
	if !e.overdue(now) {
		if !e.head.IsZero() {
			t.touch(e, e.head)
		}
		return t.goOn(tx, e, now)
	}
	share := t.d.room.share(e.control, now)
	if t.d.room.over() {
		share = 0 // what waits costs no memory where it is, however quick the endpoint
	}
	if want := min(e.control.Want(now), share) - e.inHand(); want > 0 {
		pulled, err := t.pull(tx, e, want, now, t.send)
		if err != nil {
			return err
		}
		switch {
		case pulled == 0 && e.head.IsZero():
			return t.goOn(tx, e, now) // nothing was due but what is out of date, or in hand
		case pulled == 0:
			t.lookOn(e, now)
		}
		return t.serve(tx, e, now)
	}
	if e.inHand() >= share {
		t.touch(e, now.Add(crowdPoll))
	}
	if next := e.control.NextTry(now); !next.IsZero() {
		t.touch(e, next)
	}
	return nil
}

// forever is after every due time.
var forever = time.UnixMilli(1 << 52)

// lookOn has the endpoint looked at again after a look that found nothing: all it met may have been out of date, and what
// holds stand behind. A cold restore leaves an entry for every state that compaction has not taken, thousands an endpoint.
func (t *task) lookOn(e *endpoint, now time.Time) {
	if !e.head.IsZero() {
		t.touch(e, later(e.head, now.Add(time.Millisecond)))
	}
}

// findOrg learns whose endpoint it is from what waits for it. An endpoint for which only out-of-date entries were left
// has nothing to do.
func (t *task) findOrg(tx *stream.Tx, e *endpoint, now time.Time) error {
	due, err := t.scan(tx, e, 1, forever)
	if err != nil {
		return err
	}
	if len(due) == 0 {
		t.lookOn(e, now)
		return nil
	}
	e.org = due[0].state.GetOrganizationId()
	e.head = due[0].Due
	return nil
}

// endsPerVisit bounds how many deliveries of a closed endpoint end in one transaction.
const endsPerVisit = 100

// visitClosed turns away what is in the queue of an endpoint that takes nothing. What waits for one that is gone ends
// when it is due; what waits for one that is paused is left alone.
func (t *task) visitClosed(tx *stream.Tx, e *endpoint, m mode, now time.Time) error {
	queue := e.queue
	e.queue = nil
	for _, f := range queue {
		if f.detached {
			e.queue = append(e.queue, f)
			continue
		}
		if err := t.turnAway(tx, f, m, now); err != nil {
			return err
		}
	}
	if err := t.closeReplays(tx, e, m, now); err != nil || m == paused || e.head.IsZero() {
		return err
	}
	if e.overdue(now) {
		reason := reasonDisabled
		if m == deleted {
			reason = reasonDeleted
		}
		if err := t.endDue(tx, e, reason, now); err != nil {
			return err
		}
	}
	t.lookOn(e, now)
	return nil
}

// endDue ends what is due. In strict order each makes the next due.
func (t *task) endDue(tx *stream.Tx, e *endpoint, reason string, now time.Time) error {
	for left := endsPerVisit; left > 0; {
		ended, err := t.pull(tx, e, left, now, func(tx *stream.Tx, f *flight, _ *webhooksv1.WaitingState) error {
			return t.end(tx, f, reason, now)
		})
		if ended == 0 || err != nil {
			return err
		}
		left -= ended
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// dueEntry is an entry of the schedule that holds.
type dueEntry struct {
	schedule.Entry
	state *webhooksv1.WaitingState
}

// staleBound is how many out-of-date entries are passed over in one look.
const staleBound = 1000

// scan finds up to limit deliveries that wait for the endpoint and are not in hand, due until then, the oldest first. It
// drops entries that are out of date, and leaves in e.head when there is more to find.
func (t *task) scan(tx *stream.Tx, e *endpoint, limit int, until time.Time) ([]dueEntry, error) {
	var found []dueEntry
	var stale []schedule.Entry
	var failed error
	e.head = time.Time{}
	err := schedule.Scan(tx, e.id, func(entry schedule.Entry) bool {
		if t.flights[entry.Delivery] != nil {
			return true
		}
		if len(found) == limit || entry.Due.After(until) || len(stale) == staleBound {
			e.head = entry.Due
			return false
		}
		state, err := schedule.State(tx, entry.Delivery)
		switch {
		case err != nil:
			failed = err
			return false
		case entry.Current(state):
			found = append(found, dueEntry{entry, state})
		default:
			stale = append(stale, entry)
		}
		return true
	})
	for _, entry := range stale {
		entry.Drop(tx)
	}
	if err == nil {
		err = failed
	}
	return found, err
}

// pull takes up to limit due deliveries of the endpoint into hand, does with each what then says, and tells how many.
func (t *task) pull(tx *stream.Tx, e *endpoint, limit int, now time.Time,
	then func(*stream.Tx, *flight, *webhooksv1.WaitingState) error,
) (int, error) {
	due, err := t.scan(tx, e, limit, now)
	if err != nil {
		return 0, err
	}
	for _, entry := range due {
		if t.flights[entry.Delivery] != nil {
			continue // drawn with one before it
		}
		f, err := t.recall(tx, e, entry)
		if err != nil {
			return 0, err
		}
		if err := then(tx, f, entry.state); err != nil {
			return 0, err
		}
	}
	return len(due), nil
}

// recall takes a waiting delivery into hand.
func (t *task) recall(tx *stream.Tx, e *endpoint, entry dueEntry) (*flight, error) {
	f, err := t.flightOf(tx, e, entry.Delivery, entry.state)
	if err != nil {
		return nil, err
	}
	f.load = t.newLoad(len(f.event.GetBody()))
	f.seq = t.seq
	t.flights[f.id] = f
	e.pulled++
	if entry.state.OrderGroup != nil {
		e.join(f, entry.state.GetOrderGroup())
		f.blocked = behind(entry.state)
	}
	return f, nil
}

// flightOf makes a flight of a waiting delivery.
func (t *task) flightOf(tx *stream.Tx, e *endpoint, delivery string, s *webhooksv1.WaitingState) (*flight, error) {
	payload, err := schedule.Payload(tx, delivery)
	if err != nil {
		return nil, err
	}
	f := &flight{
		id: delivery, ep: e,
		event:   payload.GetEvent(),
		replay:  payload.GetReplayId(),
		number:  s.GetAttempts() + 1,
		maybe:   s.GetStarted(),
		created: s.GetCreatedUnixMs(),
		order:   s.GetOrder(),
	}
	f.follow(s)
	if f.event == nil {
		// Cannot be: both records are put together. What is known of the event ends the delivery with its row.
		t.log.Error("waiting delivery has no payload", "org", s.GetOrganizationId(), "endpoint", e.id, "delivery_id", f.id)
		f.event = &webhooksv1.OutboundEvent{
			Id: s.GetEventId(), OrganizationId: s.GetOrganizationId(), Type: s.GetEventType(),
		}
	}
	return f, nil
}

// follow takes over from the delivery's state what a command may have changed since it was pulled.
func (f *flight) follow(s *webhooksv1.WaitingState) {
	f.step, f.rowVersion = s.GetScheduleStep(), s.GetRowVersion()
	f.manual, f.delivered = s.GetManual().GetNext(), s.GetManual().GetDeliveredUnixMs()
}

// mark writes that a pulled delivery may be under way. It is sent once that is durable: a new owner will know.
func (t *task) mark(tx *stream.Tx, f *flight, s *webhooksv1.WaitingState) error {
	if len(f.event.GetBody()) == 0 {
		return t.end(tx, f, reasonExhausted, tx.Now())
	}
	f.ready = tx.Now()
	if s.GetStarted() {
		f.ep.queue = append(f.ep.queue, f)
		return nil
	}
	s.Started = true
	if err := schedule.Put(tx, f.id, s, nil); err != nil {
		return err
	}
	f.ep.marking++
	t.marked = append(t.marked, f)
	return nil
}

// unmark puts a pulled delivery that was not sent back to the schedule.
func (t *task) unmark(tx *stream.Tx, f *flight, reason webhooksv1.WaitingReason) error {
	s, err := schedule.State(tx, f.id)
	if err != nil {
		return err
	}
	if s == nil {
		t.hand(f)
		return nil
	}
	t.census.remove(f.id, s.GetReason())
	ordered := behind(s)
	if reason != webhooksv1.WaitingReason_WAITING_REASON_UNSPECIFIED && !ordered {
		s.Reason = reason
	}
	t.census.add(f.id, s.GetReason())
	s.Started = f.maybe
	if !ordered {
		f.due = time.UnixMilli(s.GetDueUnixMs())
	}
	t.holdBehind(f, tx.Now())
	t.hand(f)
	return schedule.Put(tx, f.id, s, nil)
}

// putBack writes to the schedule what this owner has in its queues and will not send any more. The next owner then knows
// that none of it went out, also when attempts that hang keep this one from ending cleanly.
func (t *task) putBack(tx *stream.Tx) error {
	for _, e := range t.endpoints {
		tests := e.tests
		e.tests = nil
		for _, f := range tests {
			if err := t.putBackTest(tx, f); err != nil {
				return err
			}
		}
		t.putDownSpare(e)
		queue := e.queue
		e.queue = nil
		for _, f := range queue {
			var err error
			switch {
			case f.detached:
				e.queue = append(e.queue, f)
			case f.fresh():
				err = t.spill(tx, f, webhooksv1.WaitingReason_WAITING_REASON_SATURATED, tx.Now())
			default:
				err = t.unmark(tx, f, webhooksv1.WaitingReason_WAITING_REASON_UNSPECIFIED)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// spill writes a fresh delivery to the schedule, due at once: it is no attempt.
func (t *task) spill(tx *stream.Tx, f *flight, reason webhooksv1.WaitingReason, now time.Time) error {
	s := f.state(reason, now)
	s.Started = f.maybe
	t.holdBehind(f, now)
	t.hand(f)
	return t.beginWaiting(tx, f, s)
}

// beginWaiting writes payload and state of a delivery that was on the input, or in the hand of a replay, until now.
func (t *task) beginWaiting(tx *stream.Tx, f *flight, s *webhooksv1.WaitingState) (err error) {
	if s.Reason, err = t.reasonInOrder(tx, f, s.GetReason()); err != nil {
		return err
	}
	if err := t.putWaiting(tx, f, s); err != nil {
		return err
	}
	f.lowerFloor()
	t.leaveSource(tx, f)
	if !behind(s) {
		f.due = time.UnixMilli(s.GetDueUnixMs())
	}
	return nil
}

// putWaiting writes payload and state of a delivery that was not in the schedule.
func (t *task) putWaiting(tx *stream.Tx, f *flight, s *webhooksv1.WaitingState) error {
	payload := &webhooksv1.WaitingPayload{Event: f.event, ReplayId: f.replay}
	if err := schedule.PutPayload(tx, f.id, payload); err != nil {
		return err
	}
	if err := schedule.Put(tx, f.id, s, nil); err != nil {
		return err
	}
	t.census.add(f.id, s.GetReason())
	return nil
}

// state is where the delivery stands before its next attempt.
func (f *flight) state(reason webhooksv1.WaitingReason, due time.Time) *webhooksv1.WaitingState {
	s := &webhooksv1.WaitingState{
		EndpointId:     f.ep.id,
		Attempts:       f.number - 1,
		ScheduleStep:   f.step,
		DueUnixMs:      due.UnixMilli(),
		Reason:         reason,
		Order:          f.order,
		RowVersion:     f.rowVersion,
		CreatedUnixMs:  f.created,
		OrganizationId: f.event.GetOrganizationId(),
		EventId:        f.event.GetId(),
		EventType:      f.event.GetType(),
		Manual:         manualRetry(f.manual, f.delivered),
	}
	if f.chain != nil {
		s.OrderGroup = &f.chain.group
	}
	return s
}

// manualRetry is what a state says of manual retries, nil where that is nothing.
func manualRetry(next bool, delivered int64) *webhooksv1.ManualRetry {
	if !next && delivered == 0 {
		return nil
	}
	return &webhooksv1.ManualRetry{Next: next, DeliveredUnixMs: delivered}
}
