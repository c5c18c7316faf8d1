package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/schemas"
)

// retention of the events that the state remembers and of those that it meets.
const retention = 30 * 24 * time.Hour

// accounts is how many accounts the events are of.
const accounts = 100_000

func eventKey(n int) dedupe.Key {
	return dedupe.KeyOf(schemas.SourceStripe, strconv.Itoa(n%accounts), "evt_"+strconv.Itoa(n))
}

// remembered is the state's record of an event.
func remembered(n int) (key, value []byte) {
	return dedupe.Record(eventKey(n), dedupe.Done, time.Now().Add(retention))
}

// feed sends events to the group's input: every second one is among those that its state remembers, spread over all of them,
// and the others are new in this run.
func feed(ctx context.Context, o options, run int) error {
	return produce(ctx, o, input, o.events, func(i int) *kgo.Record {
		n := o.keys + run*o.events + i
		if i%2 == 0 {
			n = int(uint64(i) * uint64(o.keys) / uint64(o.events))
		}
		return &kgo.Record{Partition: int32(n % o.partitions), Value: []byte(strconv.Itoa(n))}
	})
}

// met counts the events that a process has met, as far as is committed.
type met struct{ known, fresh atomic.Int64 }

// of is nil once there are so many.
func (m *met) of(events int) error {
	if n := m.known.Load() + m.fresh.Load(); n < int64(events) {
		return fmt.Errorf("%d events met", n)
	}
	return nil
}

// recaller is a task that asks what is known of each event, and remembers it.
type recaller struct {
	idle
	memory       *dedupe.Memory
	met          *met
	known, fresh int64
}

func dedupeSpec(group string, counts *met, log *slog.Logger) stream.Spec {
	cfg := dedupe.Config{Store: schemas.InboundSeen, Reading: make(chan struct{}, 1), Log: log}
	return stream.Spec{
		Group: group, Input: input, Stores: []stream.StoreSpec{{Topic: schemas.InboundSeen, ByAge: true}},
		NewTask: func(p *stream.Partition) (stream.Task, error) {
			return &recaller{memory: dedupe.Open(p, cfg), met: counts}, nil
		},
	}
}

func (r *recaller) Process(tx *stream.Tx, in *kgo.Record) error {
	n, err := strconv.Atoi(string(in.Value))
	if err != nil {
		return err
	}
	key := eventKey(n)
	known, err := r.memory.Recall(tx, key)
	if err != nil {
		return err
	}
	if known == dedupe.Done {
		r.known++
		return nil
	}
	r.fresh++
	r.memory.Remember(tx, key, dedupe.Done, tx.Now().Add(retention))
	return nil
}

func (r *recaller) Settled(committed bool) {
	if committed {
		r.met.known.Add(r.known)
		r.met.fresh.Add(r.fresh)
	}
	r.known, r.fresh = 0, 0
}

func (r *recaller) Close() { r.memory.Close() }

// recall has a child meet the events that were fed, and holds it to the number of those that are known. It returns the
// child's CPU an event.
func recall(o options, child *measure.Child, known int) (perEvent time.Duration, err error) {
	before, err := child.CPU()
	if err != nil {
		return 0, err
	}
	var isKnown, isFresh int
	if err := child.Ask("recall", &isKnown, &isFresh); err != nil {
		return 0, err
	}
	if isKnown != known || isFresh != o.events-known {
		return 0, fmt.Errorf("of %d events %d are known and %d new; it took %d for known and %d for new", o.events, known, o.events-known, isKnown, isFresh)
	}
	after, err := child.CPU()
	return (after - before) / time.Duration(o.events), err
}
