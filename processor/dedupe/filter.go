package dedupe

import (
	"encoding/binary"
	"math/bits"
)

// filter is a set of keys that may be wrong in one way: it may hold a key that was never added, for about one key in
// fifty. It is a split block Bloom filter (as Apache Parquet specifies it): all bits of a key lie in one block of 32
// bytes, so that a look-up touches one cache line. It grows by layers, each twice as large as the one before, which are
// all asked; it has 13 bits a key when its last layer is full, and twice that when it has just been made.
type filter struct {
	layers []layer
}

type layer struct {
	blocks []block
	room   int // for keys
}

type block [8]uint32

const (
	// keysPerBlock makes 12.8 bits a key.
	keysPerBlock = 20
	firstBlocks  = 64
)

// salts spread a hash over the words of a block; odd numbers of Parquet's specification.
var salts = [8]uint32{0x47b6137b, 0x44974d91, 0x8824ad5b, 0xa2b7289d, 0x705495c7, 0x2df1424b, 0x9efc4947, 0x5c6bfb31}

// add puts a key in.
func (f *filter) add(k Key) {
	if n := len(f.layers); n == 0 || f.layers[n-1].room == 0 {
		blocks := firstBlocks
		if n > 0 {
			blocks = 2 * len(f.layers[n-1].blocks)
		}
		f.layers = append(f.layers, layer{make([]block, blocks), blocks * keysPerBlock})
	}
	last := &f.layers[len(f.layers)-1]
	last.room--
	place, word := split(k)
	b := &last.blocks[reduce(place, len(last.blocks))]
	for i := range b {
		b[i] |= bit(word, i)
	}
}

// has reports whether a key may have been added.
func (f *filter) has(k Key) bool {
	place, word := split(k)
	for i := len(f.layers) - 1; i >= 0; i-- {
		if f.layers[i].has(place, word) {
			return true
		}
	}
	return false
}

func (l *layer) has(place uint64, word uint32) bool {
	b := &l.blocks[reduce(place, len(l.blocks))]
	for i := range b {
		if b[i]&bit(word, i) == 0 {
			return false
		}
	}
	return true
}

// split takes the event's part of a key, which is a hash, for two: of the block and of the bits in it. The account's part
// would put all events of an account into one block.
func split(k Key) (place uint64, word uint32) {
	return binary.LittleEndian.Uint64(k[accountBytes+2:]), binary.LittleEndian.Uint32(k[accountBytes:])
}

func bit(word uint32, i int) uint32 { return 1 << (word * salts[i] >> 27) }

// reduce maps a hash to [0, n) by multiplication.
func reduce(hash uint64, n int) uint64 {
	high, _ := bits.Mul64(hash, uint64(n))
	return high
}
