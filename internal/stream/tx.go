package stream

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Tx collects what one transaction does to one partition: state writes in an overlay, records to produce, units of
// work that end. Nothing leaves it before the commit.
type Tx struct{}

// Get returns the value of key in the store with that topic as this transaction sees it; ok is false when there is none.
// The value must not be kept or changed.
func (tx *Tx) Get(store string, key []byte) (value []byte, ok bool, err error) { panic("unwritten") }

// Put writes a state record, and its changelog record.
func (tx *Tx) Put(store string, key, value []byte) { panic("unwritten") }

// Delete removes a state record, and writes its tombstone.
func (tx *Tx) Delete(store string, key []byte) { panic("unwritten") }

// Scan calls fn for the records of a store whose key starts with prefix and is not below from, in order, as this
// transaction sees them, until fn returns false.
func (tx *Tx) Scan(store string, prefix, from []byte, fn func(key, value []byte) bool) error {
	panic("unwritten")
}

// ScanIndex calls fn for the index keys with the prefix, not below from, in order, until fn returns false. Puts of the
// open transaction are seen; keys left behind by older puts are too.
func (tx *Tx) ScanIndex(store string, prefix, from []byte, fn func(indexKey []byte) bool) error {
	panic("unwritten")
}

// DropIndex removes a left-behind index key from the local store.
func (tx *Tx) DropIndex(store string, indexKey []byte) { panic("unwritten") }

// Emit produces a record in the transaction. Topic is without prefix; routingKey decides the partition.
func (tx *Tx) Emit(topic, routingKey string, r *kgo.Record) { panic("unwritten") }

// Now is the time the runtime gave this batch. Tasks have no other clock.
func (tx *Tx) Now() time.Time { panic("unwritten") }

// Track splits the record being processed into units that end later, by Tx.Finish. It is called at most once a
// record, from Process.
func (tx *Tx) Track(units int) *Pending { panic("unwritten") }

// Finish ends a unit with this transaction.
func (tx *Tx) Finish(p *Pending, unit int) { panic("unwritten") }

// Pending is a record some of whose units are not done.
type Pending struct{}

// Done reports that a unit was finished before, by this owner or an earlier one.
func (p *Pending) Done(unit int) bool { panic("unwritten") }

// MaybeStarted reports that an earlier owner, which did not stop cleanly, may have started the record's work.
func (p *Pending) MaybeStarted() bool { panic("unwritten") }

// Partition is a task's handle on its runtime. Its methods may be called from any goroutine.
type Partition struct{}

// ID is the partition's number.
func (p *Partition) ID() int32 { panic("unwritten") }

// Wake asks for a call of Advance soon.
func (p *Partition) Wake() { panic("unwritten") }

// WakeAt asks for a call of Advance at t; an earlier time replaces a later one.
func (p *Partition) WakeAt(t time.Time) { panic("unwritten") }

// Context ends when the partition is given up.
func (p *Partition) Context() context.Context { panic("unwritten") }

// Read gives access to the committed state outside of a transaction, for reads only.
func (p *Partition) Read(store string, key []byte) (value []byte, ok bool, err error) {
	panic("unwritten")
}
