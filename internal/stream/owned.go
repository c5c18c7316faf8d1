package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// owned is one assigned partition: its state, its task, and what the open transaction does to it. Its methods are
// called from one goroutine, the session's.
type owned struct {
	id         int32
	spec       *Spec
	partitions int32 // of every keyed topic
	part       *Partition
	store      *store.Partition
	track      tracker
	task       Task
	tx         *Tx
	// open tells that the task was called since the last settle.
	open bool
	// backlog are polled records that wait for room; fetched is behind the last of them.
	backlog []*kgo.Record
	fetched position
	end     int64 // of the input's partition, as last seen
	// processed is when the last record taken was written.
	processed time.Time
	paused    bool
	// claimed tells that a commit of this owner has announced what it may start, and allowed how many records that are
	// until the next commit. Before the claim a tracked group takes nothing: after a crash the next owner would not know
	// that anything was started.
	claimed bool
	allowed int
	// handover and clean are set when the partition is given up: the last commit says that nothing is in flight.
	handover, clean bool
	// last is the transaction that committed last, as its metadata names it.
	last uint64
	// topics are the stores' topic ids.
	topics    [][16]byte
	refreshed time.Time // when the stores' ages were last written
}

func newOwned(ctx context.Context, spec *Spec, id, partitions int32, st *store.Partition, start position,
	meta *webhooksv1.CommitMetadata, wake func(),
) *owned {
	o := &owned{id: id, spec: spec, partitions: partitions, store: st, track: newTracker(spec.Window, start, meta)}
	o.part = &Partition{o: o, wake: wake}
	o.part.ctx, o.part.cancel = context.WithCancel(ctx)
	o.tx = newTx(o)
	return o
}

// start makes the task. State must be restored.
func (o *owned) start() error {
	task, err := o.spec.NewTask(o.part)
	if err != nil {
		return fmt.Errorf("make task %s of partition %d: %w", o.spec.Group, o.id, err)
	}
	o.task = task
	return nil
}

func (o *owned) storeIndex(topic string) (int, error) {
	for i := range o.spec.Stores {
		if o.spec.Stores[i].Topic == topic {
			return i, nil
		}
	}
	return 0, fmt.Errorf("group %s has no store %q: add it to its Spec", o.spec.Group, topic)
}

// full reports that no record may be processed now.
func (o *owned) full() bool { return o.track.full() || o.task.Full() }

func (o *owned) begin(now time.Time) {
	if !o.open {
		o.open, o.tx.now = true, now
	}
}

// process applies one record within the open transaction.
func (o *owned) process(r *kgo.Record, now time.Time) error {
	o.begin(now)
	o.processed = r.Timestamp
	o.track.record(r)
	o.tx.tracked = nil
	err := errors.Join(o.task.Process(o.tx, r), o.tx.err)
	o.track.current = nil
	if err != nil {
		return fmt.Errorf("group %s: process %s/%d offset %d: %w", o.spec.Group, r.Topic, r.Partition, r.Offset, err)
	}
	return nil
}

// advance lets the task bring in what has happened.
func (o *owned) advance(now time.Time) error {
	o.begin(now)
	o.part.advancing(now)
	if err := errors.Join(o.task.Advance(o.tx, now), o.tx.err); err != nil {
		return fmt.Errorf("group %s: advance partition %d: %w", o.spec.Group, o.id, err)
	}
	return nil
}

// pending reports that there is something to commit.
func (o *owned) pending() bool {
	if o.spec.Window > 0 && (!o.claimed || o.handover) {
		return true
	}
	return o.open && (o.tx.dirty() || o.track.moved())
}

// apply brings what the transaction wrote to the local store; ends says where each changelog stands after it.
func (o *owned) apply(ends []store.Position) error {
	b := o.store.Batch()
	n := 0
	for i, over := range o.tx.over {
		if over.forgotten != nil {
			b.DeleteBelow(i, over.forgotten)
			n++
		}
		for _, key := range over.order {
			if w := over.data[key]; w.deleted {
				b.Delete(i, []byte(key))
			} else {
				b.Put(i, []byte(key), w.value)
			}
		}
		for key, present := range over.index {
			if present {
				b.PutIndex(i, []byte(key))
			} else {
				b.DeleteIndex(i, []byte(key))
			}
		}
		if len(over.order) > 0 {
			b.Position(i, ends[i])
		}
		n += len(over.order) + len(over.index)
	}
	if n == 0 {
		return b.Close()
	}
	return b.Commit()
}

// announced notes that a commit stands in Kafka, and with it what may be taken until the next. It is called before
// settle, on the same transaction that the commit's metadata was made of.
func (o *owned) announced(id uint64) {
	o.claimed, o.allowed, o.last = true, o.ahead(), id
}

// settle ends the transaction for this partition.
func (o *owned) settle(committed bool) {
	if !o.open {
		return
	}
	o.open = false
	o.track.settle(committed, o.tx.finished)
	o.tx.reset()
	o.task.Settled(committed)
	if !committed {
		o.part.Wake() // what Advance handed over is to be handed over again
	}
}

// close ends the task. State and offsets are not touched.
func (o *owned) close() {
	o.part.cancel()
	if o.task != nil {
		o.task.Close()
	}
	o.store.Release()
}
