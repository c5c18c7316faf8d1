package dispatch

import (
	"context"
	"time"

	"github.com/betterdata/webhooks/deliverer/archive"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	// readsAtOnce bounds the reads of a process.
	readsAtOnce = 4
	readTimeout = time.Minute
	// readAhead is how many events in memory make it worth reading the next page.
	readAhead = archive.PageEvents / 2
	// recordedPoll is how often the record is asked whether it is complete; a read that failed is tried again after
	// firstPause, doubling to maxPause.
	recordedPoll = 250 * time.Millisecond
	firstPause   = time.Second
	maxPause     = 30 * time.Second
)

// reading is what a replay knows of its reads. There is one at a time.
type reading struct {
	busy     bool
	recorded func(context.Context) (bool, error)
	counted  bool
	failures int
	// again is when to read after a failure, or to ask whether the record is complete.
	again time.Time
	// lost are events in the replay's hand that the record has no more.
	lost []string
}

// readOn reads what the replay needs next, beside the task. What comes is taken with the endpoint's next visit.
func (t *task) readOn(r *replaying, now time.Time) {
	switch {
	case r.busy || len(r.page.events) > readAhead || r.page.end && !r.left:
		return
	case now.Before(r.again):
		t.touch(r.ep, r.again)
		return
	case !t.hasSpare(r.ep, now):
		// What is read now would only be held.
		t.touch(r.ep, now.Add(crowdPoll))
		return
	}
	if t.unseen(r, now) {
		return
	}
	read := t.nextRead(r)
	if read == nil {
		return
	}
	r.busy = true
	ctx := t.part.Context()
	go func() {
		took, err := t.d.read(ctx, read)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.wasRead(r, took, err)
	}()
}

// read makes one of the process's reads.
func (d *Dispatcher) read(ctx context.Context, read readFunc) (took func(), err error) {
	if err := d.reads.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.reads.Release(1)
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return read(ctx)
}

// wasRead takes what a read brought, or has it tried again.
func (t *task) wasRead(r *replaying, took func(), err error) {
	if t.draining.Load() || r.ep.replay(r.state.GetId()) != r {
		return // given up, or begun anew from the store
	}
	r.busy = false
	switch {
	case !r.working(): // paused meanwhile: it is read again
	case err == nil:
		r.failures = 0
		took()
	default:
		t.d.metrics.unread.Inc()
		if r.failures == 0 {
			t.log.Warn("replay cannot read the record, will go on trying", "org", r.state.GetOrganizationId(),
				"endpoint", r.ep.id, "replay_id", r.state.GetId(), "error", err)
		}
		r.again = t.now.Add(min(firstPause<<min(r.failures, 10), maxPause))
		r.failures++
	}
	t.touch(r.ep, t.now)
	t.part.Wake()
}

// readFunc reads, without the task's lock. took, called with it, brings in what came.
type readFunc func(context.Context) (took func(), err error)

// nextRead is the read that a replay needs: what is left over of its hand, whether the record is complete, how many events
// there are, or the next page. It is nil when there is nothing to read.
func (t *task) nextRead(r *replaying) readFunc {
	if r.left {
		if len(r.page.events) > 0 {
			return nil // these are they
		}
		if left := t.leftOver(r); len(left) > 0 {
			return t.readLeftOver(r, left)
		}
		r.left = false
	}
	switch {
	case !r.working():
		return nil
	case !r.state.GetRecorded():
		return t.readRecorded(r)
	case r.state.Total == nil && !r.counted:
		return t.readCount(r)
	}
	return t.readPage(r)
}

// span is the range as it is read: by what the endpoint subscribes to now.
func (r *replaying) span() archive.Range {
	return archive.Range{
		Organization: r.state.GetOrganizationId(), Endpoint: r.ep.spec, SinceUnixMS: r.state.GetSinceUnixMs(),
		UntilUnixMS: r.state.GetUntilUnixMs(), EventTypes: r.state.GetEventTypes(), Only: r.state.GetOnly(),
	}
}

func (t *task) readRecorded(r *replaying) readFunc {
	if r.recorded == nil {
		r.recorded = t.d.deps.Archive.Recorded(r.state.GetOrganizationId(), r.ep.id)
	}
	ask := r.recorded
	return func(ctx context.Context) (func(), error) {
		all, err := ask(ctx)
		return func() {
			if !all {
				r.again = t.now.Add(recordedPoll)
				return
			}
			r.state.Recorded = true
			t.moved(r)
		}, err
	}
}

func (t *task) readCount(r *replaying) readFunc {
	what := r.span()
	return func(ctx context.Context) (func(), error) {
		n, known, err := t.d.deps.Archive.Count(ctx, what)
		if err != nil && ctx.Err() != nil {
			known, err = false, nil // too many to be counted first
		}
		return func() {
			r.counted = true
			if known {
				r.state.Total = &n
				t.moved(r)
			}
		}, err
	}
}

func (t *task) readPage(r *replaying) readFunc {
	what, after := r.span(), r.page.next
	return func(ctx context.Context) (func(), error) {
		read, err := t.d.deps.Archive.Page(ctx, what, after)
		return func() {
			if r.page.next != after {
				return // dropped meanwhile
			}
			t.addPage(r, read.Events)
			r.page.next, r.page.end = read.Next, read.End
		}, err
	}
}

// readLeftOver reads the events that the replay has in hand and we have not. Those that the record has no more end here.
func (t *task) readLeftOver(r *replaying, left []*webhooksv1.TakenEvent) readFunc {
	wanted := make([]*webhooksv1.TakenEvent, len(left))
	for i, item := range left {
		wanted[i] = &webhooksv1.TakenEvent{EventId: item.GetEventId(), AcceptedUnixMs: item.GetAcceptedUnixMs()}
	}
	org := r.state.GetOrganizationId()
	return func(ctx context.Context) (func(), error) {
		events, err := t.d.deps.Archive.Events(ctx, org, wanted)
		return func() {
			t.dropPage(r)
			t.addPage(r, events)
			found := map[string]bool{}
			for _, e := range events {
				found[e.GetId()] = true
			}
			for _, e := range wanted {
				if !found[e.GetEventId()] {
					r.lost = append(r.lost, e.GetEventId())
				}
			}
		}, err
	}
}

// addPage adds events to what was read and is not taken.
func (t *task) addPage(r *replaying, events []*webhooksv1.OutboundEvent) {
	bytes := 0
	for _, e := range events {
		bytes += len(e.GetBody())
	}
	if r.page.load == nil {
		r.page.load = t.newLoad(0)
	}
	r.page.load.bytes += int64(bytes)
	t.d.room.held.Add(int64(bytes))
	r.page.events = append(r.page.events, events...)
	r.page.used = t.now
}
