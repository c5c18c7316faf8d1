package inbound

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
)

// The store `inbound-seen` remembers which events took effect.
//
//	key    16 bytes, a hash of organization and our event id (itself a hash of source and the source's id)
//	value  2 bytes, the day (since the epoch, UTC) after which it may be forgotten
//	index  day ‖ key
//
// One look-up by hash answers whether an event was seen; a key that began with the day would need one for each of up to
// 32 days. The index lists whole days at their front, so that a day is found, and dropped, without reading what stays.
// The organization is part of the hash because an organization's events are all this task sees: without it, an id that
// reached two organizations would count once or twice depending on their partitions.
const (
	seenKeyBytes = 16
	dayBytes     = 2
)

type seenKey [seenKeyBytes]byte

func keyOf(organization, eventID string) seenKey {
	var room [160]byte
	input := append(room[:0], organization...)
	input = append(input, 0)
	input = append(input, eventID...)
	sum := sha256.Sum256(input)
	return seenKey(sum[:seenKeyBytes])
}

// expiry is the last day on which an event seen now is remembered.
func expiry(now time.Time, retention time.Duration) uint16 { return dayOf(now.Add(retention)) }

// dayOf counts days since the epoch; the type holds until 2149.
func dayOf(t time.Time) uint16 { return uint16(t.Unix() / (24 * 60 * 60)) }

func indexSeen(key, value []byte, put func(indexKey []byte)) {
	if len(value) == dayBytes {
		put(append(append(make([]byte, 0, dayBytes+seenKeyBytes), value...), key...))
	}
}

// see reports whether an event is new, and remembers it.
func see(tx *stream.Tx, key seenKey, until uint16) (isNew bool, err error) {
	_, seen, err := tx.Get(schemas.InboundSeen, key[:])
	if seen || err != nil {
		return false, err
	}
	tx.Put(schemas.InboundSeen, key[:], binary.BigEndian.AppendUint16(nil, until))
	return true, nil
}

// pruneBatch bounds what one transaction forgets.
const pruneBatch = 1000

// prune forgets events whose last day is before today. done: nothing of that kind is left.
func prune(tx *stream.Tx, today uint16) (done bool, err error) {
	var expired [][]byte
	err = tx.ScanIndex(schemas.InboundSeen, nil, nil, func(indexKey []byte) bool {
		if len(indexKey) <= dayBytes || binary.BigEndian.Uint16(indexKey) >= today {
			return false
		}
		expired = append(expired, append([]byte(nil), indexKey...))
		return len(expired) < pruneBatch
	})
	if err != nil {
		return false, err
	}
	for _, indexKey := range expired {
		day, key := indexKey[:dayBytes], indexKey[dayBytes:]
		value, ok, err := tx.Get(schemas.InboundSeen, key)
		if err != nil {
			return false, err
		}
		if ok && string(value) == string(day) {
			tx.Delete(schemas.InboundSeen, key)
		}
		tx.DropIndex(schemas.InboundSeen, indexKey)
	}
	return len(expired) < pruneBatch, nil
}
