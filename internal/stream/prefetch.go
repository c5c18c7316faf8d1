package stream

import (
	"bytes"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// minPrefetch is from how many records on reading ahead is worth it.
const minPrefetch = 16

// prefetch reads what the next records of a partition will ask of its stores, before the first of them is processed; for
// fewer than least it is not worth it.
func (o *owned) prefetch(records []*kgo.Record, least int) error {
	task, able := o.task.(Prefetcher)
	if !able || len(records) < least {
		return nil
	}
	wanted := make([][][]byte, len(o.spec.Stores))
	for _, r := range records {
		if r.Attrs.IsControl() {
			continue
		}
		task.Prefetch(r, func(store string, key []byte) {
			if i, ok := o.tx.store(store); ok {
				wanted[i] = append(wanted[i], key)
			}
		})
	}
	for i, keys := range wanted {
		if err := o.tx.prefetch(i, keys); err != nil {
			return err
		}
	}
	return nil
}

// prefetch reads keys of a store into the transaction, also that they are not there. It sorts them. What the store holds
// does not change before the transaction ends.
func (tx *Tx) prefetch(store int, keys [][]byte) error {
	over := tx.over[store]
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.DeleteFunc(slices.CompactFunc(keys, bytes.Equal), func(key []byte) bool {
		_, known := over.get(key)
		return known
	})
	if len(keys) == 0 {
		return nil
	}
	for _, key := range keys {
		over.read[string(key)] = write{deleted: true}
	}
	return tx.o.store.GetSorted(store, keys, func(i int, value []byte) {
		start := len(tx.arena)
		tx.arena = append(tx.arena, value...)
		over.read[string(keys[i])] = write{value: tx.arena[start:len(tx.arena):len(tx.arena)]}
	})
}
