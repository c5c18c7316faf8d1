package inbound

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

// Reasons of dead letters that are not billing's.
const (
	reasonNoOrganization = "no_organization" // the record names none, or not one
	reasonNoID           = "no_event_id"
	reasonTooLarge       = "too_large" // what would follow from it exceeds what Kafka takes
	reasonCommand        = "malformed_command"
)

// reasonUnhandled is why an event is ignored.
const reasonUnhandled = "unhandled_type"

// timerBatch bounds the timers that one transaction applies.
const timerBatch = 200

// task is the logic of one partition of `inbound`.
type task struct {
	*Inbound
	partition *stream.Partition
	tally     tally

	moved moves

	// nextDue is when the earliest timer is due, in milliseconds; it may be earlier than that, never later. 0 = look.
	nextDue int64
	// pruned is the day for which everything that is to be forgotten is forgotten.
	pruned uint16
}

// never is a due time after all others.
const never = int64(1) << 62

func newTask(i *Inbound, p *stream.Partition) *task {
	// The first Advance looks for timers that came due while nobody owned the partition.
	p.Wake()
	return &task{Inbound: i, partition: p, tally: newTally()}
}

// Process applies one record.
func (t *task) Process(tx *stream.Tx, in *kgo.Record) error {
	e := read(in)
	var (
		what result
		err  error
	)
	if cloudevent.IsCommand(e.source, e.eventType) {
		what, err = t.command(tx, &e)
	} else {
		what, err = t.event(tx, &e)
	}
	if err != nil {
		return fmt.Errorf("inbound record at offset %d of partition %d: %w", in.Offset, in.Partition, err)
	}
	t.tally.count(e.eventType, what)
	return nil
}

// event drops what was seen before and hands the rest to its domain.
func (t *task) event(tx *stream.Tx, e *event) (result, error) {
	switch {
	case !id.ValidOrg(e.organization):
		return t.bury(tx, e, reasonNoOrganization), nil
	case e.eventID == "":
		return t.bury(tx, e, reasonNoID), nil
	}
	if to, err := t.moved.to(tx, e); err != nil {
		return 0, err
	} else if to != "" {
		return t.forward(tx, e, to), nil
	}
	isNew, err := see(tx, keyOf(e.organization, e.eventID), expiry(tx.Now(), t.retention(e.source)))
	switch {
	case err != nil:
		return 0, err
	case !isNew:
		return duplicate, nil
	case e.source == schemas.SourceStripe && billing.Handles(e.eventType):
		return t.billing(tx, e)
	}
	t.row(tx, e, ignored, reasonUnhandled)
	return ignored, nil
}

// Advance applies timers that are due and forgets what was seen too long ago.
func (t *task) Advance(tx *stream.Tx, now time.Time) error {
	if err := t.expire(tx, now.UnixMilli()); err != nil {
		return err
	}
	today := dayOf(now)
	if t.pruned == today {
		return nil
	}
	done, err := prune(tx, today)
	if err != nil {
		return err
	}
	if !done {
		t.partition.Wake()
		return nil
	}
	t.pruned = today
	t.partition.WakeAt(now.Truncate(24 * time.Hour).Add(24 * time.Hour))
	return nil
}

// expire applies the timers that are due at now.
func (t *task) expire(tx *stream.Tx, now int64) error {
	if now < t.nextDue {
		return nil
	}
	due, next, err := timers(tx, now, timerBatch)
	if err != nil {
		return err
	}
	// Before the timers: one that is applied may set its organization's next.
	t.nextDue = never
	for _, timer := range due {
		if err := t.timer(tx, timer, now); err != nil {
			return fmt.Errorf("timer of organization %s: %w", timer.organization, err)
		}
	}
	t.awaitTimer(next)
	return nil
}

// awaitTimer asks to be called when a timer is due; 0 is none.
func (t *task) awaitTimer(due int64) {
	if due == 0 || due >= t.nextDue {
		return
	}
	t.nextDue = due
	t.partition.WakeAt(time.UnixMilli(due))
}

// Settled counts what was committed. What was aborted comes again: the records by the runtime, the timers because they
// are looked for anew.
func (t *task) Settled(committed bool) {
	if committed {
		t.tally.flush(t.metrics)
		return
	}
	t.tally.reset()
	t.nextDue, t.pruned, t.moved = 0, 0, moves{}
	t.partition.Wake()
}

// Full is never true: every record is done when Process returns.
func (t *task) Full() bool { return false }

// Drain has nothing to wait for.
func (t *task) Drain(context.Context) {}

// Close has nothing to stop.
func (t *task) Close() {}
