package dispatch

import (
	"cmp"
	"slices"
	"time"

	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A partition's window counts every unit from the oldest unfinished one on, those that are done too: one attempt that
// hangs for 15 s would stop a partition after 8,192 deliveries to others. So, once more than half of the window is used,
// what has been in hand for asideAfter moves from the input to the schedule. An attempt that runs goes on, and ends as one
// that was pulled; to a new owner it is one that may have gone out.
const (
	asideAfter = 2 * time.Second
	// asideAtOnce bounds what one transaction moves.
	asideAtOnce = 100
)

// openRecord is a record from the watermark on, done or not.
type openRecord struct {
	pending *stream.Pending
	units   int
	// seq is the transaction that brought it, or brought it again.
	seq uint64
}

// aside is a flight that the open transaction takes off the input.
type aside struct {
	f       *flight
	pending *stream.Pending
}

// opened counts a record into the window.
func (t *task) opened(p *stream.Pending, units int) {
	t.open = append(t.open, openRecord{p, units, t.seq})
	t.units += units
}

// closeRecords moves the window on after a commit; after an abort it takes out what will be given again.
func (t *task) closeRecords(committed bool) {
	from, to := 0, len(t.open)
	if committed {
		to = slices.IndexFunc(t.open, func(r openRecord) bool { return !r.pending.Ended() })
	} else {
		from = slices.IndexFunc(t.open, func(r openRecord) bool { return r.seq == t.seq })
	}
	if to < 0 {
		to = len(t.open)
	}
	if from < 0 {
		from = to
	}
	for _, r := range t.open[from:to] {
		t.units -= r.units
	}
	t.open = slices.Delete(t.open, from, to)
}

// stepAside moves what holds up the window.
func (t *task) stepAside(tx *stream.Tx, now time.Time) error {
	if t.units <= window/2 || now.Before(t.asideAt) {
		return nil
	}
	late, next := t.late(now)
	if len(late) > asideAtOnce {
		late, next = late[:asideAtOnce], now
	}
	t.asideAt = next
	t.part.WakeAt(next)
	for _, f := range late {
		if err := t.moveAside(tx, f, now); err != nil {
			return err
		}
	}
	return nil
}

// late finds the flights that have held their record for long, the oldest record first, and says when to look again.
func (t *task) late(now time.Time) (late []*flight, next time.Time) {
	next = now.Add(asideAfter)
	look := func(f *flight) {
		if !f.fresh() || f.detached {
			return
		}
		if at := f.ready.Add(asideAfter); at.After(now) {
			next = earlier(next, at)
			return
		}
		late = append(late, f)
	}
	for _, f := range t.flights {
		if f.running {
			look(f)
		}
	}
	for _, e := range t.endpoints {
		for _, f := range e.queue {
			look(f)
		}
	}
	slices.SortFunc(late, func(a, b *flight) int { return cmp.Compare(a.order, b.order) })
	return late, next
}

func (t *task) moveAside(tx *stream.Tx, f *flight, now time.Time) error {
	const reason = webhooksv1.WaitingReason_WAITING_REASON_SATURATED
	if !f.running {
		f.ep.queue = slices.DeleteFunc(f.ep.queue, func(other *flight) bool { return other == f })
		return t.spill(tx, f, reason, now)
	}
	s := f.state(reason, now)
	s.Started = true
	if err := t.beginWaiting(tx, f, s); err != nil {
		return err
	}
	t.aside = append(t.aside, aside{f, f.pending})
	f.due = time.Time{} // it is in hand
	f.pending = nil
	t.fresh--
	f.ep.pulled++
	return nil
}

// backFromAside takes back what an aborted transaction moved.
func (t *task) backFromAside() {
	for _, a := range t.aside {
		a.f.pending = a.pending
		t.fresh++
		a.f.ep.pulled--
	}
	t.asideAt = time.Time{}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
