package stream

import (
	"slices"
	"sort"

	"github.com/betterdata/webhooks/internal/store"
)

// overlay is what an open transaction has written to one store and not committed. A key written many times is kept,
// and later produced, once: with its last value.
type overlay struct {
	data    map[string]write
	order   []string // keys, in order of first write
	index   map[string]bool
	sorted  sortedKeys // of data
	isorted sortedKeys // of index
	// read is what was read ahead of the store beneath; deleted means that there is none.
	read map[string]write
	// forgotten, when set, is the key below which everything leaves the local store before data comes into it.
	forgotten []byte
}

type write struct {
	value   []byte
	deleted bool
}

func newOverlay() *overlay {
	return &overlay{data: map[string]write{}, index: map[string]bool{}, read: map[string]write{}}
}

func (o *overlay) reset() {
	clear(o.data)
	clear(o.index)
	clear(o.read)
	o.order, o.forgotten = o.order[:0], nil
	o.sorted.reset()
	o.isorted.reset()
}

// get returns what is known of a key without asking the store beneath.
func (o *overlay) get(key []byte) (w write, known bool) {
	if w, known = o.data[string(key)]; !known {
		w, known = o.read[string(key)]
	}
	return w, known
}

// set returns by how many bytes the overlay grew; it may be negative.
func (o *overlay) set(key string, w write) int {
	old, had := o.data[key]
	if !had {
		o.order = append(o.order, key)
		o.sorted.add(key)
		o.data[key] = w
		return len(key) + len(w.value)
	}
	o.data[key] = w
	return len(w.value) - len(old.value)
}

func (o *overlay) setIndex(key string, present bool) {
	if _, had := o.index[key]; !had {
		o.isorted.add(key)
	}
	o.index[key] = present
}

// sortedKeys is sorted when somebody looks, not when keys come: most transactions never scan.
type sortedKeys struct {
	keys  []string
	dirty bool
}

func (s *sortedKeys) reset()         { s.keys, s.dirty = s.keys[:0], false }
func (s *sortedKeys) add(key string) { s.keys, s.dirty = append(s.keys, key), true }
func (s *sortedKeys) from(lower string) []string {
	if s.dirty {
		slices.Sort(s.keys)
		s.dirty = false
	}
	return s.keys[sort.SearchStrings(s.keys, lower):]
}

// merge walks over what is committed and what is written on top of it, in key order, each key once: the overlay's word
// counts. over tells what the overlay holds for a key: the value, and whether the key is there at all. The committed
// side is a snapshot; keys written while the walk goes on may or may not be met.
func merge(base *store.Iter, keys []string, prefix string, over func(key string) (value []byte, present bool),
	fn func(key, value []byte) bool,
) {
	for {
		fromOver := len(keys) > 0 && len(keys[0]) >= len(prefix) && keys[0][:len(prefix)] == prefix
		if !fromOver && !base.Valid() {
			return
		}
		if fromOver && (!base.Valid() || keys[0] <= string(base.Key())) {
			key := keys[0]
			keys = keys[1:]
			if base.Valid() && key == string(base.Key()) {
				base.Next()
			}
			if value, present := over(key); present && !fn([]byte(key), value) {
				return
			}
			continue
		}
		if !fn(base.Key(), base.Value()) {
			return
		}
		base.Next()
	}
}
