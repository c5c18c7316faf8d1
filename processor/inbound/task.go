package inbound

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/processor/idempotency"
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
	memory    *dedupe.Memory
	tally     tally

	moved moves
	sets  sets

	// nextDue is when the earliest timer is due, in milliseconds; it may be earlier than that, never later. 0 = look.
	nextDue int64
	// forgot is the day for which everything that is to be forgotten is forgotten.
	forgot dedupe.Day
}

// never is a due time after all others.
const never = int64(1) << 62

func newTask(i *Inbound, p *stream.Partition) *task {
	// The first Advance looks for timers that came due while nobody owned the partition.
	p.Wake()
	return &task{Inbound: i, partition: p, memory: dedupe.Open(p, i.dedupe), tally: newTally()}
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

// event drops what was seen before and hands the rest to its domain. What has no id cannot be told from another.
func (t *task) event(tx *stream.Tx, e *event) (result, error) {
	if e.unusable == "" && !id.ValidOrg(e.organization) {
		e.unusable = reasonNoOrganization
	}
	if e.eventID == "" {
		return t.bury(tx, e, cmp.Or(e.unusable, reasonNoID)), nil
	}
	if e.unusable == "" {
		gone, err := t.forward(tx, e)
		if gone || err != nil {
			return forwarded, err
		}
	}
	key := dedupe.KeyOf(e.source, e.account, e.eventID)
	known, err := t.memory.Recall(tx, key)
	if err != nil {
		return 0, err
	}
	if known == dedupe.Done {
		return duplicate, nil
	}
	e.buried = known == dedupe.Dead
	what, err := t.effect(tx, e)
	if err != nil {
		return 0, err
	}
	switch what {
	case duplicate: // it was dead and still is
		return what, nil
	case dead:
		known = dedupe.Dead
	default:
		known = dedupe.Done
	}
	t.memory.Remember(tx, key, known, tx.Now().Add(t.retention(e.source)))
	return what, nil
}

// effect hands an event that is not a repeat to its domain.
func (t *task) effect(tx *stream.Tx, e *event) (result, error) {
	if e.unusable != "" {
		return t.bury(tx, e, e.unusable), nil
	}
	if e.source == schemas.SourceStripe && billing.Handles(e.eventType) {
		return t.billing(tx, e)
	}
	t.row(tx, e, ignored, reasonUnhandled)
	return ignored, nil
}

// Prefetch names the billing record of an event's organization, and what says whom a change of it is told.
func (t *task) Prefetch(in *kgo.Record, read func(store string, key []byte)) {
	var source, eventType string
	var organization []byte
	for _, h := range in.Headers {
		switch h.Key {
		case schemas.HeaderSource:
			source = string(h.Value)
		case schemas.HeaderType:
			eventType = string(h.Value)
		case schemas.HeaderOrganization:
			organization = h.Value
		}
	}
	if source != schemas.SourceStripe || !billing.Handles(eventType) {
		return
	}
	read(schemas.Billing, organization)
	if billing.Tells(eventType) && !t.sets.known(organization) {
		read(schemas.Endpoints, organization)
	}
}

// Advance applies timers that are due and forgets what was seen too long ago.
func (t *task) Advance(tx *stream.Tx, now time.Time) error {
	if err := t.expire(tx, now.UnixMilli()); err != nil {
		return err
	}
	if today := dedupe.DayOf(now); t.forgot != today {
		t.memory.Forget(tx)
		tx.ForgetBelow(schemas.Idempotency, idempotency.Current(now))
		t.forgot = today
		t.partition.WakeAt(now.Truncate(24 * time.Hour).Add(24 * time.Hour))
	}
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
	t.nextDue, t.forgot, t.moved, t.sets = 0, 0, moves{}, sets{}
	t.partition.Wake()
}

// Full is never true: every record is done when Process returns.
func (t *task) Full() bool { return false }

// Drain has nothing to wait for.
func (t *task) Drain(context.Context) {}

// Close stops the reading of what was seen before.
func (t *task) Close() { t.memory.Close() }
