package dispatch

import (
	"context"
	"time"

	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// flight is a delivery that the task has in hand: it waits in memory for a slot, runs, or has ended and waits for its
// transaction. There is at most one a delivery.
type flight struct {
	id    string
	ep    *endpoint
	event *webhooksv1.OutboundEvent
	// replay is `rpl_…` or "".
	replay string
	// number of the attempt.
	number uint32
	// maybe: an earlier owner may have sent this number.
	maybe bool
	// step is the place in the retry schedule.
	step       uint32
	rowVersion uint64
	created    int64
	// order is the offset of the delivery's source record.
	order int64

	// pending and unit are the delivery's place on the input; nil for one that waits in the schedule.
	pending *stream.Pending
	unit    int
	// seq is the transaction that brought the record, or brought it again.
	seq uint64
	// detached: the transaction that brought the record was aborted and the record has not been given again. Until it
	// is, nothing can be handed over.
	detached bool

	// ready is since when it waits for a slot.
	ready time.Time
	// dest is what it was sent to.
	dest    *sender.Destination
	version uint64
	running bool
	// landed: the attempt has ended, and result and verdict stand.
	landed bool
	// unsent: the task was giving up when its turn came.
	unsent bool
	result sender.Result
	// due is from when it waits in the schedule, once the transaction that puts it there is durable.
	due time.Time
	// verdict is what the result means; judged once, so that an abort changes nothing.
	verdict verdict
}

func (f *flight) fresh() bool { return f.pending != nil }

// release lets a flight go.
func (t *task) release(f *flight) {
	if t.flights[f.id] == f {
		delete(t.flights, f.id)
	}
	if f.fresh() {
		t.fresh--
	} else {
		f.ep.pulled--
	}
}

// launch gives a flight to the pool. Control has admitted it.
func (t *task) launch(f *flight) {
	f.running = true
	f.dest, f.version = f.ep.dest, f.ep.spec.GetVersion()
	t.mu.Lock()
	t.flying++
	t.mu.Unlock()
	t.d.inFlight.Add(1)
	t.d.pool.submit(func() { t.run(f) })
}

// run is the pool's part: it touches nothing of the task but its list of results.
func (t *task) run(f *flight) {
	if f.unsent = t.draining.Load(); !f.unsent {
		f.result = t.d.deps.Sender.Send(f.dest, &sender.Message{
			EventID:    f.event.GetId(),
			DeliveryID: f.id,
			ReplayID:   f.replay,
			Number:     f.number,
			Body:       f.event.GetBody(),
			Ready:      f.ready,
		})
	}
	t.mu.Lock()
	t.landed = append(t.landed, f)
	t.part.Wake()
	t.flying--
	if t.flying == 0 && t.quiet != nil {
		close(t.quiet)
		t.quiet = nil
	}
	t.mu.Unlock()
	t.d.inFlight.Add(-1)
}

// land takes the results that have come in. What they say about the endpoint counts once, whatever becomes of the
// transaction.
func (t *task) land(now time.Time) {
	t.mu.Lock()
	landed := t.landed
	t.landed = nil
	t.mu.Unlock()
	for _, f := range landed {
		f.running = false
		t.touch(f.ep, now)
		if f.unsent {
			f.ep.control.Release()
			if t.flights[f.id] == f {
				f.ep.queue = append(f.ep.queue, f)
			}
			continue
		}
		f.ep.control.Done(now, outcomeOf(&f.result))
		if t.flights[f.id] == f {
			f.landed, f.verdict = true, t.judge(f)
			t.results = append(t.results, f)
		}
	}
}

// await returns when no attempt runs, or when ctx ends.
func (t *task) await(ctx context.Context) {
	t.mu.Lock()
	if t.flying == 0 {
		t.mu.Unlock()
		return
	}
	quiet := make(chan struct{})
	t.quiet = quiet
	t.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
}

func outcomeOf(r *sender.Result) control.Outcome {
	switch {
	case r.Success():
		return control.Success
	case r.Throttled():
		return control.Throttled
	}
	return control.Failure
}
