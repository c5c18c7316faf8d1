// Package streamtest drives a task of package stream without Kafka: the same transactions over a store in memory. A
// test says what comes in and reads what goes out; it can abort a transaction, and stop, crash and restart the owner.
package streamtest

import (
	"context"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
	"github.com/betterdata/webhooks/internal/stream"
)

// Partitions is the partition count the harness gives to tasks; the task under test owns partition 0.
const Partitions = 4

// TB is the part of testing.TB that the harness needs; rapid.T is one too.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	FailNow()
	Cleanup(func())
}

// Harness holds one task, its store, and the log of its input.
type Harness struct {
	t    TB
	spec stream.Spec
	db   *store.DB
	d    *stream.Driver

	// Now is the time of the next transaction. It does not move by itself.
	Now time.Time

	log       []*kgo.Record     // everything ever processed, by offset
	newest    map[string][]byte // committed values of emitted records, by topic and key
	watermark int64
	metadata  string
	woken     chan struct{}
}

// New starts the task of partition 0 with empty stores, at 2026-01-01T00:00:00Z.
func New(t TB, spec stream.Spec) *Harness {
	t.Helper()
	db, err := store.OpenMemory()
	require.NoError(t, err)
	h := &Harness{t: t, spec: spec, db: db, Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), woken: make(chan struct{}, 1),
		newest: map[string][]byte{}}
	h.start()
	t.Cleanup(func() {
		h.d.Close()
		require.NoError(t, db.Close())
	})
	return h
}

func (h *Harness) start() {
	h.t.Helper()
	var err error
	h.d, err = stream.NewDriver(h.spec, 0, Partitions, h.db, h.watermark, h.metadata, func() {
		select {
		case h.woken <- struct{}{}:
		default:
		}
	})
	require.NoError(h.t, err)
}

// Outputs is what a transaction produced, in order: changelog records first.
type Outputs []stream.Produced

// Topic returns the emitted and changelog records of one topic.
func (o Outputs) Topic(name string) []*kgo.Record {
	var out []*kgo.Record
	for _, p := range o {
		if p.Topic == name {
			out = append(out, p.Record)
		}
	}
	return out
}

// Emitted returns the outputs that are not changelog records.
func (o Outputs) Emitted() Outputs {
	var out Outputs
	for _, p := range o {
		if !p.Changelog {
			out = append(out, p)
		}
	}
	return out
}

// Process runs one transaction: what the task reads ahead, the records in order, then Advance, then the commit. Offsets are set, ascending, on
// records that have none; Topic and Timestamp where they are empty.
func (h *Harness) Process(records ...*kgo.Record) Outputs {
	h.t.Helper()
	h.take(records)
	return h.Commit()
}

// Advance sets the time and runs one transaction without records.
func (h *Harness) Advance(now time.Time) Outputs {
	h.t.Helper()
	h.Now = now
	require.NoError(h.t, h.d.Advance(h.Now))
	return h.end(true)
}

// Abort runs one transaction like Process and aborts it. The records are not given again by themselves: call Process
// without offsets' change on the same records, or Redeliver.
func (h *Harness) Abort(records ...*kgo.Record) {
	h.t.Helper()
	h.take(records)
	require.NoError(h.t, h.d.Advance(h.Now))
	h.end(false)
}

// Redeliver runs one transaction with every record from where the task stands: after an abort those of the aborted
// transaction, after a restart those from the watermark on.
func (h *Harness) Redeliver() Outputs {
	h.t.Helper()
	if next := h.d.Next(); next < int64(len(h.log)) {
		require.NoError(h.t, h.d.Process(h.log[next:], h.Now))
	}
	return h.Commit()
}

// Commit calls Advance and commits the open transaction.
func (h *Harness) Commit() Outputs {
	h.t.Helper()
	require.NoError(h.t, h.d.Advance(h.Now))
	return h.end(true)
}

func (h *Harness) take(records []*kgo.Record) {
	h.t.Helper()
	for _, r := range records {
		if r.Topic == "" {
			r.Topic = h.spec.Input
		}
		if r.Timestamp.IsZero() {
			r.Timestamp = h.Now
		}
		if n := int64(len(h.log)); r.Offset >= n || n == 0 || h.log[r.Offset] != r {
			r.Offset = n
			h.log = append(h.log, r)
		}
	}
	require.NoError(h.t, h.d.Process(records, h.Now))
}

func (h *Harness) end(commit bool) Outputs {
	h.t.Helper()
	out, watermark, metadata, err := h.d.End(commit)
	require.NoError(h.t, err)
	if commit {
		h.watermark, h.metadata = watermark, metadata
		for _, p := range out {
			h.newest[p.Topic+"\x00"+string(p.Record.Key)] = p.Record.Value
		}
	}
	return out
}

// Crash makes a new owner from what was committed last, without a word to the old one but Close. Records from the
// watermark on are given by Redeliver.
func (h *Harness) Crash() {
	h.t.Helper()
	h.d.Close()
	h.start()
}

// Stop hands over cleanly: Drain, a last transaction, then a new owner. Records that the old one left are given by
// Redeliver.
func (h *Harness) Stop() Outputs {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h.d.Task().Drain(ctx)
	out := h.Commit()
	metadata, err := h.d.Metadata(ctx.Err() == nil)
	require.NoError(h.t, err)
	h.metadata = metadata
	h.d.Close()
	h.start()
	return out
}

// WaitWoken waits until the task has asked for Advance, by Wake or a WakeAt that is due.
func (h *Harness) WaitWoken() {
	h.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		if due, _ := h.d.Due(h.Now); due {
			return
		}
		select {
		case <-h.woken:
		case <-deadline:
			require.FailNow(h.t, "the task did not ask for Advance within 10 s")
		}
	}
}

// Woken reports that the task has asked for Advance, by Wake or a WakeAt that is due.
func (h *Harness) Woken() bool {
	due, _ := h.d.Due(h.Now)
	return due
}

// WakeTime is the time given to WakeAt and not used up; zero when there is none.
func (h *Harness) WakeTime() time.Time {
	_, at := h.d.Due(h.Now)
	return at
}

// Full reports that a session would stop polling the partition.
func (h *Harness) Full() bool { return h.d.Full() }

// Task is the task under test.
func (h *Harness) Task() stream.Task { return h.d.Task() }

// Watermark is the committed offset.
func (h *Harness) Watermark() int64 { return h.watermark }

// Get reads committed state; nil when there is none.
func (h *Harness) Get(store string, key []byte) []byte {
	h.t.Helper()
	value, ok, err := h.d.Partition().Read(store, key)
	require.NoError(h.t, err)
	if !ok {
		return nil
	}
	return value
}

// Newest is the value of the newest record of a key that was committed to a topic; nil when there is none.
func (h *Harness) Newest(topic string, key []byte) []byte { return h.newest[topic+"\x00"+string(key)] }

// Keys lists the committed keys of a store, in order.
func (h *Harness) Keys(store string) []string {
	h.t.Helper()
	keys := []string{}
	require.NoError(h.t, h.d.Partition().ReadScan(store, nil, nil, func(key, _ []byte) bool {
		keys = append(keys, string(key))
		return true
	}))
	return keys
}
