package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
)

// Driver runs one partition's task by hand, over a given store and without Kafka. It is the same code as a session
// drives, and is here for package streamtest; services have no use for it.
type Driver struct{ o *owned }

// Produced is a record a transaction would have produced.
type Produced struct {
	Topic string // without prefix
	// Key is the routing key of an emitted record, "" of a changelog's.
	Key       string
	Partition int32
	Record    *kgo.Record
	// Changelog says that it came from Put or Delete.
	Changelog bool
}

// NewDriver starts the task of a partition at an offset of its input, as an owner does who finds that offset and
// metadata committed. Wake is called when the task asks to be advanced.
func NewDriver(spec Spec, id, partitions int32, db *store.DB, offset int64, metadata string, wake func()) (*Driver, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	st, err := db.Acquire(id, spec.topics())
	if err != nil {
		return nil, err
	}
	meta, ours := decodeMetadata(metadata)
	if !ours && metadata != "" {
		return nil, fmt.Errorf("metadata %q is not of this program", metadata)
	}
	o := newOwned(context.Background(), &spec, id, partitions, st, position{offset, -1}, meta, wake)
	if err := o.start(); err != nil {
		return nil, err
	}
	return &Driver{o}, nil
}

// Task is what NewTask made.
func (d *Driver) Task() Task { return d.o.task }

// Partition is the task's handle.
func (d *Driver) Partition() *Partition { return d.o.part }

// Full reports that a session would not give the task a record now.
func (d *Driver) Full() bool { return d.o.full() }

// Due reports whether the task asked for Advance, and if not, for when.
func (d *Driver) Due(now time.Time) (bool, time.Time) { return d.o.part.due(now) }

// Process gives the task records, after reading ahead for all of them: for however few, where a session does it from
// minPrefetch on, so that tests meet it. It opens a transaction when none is open.
func (d *Driver) Process(records []*kgo.Record, now time.Time) error {
	if err := d.o.prefetch(records, 1); err != nil {
		return err
	}
	for _, r := range records {
		if err := d.o.process(r, now); err != nil {
			return err
		}
	}
	return nil
}

// Advance calls the task, opening a transaction when none is open.
func (d *Driver) Advance(now time.Time) error { return d.o.advance(now) }

// End ends the open transaction and returns what it produces, the offset it commits and its metadata; after an abort,
// where to take records from again.
func (d *Driver) End(commit bool) (out []Produced, offset int64, metadata string, err error) {
	if commit {
		out = d.o.produced()
		ends := make([]store.Position, len(d.o.spec.Stores))
		if err := d.o.apply(ends); err != nil {
			return nil, 0, "", err
		}
	}
	d.o.settle(commit)
	metadata, err = d.Metadata(false)
	return out, d.o.track.watermark().offset, metadata, err
}

// Next is the offset of the record the task is given next.
func (d *Driver) Next() int64 { return d.o.track.next.offset }

// Metadata is what is committed beside the watermark; clean after a Drain that did not run out of time. A driver gives
// its task as many records as its test likes, so it announces the most that a session ever takes.
func (d *Driver) Metadata(clean bool) (string, error) {
	ahead := 0
	if d.o.spec.Window > 0 {
		ahead = maxAhead
	}
	meta := d.o.track.metadata(ahead, clean)
	meta.Transaction = 1
	return encodeMetadata(meta)
}

// Close closes the task.
func (d *Driver) Close() { d.o.close() }

// produced lists what the open transaction produces: the changelogs', then the emitted in their order.
func (o *owned) produced() []Produced {
	var out []Produced
	for i, over := range o.tx.over {
		for _, key := range over.order {
			out = append(out, Produced{
				Topic: o.spec.Stores[i].Topic, Partition: o.id, Changelog: true,
				Record: changelogRecord(key, over.data[key]),
			})
		}
	}
	for _, e := range o.tx.emits {
		out = append(out, Produced{Topic: e.topic, Key: e.key, Partition: e.partition, Record: e.record})
	}
	return out
}

func changelogRecord(key string, w write) *kgo.Record {
	r := &kgo.Record{Key: []byte(key)}
	if !w.deleted {
		r.Value = w.value
	}
	return r
}
