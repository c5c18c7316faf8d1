package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"iter"
	"slices"
	"sync"
)

// run is records in memory: in the order they came and, sorted, the newest of each key in key order. It has few pointers,
// however many records there are.
type run struct {
	// blocks hold, of each record, key length, value length + 1 (0 is a deletion), key and value. A record that is larger
	// than a block has one of its own.
	blocks [][]byte
	order  []place
	bytes  int
}

// place is where a record begins: a block, and blockBits of where in it. Most keys differ in their first bytes: sorting
// then looks nowhere else.
type place struct {
	first uint64
	at    uint32
}

const (
	placeBytes = 16
	blockBits  = 20
	blockBytes = 1 << blockBits
)

var (
	runs   = sync.Pool{New: func() any { return new(run) }}
	blocks = sync.Pool{New: func() any { return new([blockBytes]byte) }}
)

func newRun() *run { return runs.Get().(*run) }

// free gives the memory back; the run must not be used any more.
func (r *run) free() {
	for _, b := range r.blocks {
		if cap(b) == blockBytes {
			blocks.Put((*[blockBytes]byte)(b[:blockBytes]))
		}
	}
	clear(r.blocks)
	r.blocks, r.order, r.bytes = r.blocks[:0], r.order[:0], 0
	runs.Put(r)
}

func (r *run) add(key, value []byte, deleted bool) {
	length := uint64(len(value)) + 1
	if deleted {
		length = 0
	}
	need := len(key) + len(value) + 2*binary.MaxVarintLen32
	if need > blockBytes {
		r.blocks = append(r.blocks, make([]byte, 0, need))
	} else if len(r.blocks) == 0 || len(r.blocks[len(r.blocks)-1])+need > blockBytes {
		r.blocks = append(r.blocks, blocks.Get().(*[blockBytes]byte)[:0])
	}
	last := len(r.blocks) - 1
	b := r.blocks[last]
	var first [8]byte
	copy(first[:], key)
	r.order = append(r.order, place{binary.BigEndian.Uint64(first[:]), uint32(last<<blockBits | len(b))})
	before := len(b)
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = binary.AppendUvarint(b, length)
	b = append(append(b, key...), value...)
	r.blocks[last] = b
	r.bytes += len(b) - before + placeBytes
}

func (r *run) record(p place) (key, value []byte, deleted bool) {
	b := r.blocks[p.at>>blockBits][p.at&(blockBytes-1):]
	keyLen, n := binary.Uvarint(b)
	length, m := binary.Uvarint(b[n:])
	b = b[n+m:]
	if length == 0 {
		return b[:keyLen], nil, true
	}
	return b[:keyLen], b[keyLen:][:length-1], false
}

func (r *run) key(p place) []byte {
	key, _, _ := r.record(p)
	return key
}

func (r *run) sort() {
	slices.SortFunc(r.order, func(a, b place) int {
		if a.first != b.first {
			return cmp.Compare(a.first, b.first)
		}
		return cmp.Or(bytes.Compare(r.key(a), r.key(b)), cmp.Compare(a.at, b.at))
	})
}

// newest iterates over the newest record of each key of a sorted run.
func (r *run) newest() iter.Seq[place] {
	return func(yield func(place) bool) {
		for i, p := range r.order {
			if i+1 < len(r.order) && p.first == r.order[i+1].first && bytes.Equal(r.key(p), r.key(r.order[i+1])) {
				continue
			}
			if !yield(p) {
				return
			}
		}
	}
}
