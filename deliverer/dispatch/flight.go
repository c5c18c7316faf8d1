package dispatch

import (
	"context"
	"math/rand/v2"
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
	// manual: the attempt was asked for.
	manual bool
	// delivered is when the delivery was delivered before (Unix ms): it stays so. 0: it was not.
	delivered int64
	// test is the command of a test; nil for a delivery.
	test *keptCommand
	// order is the offset of the delivery's source record.
	order int64

	// chain is what is in hand of its group, nil when it is in no order; blocked: something before it has gone to the schedule.
	chain   *chain
	blocked bool

	// pending and unit are the delivery's place on the input; nil for one that waits in the schedule.
	pending *stream.Pending
	unit    int
	// taken: it is in the hand of its replay, which says so to a new owner; not any more once it waits in the schedule.
	taken bool
	// load is its part of the memory; nil while it is detached.
	load *load
	// seq is the transaction that brought the record, or brought it again; of one that waits, the one that pulled it.
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
	// landed: the attempt has ended, and result stands; luck is the jitter of the next.
	landed bool
	luck   float64
	// handed: the open transaction ends it here.
	handed bool
	// unsent: the task was giving up when its turn came.
	unsent bool
	result sender.Result
	// due is from when it waits in the schedule, once the transaction that puts it there is durable.
	due time.Time
	// verdict is what the open transaction makes of it.
	verdict verdict
}

func (f *flight) fresh() bool { return f.pending != nil }

// release lets a flight go.
func (t *task) release(f *flight) {
	t.unload(f)
	f.leave()
	if t.flights[f.id] == f {
		delete(t.flights, f.id)
	}
	if f.fresh() {
		t.fresh--
	} else {
		f.ep.pulled--
	}
	if f.taken {
		f.ep.lifted--
	}
	if len(t.commands[f.id]) > 0 {
		t.ask(f.id)
	}
}

// hand has the open transaction end a flight.
func (t *task) hand(f *flight) {
	if !f.handed {
		f.handed = true
		t.handed = append(t.handed, f)
	}
}

// launch gives a flight that control has admitted to the pool.
func (t *task) launch(f *flight) {
	f.running = true
	f.dest, f.version = f.ep.dest, f.ep.spec.GetVersion()
	t.flying++
	t.d.room.begun.Add(1)
	t.d.pool.submit(func() { t.run(f) })
}

// run makes an attempt, in the pool. It does not hold the lock meanwhile.
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
	defer t.mu.Unlock()
	t.land(f)
	t.part.Wake()
	t.flying--
	t.d.room.begun.Add(-1)
	if t.flying == 0 && t.quiet != nil {
		close(t.quiet)
		t.quiet = nil
	}
}

// land takes a result. What it says about the endpoint counts at once, whatever becomes of the transaction, and the next
// in the endpoint's queue goes out: an endpoint does not wait for commits.
func (t *task) land(f *flight) {
	e := f.ep
	f.running = false
	if f.unsent {
		e.control.Release()
		if f.taken {
			e.control.ReturnSpare()
		}
		if t.flights[f.id] == f {
			e.enqueue(f)
		}
		return
	}
	now := f.result.Ended()
	e.control.Done(now, outcomeOf(&f.result), f.result.Duration)
	t.felt(f, now)
	if f.taken {
		e.control.ReturnSpare()
	}
	if e.successes++; !f.result.Success() {
		e.successes = 0
	}
	if t.flights[f.id] == f {
		f.landed, f.luck = true, rand.Float64()
		t.results = append(t.results, f)
	}
	if !t.draining.Load() {
		t.letOutTests(e, now)
		if e.mode() == sending {
			t.letOut(e, now)
			t.letOutSpare(e, now)
		}
	}
	t.touch(e, now)
}

// letOut launches what control admits from the endpoint's queue, and returns control's last word.
func (t *task) letOut(e *endpoint, now time.Time) control.Verdict {
	kept := e.queue[:0]
	verdict := control.Go
	for _, f := range e.queue {
		if !f.detached && verdict == control.Go && f.inOrder() {
			if verdict = t.admits(e, now); verdict == control.Go {
				t.launch(f)
				continue
			}
		}
		kept = append(kept, f)
	}
	clear(e.queue[len(kept):])
	e.queue = kept
	return verdict
}

// admits asks those it concerns, the endpoint's control last: its Go takes a slot.
func (t *task) admits(e *endpoint, now time.Time) control.Verdict {
	if e.control.Running() >= t.d.room.share(e.control, now) {
		return control.Full
	}
	return e.control.Admit(now)
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
