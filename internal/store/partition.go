package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Partition is the state of one partition: its stores, named by their index in Acquire's list. Reads may come from any
// goroutine.
type Partition struct {
	db     *DB
	id     int32
	names  []string
	stores []uint16

	mu         sync.Mutex // held while a batch is applied
	superseded bool
}

// Position is how far a store has followed its changelog.
type Position struct {
	TopicID     [16]byte
	LeaderEpoch int32
	// Offset of the next record to apply.
	Offset int64
	// IndexVersion of the rules that the index keys were derived by.
	IndexVersion uint32
	// AppliedAt is when the store was last known to be at that offset, by the local clock.
	AppliedAt time.Time
}

func (p *Partition) supersede() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.superseded = true
}

// Release gives the partition up without a new holder.
func (p *Partition) Release() {
	p.supersede()
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if p.db.holders[p.id] == p {
		delete(p.db.holders, p.id)
	}
}

func (p *Partition) key(dst []byte, kind byte, store int, key []byte) []byte {
	return append(appendPrefix(dst, kind, p.stores[store], p.id), key...)
}

// AppendGet appends the value of key to dst and returns the longer dst; ok is false when there is none.
func (p *Partition) AppendGet(dst []byte, store int, key []byte) (longer []byte, ok bool, err error) {
	var buf [128]byte
	value, closer, err := p.db.pebble.Get(p.key(buf[:0], kindData, store, key))
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, fmt.Errorf("read store %s/%d: %w", p.names[store], p.id, err)
	}
	dst = append(dst, value...)
	return dst, true, closer.Close()
}

// GetSorted calls fn with the value of each key that is there. Keys must be in ascending order: one iterator then passes
// over each file once, which costs a third of as many single reads. The value holds during the call of fn only.
func (p *Partition) GetSorted(store int, keys [][]byte, fn func(i int, value []byte)) error {
	prefix := p.key(nil, kindData, store, nil)
	it, err := p.db.pebble.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix), UseL6Filters: true})
	if err != nil {
		return fmt.Errorf("read store %s/%d: %w", p.names[store], p.id, err)
	}
	var buf [128]byte
	for i, key := range keys {
		if it.SeekPrefixGE(p.key(buf[:0], kindData, store, key)) {
			fn(i, it.Value())
		} else if it.Error() != nil {
			break // the next seek would clear it, and the key would be taken for one that is not there
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return fmt.Errorf("read store %s/%d: %w", p.names[store], p.id, err)
	}
	return nil
}

// Position returns where a store stands; ok is false for one never written or wiped.
func (p *Partition) Position(store int) (pos Position, ok bool, err error) {
	value, closer, err := p.db.pebble.Get(p.key(nil, kindPosition, store, nil))
	if errors.Is(err, pebble.ErrNotFound) {
		return pos, false, nil
	}
	if err != nil {
		return pos, false, fmt.Errorf("read position of store %s/%d: %w", p.names[store], p.id, err)
	}
	pos, ok = decodePosition(value)
	return pos, ok, closer.Close()
}

const positionLen = 16 + 4 + 8 + 8 + 4

func (pos Position) encode() []byte {
	b := append(make([]byte, 0, positionLen), pos.TopicID[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(pos.LeaderEpoch))
	b = binary.BigEndian.AppendUint64(b, uint64(pos.Offset))
	b = binary.BigEndian.AppendUint64(b, uint64(pos.AppliedAt.UnixMilli()))
	return binary.BigEndian.AppendUint32(b, pos.IndexVersion)
}

// decodePosition takes anything it does not know as no position: the store is then built anew.
func decodePosition(b []byte) (pos Position, ok bool) {
	if len(b) != positionLen {
		return pos, false
	}
	copy(pos.TopicID[:], b)
	pos.LeaderEpoch = int32(binary.BigEndian.Uint32(b[16:]))
	pos.Offset = int64(binary.BigEndian.Uint64(b[20:]))
	pos.AppliedAt = time.UnixMilli(int64(binary.BigEndian.Uint64(b[28:])))
	pos.IndexVersion = binary.BigEndian.Uint32(b[36:])
	return pos, true
}

// Scan iterates over a store's records, ScanIndex over its index keys, that start with prefix and are not below from,
// in order, as of now.
func (p *Partition) Scan(store int, prefix, from []byte) (*Iter, error) {
	return p.iter(kindData, store, prefix, from)
}

// ScanIndex is Scan over the index keys.
func (p *Partition) ScanIndex(store int, prefix, from []byte) (*Iter, error) {
	return p.iter(kindIndex, store, prefix, from)
}

func (p *Partition) iter(kind byte, store int, prefix, from []byte) (*Iter, error) {
	lower := prefix
	if string(from) > string(prefix) {
		lower = from
	}
	it, err := p.db.pebble.NewIter(&pebble.IterOptions{
		LowerBound: p.key(nil, kind, store, lower),
		UpperBound: after(p.key(nil, kind, store, prefix)),
	})
	if err != nil {
		return nil, fmt.Errorf("scan store %s/%d: %w", p.names[store], p.id, err)
	}
	it.First()
	return &Iter{it: it}, nil
}

// after is the smallest key above all that start with prefix. The kind byte is never 0xff, so there always is one.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// Iter stands on a record while Valid. Key and Value hold until Next or Close.
type Iter struct{ it *pebble.Iterator }

// Valid reports whether the iterator stands on a record.
func (i *Iter) Valid() bool { return i.it.Valid() }

// Key of the record.
func (i *Iter) Key() []byte { return i.it.Key()[prefixLen:] }

// Value of the record.
func (i *Iter) Value() []byte { return i.it.Value() }

// Next goes on.
func (i *Iter) Next() { i.it.Next() }

// Close ends the scan; its error is that of the whole scan.
func (i *Iter) Close() error { return errors.Join(i.it.Error(), i.it.Close()) }

// Batch is a set of changes to one partition.
type Batch struct {
	p *Partition
	b *pebble.Batch
}

// Batch makes an empty one. It must be committed or closed.
func (p *Partition) Batch() *Batch { return &Batch{p: p, b: p.db.pebble.NewBatch()} }

func (b *Batch) set(kind byte, store int, key, value []byte) {
	op := b.b.SetDeferred(prefixLen+len(key), len(value))
	copy(op.Key, appendPrefix(op.Key[:0], kind, b.p.stores[store], b.p.id))
	copy(op.Key[prefixLen:], key)
	copy(op.Value, value)
	_ = op.Finish() // fails on indexed batches only
}

// Put writes a record.
func (b *Batch) Put(store int, key, value []byte) { b.set(kindData, store, key, value) }

// PutIndex writes an index key.
func (b *Batch) PutIndex(store int, key []byte) { b.set(kindIndex, store, key, nil) }

// Position writes where the store will stand.
func (b *Batch) Position(store int, pos Position) { b.set(kindPosition, store, nil, pos.encode()) }

// Delete removes a record.
func (b *Batch) Delete(store int, key []byte) {
	_ = b.b.Delete(b.p.key(nil, kindData, store, key), nil) // an unindexed batch in memory cannot fail
}

// DeleteIndex removes an index key.
func (b *Batch) DeleteIndex(store int, key []byte) {
	_ = b.b.Delete(b.p.key(nil, kindIndex, store, key), nil)
}

// DeleteBelow removes the records of a store whose key is below this one.
func (b *Batch) DeleteBelow(store int, key []byte) {
	_ = b.b.DeleteRange(b.p.key(nil, kindData, store, nil), b.p.key(nil, kindData, store, key), nil)
}

// Wipe removes everything of a store, its position too.
func (b *Batch) Wipe(store int) {
	for _, kind := range []byte{kindData, kindIndex, kindPosition} {
		prefix := b.p.key(nil, kind, store, nil)
		_ = b.b.DeleteRange(prefix, after(prefix), nil)
	}
}

// Commit applies the batch, all or nothing, without waiting for the disk.
func (b *Batch) Commit() error {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if b.p.superseded {
		return errors.Join(ErrSuperseded, b.b.Close())
	}
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("write state of partition %d: %w", b.p.id, err)
	}
	return b.b.Close()
}

// Close drops the batch.
func (b *Batch) Close() error { return b.b.Close() }
