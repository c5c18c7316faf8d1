package stream

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// Tx collects what one transaction does to one partition: state writes in an overlay, records to produce, units of
// work that end. Nothing leaves it before the commit.
//
// It belongs to the goroutine of the call it was given to, and to the time of that call. A wrong use (a store that is
// not in the Spec, a record over MaxOutput, Track twice) is remembered and ends the session with an error that says so.
type Tx struct {
	o     *owned
	now   time.Time
	over  []*overlay // by index in Spec.Stores
	emits []emit
	bytes int // of what is to be produced
	// finished are the units that end with this transaction, to be taken back if it aborts.
	finished []finish
	// tracked is what Track made for the record being processed.
	tracked *Pending
	arena   []byte // values read from disk live here till the transaction ends
	err     error
}

type emit struct {
	topic     string // without prefix
	key       string // routing key
	partition int32
	record    *kgo.Record
}

type finish struct {
	pending *Pending
	unit    int
}

// MaxOutput is the largest record (key, value and headers, in bytes) that can be produced; the rest of
// schemas.MaxRecordBytes is Kafka's own. What is larger must be answered by a dead letter of its cause: see Fits.
const MaxOutput = schemas.MaxRecordBytes - 64<<10

// Fits reports whether a record can be produced.
func Fits(r *kgo.Record) bool { return recordBytes(r) <= MaxOutput }

func recordBytes(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value) + 32
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value) + 8
	}
	return n
}

func newTx(o *owned) *Tx {
	tx := &Tx{o: o}
	for range o.spec.Stores {
		tx.over = append(tx.over, newOverlay())
	}
	return tx
}

func (tx *Tx) reset() {
	for _, o := range tx.over {
		o.reset()
	}
	clear(tx.emits)
	tx.emits = tx.emits[:0]
	clear(tx.finished)
	tx.finished = tx.finished[:0]
	tx.bytes, tx.tracked, tx.err = 0, nil, nil
	// The arena is not used again: values handed out may still be pointed at by a careless reader, who then sees old
	// data rather than another record's.
	tx.arena = nil
}

// dirty reports whether the transaction does anything to the partition but move its offset.
func (tx *Tx) dirty() bool {
	if len(tx.emits) > 0 || len(tx.finished) > 0 {
		return true
	}
	for _, o := range tx.over {
		if len(o.order) > 0 {
			return true
		}
	}
	return false
}

func (tx *Tx) fail(err error) {
	if tx.err == nil {
		tx.err = err
	}
}

func (tx *Tx) store(topic string) (int, bool) {
	for i := range tx.o.spec.Stores {
		if tx.o.spec.Stores[i].Topic == topic {
			return i, true
		}
	}
	tx.fail(fmt.Errorf("group %s has no store %q: add it to its Spec", tx.o.spec.Group, topic))
	return 0, false
}

// Get returns the value of key in the store with that topic as this transaction sees it; ok is false when there is none.
// The value must not be kept or changed.
func (tx *Tx) Get(store string, key []byte) (value []byte, ok bool, err error) {
	i, ok := tx.store(store)
	if !ok {
		return nil, false, tx.err
	}
	if w, known := tx.over[i].get(key); known {
		return w.value, !w.deleted, nil
	}
	start := len(tx.arena)
	tx.arena, ok, err = tx.o.store.AppendGet(tx.arena, i, key)
	if !ok || err != nil {
		return nil, false, err
	}
	return tx.arena[start:len(tx.arena):len(tx.arena)], true, nil
}

// Put writes a state record, and its changelog record: one a key and transaction, the last. The value is kept; it must
// not be changed afterwards. The key is copied. An empty value is a value.
func (tx *Tx) Put(store string, key, value []byte) {
	i, ok := tx.store(store)
	if !ok {
		return
	}
	if len(key)+len(value) > MaxOutput {
		tx.fail(fmt.Errorf("record of %d bytes for store %s exceeds %d: %w", len(key)+len(value), store, MaxOutput, errTooLarge))
		return
	}
	if value == nil {
		value = []byte{} // nil would be a tombstone on the changelog
	}
	over := tx.over[i]
	tx.bytes += over.set(string(key), write{value: value})
	if index := tx.o.spec.Stores[i].Index; index != nil {
		index(key, value, func(k []byte) { over.setIndex(string(k), true) })
	}
}

// Delete removes a state record, and writes its tombstone.
func (tx *Tx) Delete(store string, key []byte) {
	if i, ok := tx.store(store); ok {
		tx.bytes += tx.over[i].set(string(key), write{deleted: true})
	}
}

// Scan calls fn for the records of a store whose key starts with prefix and is not below from, in order, as this
// transaction sees them, until fn returns false. Keys that fn itself writes may or may not be met. Key and value hold
// during the call of fn only.
func (tx *Tx) Scan(store string, prefix, from []byte, fn func(key, value []byte) bool) error {
	i, ok := tx.store(store)
	if !ok {
		return tx.err
	}
	it, err := tx.o.store.Scan(i, prefix, from)
	if err != nil {
		return err
	}
	over := tx.over[i]
	merge(it, over.sorted.from(max(string(prefix), string(from))), string(prefix), func(key string) ([]byte, bool) {
		w := over.data[key]
		return w.value, !w.deleted
	}, fn)
	return it.Close()
}

// ScanIndex calls fn for the index keys with the prefix, not below from, in order, until fn returns false. Puts of the
// open transaction are seen; keys left behind by older puts are too.
func (tx *Tx) ScanIndex(store string, prefix, from []byte, fn func(indexKey []byte) bool) error {
	i, ok := tx.store(store)
	if !ok {
		return tx.err
	}
	it, err := tx.o.store.ScanIndex(i, prefix, from)
	if err != nil {
		return err
	}
	over := tx.over[i]
	merge(it, over.isorted.from(max(string(prefix), string(from))), string(prefix), func(key string) ([]byte, bool) {
		return nil, over.index[key]
	}, func(key, _ []byte) bool { return fn(key) })
	return it.Close()
}

// DropIndex removes a left-behind index key from the local store. It is not sent to Kafka: after a restore the key is
// there again and must be dropped again. By itself it makes no transaction: it goes with the next one.
func (tx *Tx) DropIndex(store string, indexKey []byte) {
	if i, ok := tx.store(store); ok {
		tx.over[i].setIndex(string(indexKey), false)
	}
}

// ForgetBelow removes all records whose key is below this one from the local store, index keys aside. It is not sent to
// Kafka: it is for stores whose topic drops records by age. After a restore they may be there again, and must be forgotten
// again. Like DropIndex it makes no transaction by itself; what the open one has written stays.
func (tx *Tx) ForgetBelow(store string, key []byte) {
	if i, ok := tx.store(store); ok {
		tx.over[i].forgotten = bytes.Clone(key)
	}
}

// Emit produces a record in the transaction. Topic is without prefix; routingKey decides the partition. The record is
// the runtime's from now on.
func (tx *Tx) Emit(topic, routingKey string, r *kgo.Record) {
	size := recordBytes(r)
	if size > MaxOutput {
		tx.fail(fmt.Errorf("record of %d bytes for topic %s exceeds %d: %w", size, topic, MaxOutput, errTooLarge))
		return
	}
	tx.bytes += size
	tx.emits = append(tx.emits, emit{topic, routingKey, kafka.PartitionOf(routingKey, tx.o.partitions), r})
}

var errTooLarge = errors.New("output too large; check stream.Fits and dead-letter its cause")

// Now is the time the runtime gave this batch. Tasks have no other clock.
func (tx *Tx) Now() time.Time { return tx.now }

// Track splits the record being processed into units that end later, by Tx.Finish. It is called at most once a
// record, from Process, in a group with a Window; units are between 1 and MaxUnits, and always the same number for the
// same record, whoever processes it: bits in the committed metadata are found again by counting.
//
// A record given again after an abort gets the Pending it had: what its task has in flight for it goes on.
//
// A record that is not tracked counts no unit. When an earlier record is unfinished, a new owner is given it again; if
// its effect must not be repeated, track it as one unit, look at Done, and Finish it in the same call.
func (tx *Tx) Track(units int) *Pending {
	if tx.tracked == nil {
		p, err := tx.o.track.track(units)
		if err != nil {
			tx.fail(err)
		}
		tx.tracked = p
	} else {
		tx.fail(errors.New("Track called twice for a record"))
	}
	return tx.tracked
}

// Finish ends a unit with this transaction. A unit that is done already stays done.
func (tx *Tx) Finish(p *Pending, unit int) {
	if p.set(unit) {
		tx.finished = append(tx.finished, finish{p, unit})
	}
}
