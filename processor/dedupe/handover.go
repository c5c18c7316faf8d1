package dedupe

import (
	"encoding/binary"
	"fmt"

	"github.com/betterdata/webhooks/internal/stream"
)

// When an account is moved to an organization of another partition, what is known of its events has to go along: the source
// sends them again, and then they come there. An event is handed over as its part of the key and the record's value.
const handedBytes = eventBytes + valueBytes

// HandOver gives what is known of an account's events, in pieces of at most limit bytes. It is not forgotten here: the
// account may come back, and another organization of the partition may have events of it.
func (m *Memory) HandOver(tx *stream.Tx, a Account, limit int, give func(events []byte)) error {
	today := DayOf(tx.Now())
	var piece []byte
	newest := segmentOf(DayOf(tx.Now().Add(furthest)))
	for at := segmentOf(today); at <= newest; at++ {
		prefix := append(binary.BigEndian.AppendUint16(nil, at), a[:]...)
		err := tx.Scan(m.cfg.Store, prefix, nil, func(key, value []byte) bool {
			last, known := decodeValue(value)
			if _, k, ok := decodeKey(key); ok && known != New && last >= today {
				if len(piece)+handedBytes > limit {
					give(piece)
					piece = nil
				}
				piece = append(append(piece, k[accountBytes:]...), value...)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("look for an account's events in %s: %w", m.cfg.Store, err)
		}
	}
	if len(piece) > 0 {
		give(piece)
	}
	return nil
}

// TakeOver remembers what was handed over, until the same day. What is known here too stays as it is, but for a dead event that
// was done elsewhere. ok is false, and nothing is remembered, when events is no piece that HandOver gives.
func (m *Memory) TakeOver(tx *stream.Tx, a Account, events []byte) (ok bool, err error) {
	if len(events)%handedBytes != 0 {
		return false, nil
	}
	today := DayOf(tx.Now())
	for ; len(events) > 0; events = events[handedBytes:] {
		var k Key
		copy(k[copy(k[:], a[:]):], events)
		last, known := decodeValue(events[eventBytes:handedBytes])
		if last < today {
			continue
		}
		have, err := m.Recall(tx, k)
		if err != nil {
			return false, err
		}
		if have == New || have == Dead && known == Done {
			m.remember(tx, k, known, last)
		}
	}
	return true, nil
}
