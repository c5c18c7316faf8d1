package fanout

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// maxTargets bounds the endpoints of one `deliveries` record: at 80 bytes each, beside the largest event, it stays
// far below the largest record, and below what the deliverer tracks of one (stream.MaxUnits).
const maxTargets = 2000

// maxData bounds an event's data, so that it fits into one record with its attributes and maxTargets targets.
const maxData = stream.MaxOutput - 512<<10

// task is the logic of one partition of `events`. It keeps no state.
type task struct {
	*Fanout
	partition *stream.Partition
	// held is the event that waits for the copy of the endpoints, or nil. While there is one the task is Full, so none
	// comes after it. seq numbers transactions.
	held  *heldEvent
	seq   uint64
	tally tally
}

// tally counts a transaction's work until it is known to be committed.
type tally struct {
	matched, unmatched, dead, deliveries, filterErrors int
}

// Process implements stream.Task.
func (t *task) Process(tx *stream.Tx, in *kgo.Record) error {
	e, reason := readEvent(in)
	if reason != "" {
		t.bury(tx, in, e, reason)
		return nil
	}
	h := &heldEvent{event: e, pending: tx.Track(1), seq: t.seq, since: tx.Now()}
	if h.pending.Done(0) {
		return nil
	}
	if t.held != nil {
		return fmt.Errorf("event %s came while %s waits", e.ID, t.held.event.ID)
	}
	if done, err := t.fanOut(tx, h); done || err != nil {
		return err
	}
	t.metrics.waits.Inc()
	t.held = h
	// Before the endpoints are looked at again: a change in between is not missed.
	t.matcher.waits(t, e.Organization)
	return nil
}

// fanOut does an event's work, unless the copy of the endpoints is older than the event.
func (t *task) fanOut(tx *stream.Tx, h *heldEvent) (done bool, err error) {
	set, err := t.matcher.current(h.event.Organization)
	if err != nil || set.version < h.event.EndpointSet {
		return false, err
	}
	f := fanning{task: t, tx: tx, event: h.event, set: set, nowMS: tx.Now().UnixMilli()}
	if err := f.run(); err != nil {
		return false, err
	}
	tx.Finish(h.pending, 0)
	return true, nil
}

// bury puts an event that cannot be fanned out where it can be looked at and replayed from. Events are made by us: it is
// a mistake of ours.
func (t *task) bury(tx *stream.Tx, in *kgo.Record, e *event, reason string) {
	t.log.Error("event cannot be fanned out", "org", e.Organization, "event_id", e.ID, "partition", t.partition.ID(), "reason", reason)
	t.tally.dead++
	letter := deadletters.New(schemas.Events, in, &webhooksv1.InboundRow{
		Source: e.Source, SourceEventId: e.ID, EventId: e.ID, OrganizationId: e.Organization, Type: e.Type,
		Outcome: schemas.OutcomeDead, Reason: reason, ReceivedUnixMs: e.AcceptedUnixMS,
	}, tx.Now())
	tx.Emit(schemas.InboundDead, e.Organization, deadletters.Record(letter))
}

// Advance implements stream.Task: it goes on with what is held.
func (t *task) Advance(tx *stream.Tx, now time.Time) error {
	h := t.held
	if h == nil || h.pending.Done(0) {
		return nil
	}
	if done, err := t.fanOut(tx, h); done || err != nil {
		return err
	}
	t.noticeStall(h, now)
	return nil
}

// stallNotice is how often a wait for the copy is reported.
const stallNotice = 10 * time.Second

func (t *task) noticeStall(h *heldEvent, now time.Time) {
	if h.noticed.IsZero() {
		h.noticed = h.since
	}
	if now.Sub(h.noticed) >= stallNotice {
		h.noticed = now
		t.log.Warn("fan-out waits for its copy of the endpoints", "org", h.event.Organization, "event_id", h.event.ID,
			"version", h.event.EndpointSet, "partition", t.partition.ID(), "for", now.Sub(h.since))
	}
	t.partition.WakeAt(h.noticed.Add(stallNotice))
}

// Settled implements stream.Task.
func (t *task) Settled(committed bool) {
	if committed {
		t.metrics.matched.Add(float64(t.tally.matched))
		t.metrics.unmatched.Add(float64(t.tally.unmatched))
		t.metrics.dead.Add(float64(t.tally.dead))
		t.metrics.deliveries.Add(float64(t.tally.deliveries))
		t.metrics.filterErrors.Add(float64(t.tally.filterErrors))
	}
	// After an abort, what came with the transaction is given again. What was held before is not, and is open again.
	if t.held != nil && (committed && t.held.pending.Ended() || !committed && t.held.seq == t.seq) {
		t.held = nil
		t.matcher.waitsNoMore(t)
	}
	t.tally = tally{}
	t.seq++
}

// Full implements stream.Task.
func (t *task) Full() bool { return t.held != nil }

// Close implements stream.Task.
func (t *task) Close() { t.matcher.waitsNoMore(t) }

// Drain implements stream.Task: what is held is left to the next owner.
func (t *task) Drain(context.Context) {}

// heldEvent is an event that is not done when Process returns.
type heldEvent struct {
	event   *event
	pending *stream.Pending
	// seq is the transaction that brought it.
	seq uint64
	// since is when that was, noticed when it was last reported.
	since, noticed time.Time
}

// fanning is one event on its way to its endpoints.
type fanning struct {
	*task
	tx    *stream.Tx
	event *event
	set   *endpointSet
	nowMS int64
	// byPartition has the targets of each partition of `deliveries`, in the order of their ids.
	byPartition map[int32][]*webhooksv1.Target
	partitions  []int32
	matched     int
	disabled    int
}

func (f *fanning) run() error {
	for i := range f.set.targets {
		if endpoint := &f.set.targets[i]; f.wants(endpoint) {
			if err := f.take(endpoint); err != nil {
				return err
			}
		}
	}
	if f.matched == 0 {
		f.tally.unmatched++
	} else {
		f.tally.matched++
	}
	if f.matched+f.disabled == 0 {
		// The row that says that nobody wanted the event.
		if err := f.row("", schemas.DeliveryUnmatched); err != nil {
			return err
		}
	}
	f.tally.deliveries += f.matched
	if err := f.eventRow(); err != nil {
		return err
	}
	return f.deliveries()
}

// wants reports whether the endpoint matches, enabled or not.
func (f *fanning) wants(t *target) bool {
	if !t.types.Match(f.event.Type) || !t.loops.Match(f.event.loopID) {
		return false
	}
	return !t.filtered || f.passes(t.filter)
}

// passes runs a filter. One that cannot say, because it fails or costs too much, does not match.
func (f *fanning) passes(filter *eventfilter.Filter) bool {
	if filter == nil {
		return false
	}
	if f.event.decoded == nil {
		decoded, err := eventfilter.Decode(f.event.body)
		if err != nil {
			f.tally.filterErrors++
			return false
		}
		f.event.decoded = &decoded
	}
	match, err := filter.Match(*f.event.decoded)
	if err != nil {
		f.tally.filterErrors++
	}
	return match
}

// take writes the first row of an endpoint that matches, and makes it a target when it is enabled.
func (f *fanning) take(t *target) error {
	if !t.enabled {
		f.disabled++
		return f.row(t.id, schemas.DeliveryUnmatched)
	}
	f.matched++
	partition := f.partition.PartitionOf(t.id)
	if f.byPartition == nil {
		f.byPartition = map[int32][]*webhooksv1.Target{}
	}
	if len(f.byPartition[partition]) == 0 {
		f.partitions = append(f.partitions, partition)
	}
	f.byPartition[partition] = append(f.byPartition[partition], &webhooksv1.Target{
		DeliveryId: f.deliveryID(t.id), EndpointId: t.id, EndpointVersion: t.version,
	})
	return f.row(t.id, schemas.DeliveryWaiting)
}

func (f *fanning) deliveryID(endpointID string) string {
	return id.Derive(id.Delivery, f.event.ID, endpointID, "")
}

// row writes version 1 of a row of `deliveries`; later ones are the deliverer's.
func (f *fanning) row(endpointID, status string) error {
	row := &webhooksv1.DeliveryRow{
		DeliveryId: f.deliveryID(endpointID), OrganizationId: f.event.Organization, EndpointId: endpointID, EventId: f.event.ID,
		EventType: f.event.Type, Status: status, AcceptedUnixMs: f.event.AcceptedUnixMS, Version: 1, CreatedUnixMs: f.nowMS,
	}
	routingKey := endpointID
	switch {
	case status == schemas.DeliveryWaiting:
		row.NextAttemptUnixMs = f.nowMS
	case endpointID == "":
		routingKey = f.event.Organization
	}
	return f.emit(schemas.DeliveryRows, routingKey, row.DeliveryId, row)
}

func (f *fanning) eventRow() error {
	e := f.event
	return f.emit(schemas.EventRows, e.Organization, e.ID, &webhooksv1.EventRow{
		EventId: e.ID, OrganizationId: e.Organization, Type: e.Type, Source: e.Source, Subject: e.Subject,
		OccurredUnixMs: e.OccurredUnixMS, AcceptedUnixMs: e.AcceptedUnixMS, CauseSource: e.CauseSource, CauseEventId: e.CauseEventID,
		CorrelationId: e.CorrelationID, CausationId: e.CausationID, SchemaVersion: outbound.SchemaVersion, Matched: uint32(f.matched), Data: e.Data,
	})
}

// deliveries writes what the deliverers work from.
func (f *fanning) deliveries() error {
	event := &webhooksv1.OutboundEvent{
		Id: f.event.ID, OrganizationId: f.event.Organization, Type: f.event.Type, AcceptedUnixMs: f.event.AcceptedUnixMS, Body: f.event.body,
	}
	for _, partition := range f.partitions {
		targets := f.byPartition[partition]
		for len(targets) > 0 {
			n := min(len(targets), maxTargets)
			err := f.emit(schemas.Deliveries, targets[0].EndpointId, f.event.ID, &webhooksv1.Deliveries{
				Event: event, EndpointSetVersion: f.set.version, Targets: targets[:n], CreatedUnixMs: f.nowMS,
			})
			if err != nil {
				return err
			}
			targets = targets[n:]
		}
	}
	return nil
}

func (f *fanning) emit(topic, routingKey, key string, m proto.Message) error {
	value, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s of event %s: %w", topic, f.event.ID, err)
	}
	f.tx.Emit(topic, routingKey, &kgo.Record{Key: []byte(key), Value: value})
	return nil
}
