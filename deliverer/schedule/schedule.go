// Package schedule is what waits: when a failed delivery is tried again, and the state in which it waits.
//
// A waiting delivery has two records on the topic `retries`, in its endpoint's partition: its payload (p/<delivery>),
// put once, and its state (s/<delivery>), put at each change. Both are tombstoned when it ends. A local index orders what
// waits by endpoint and due time, so that an endpoint's oldest due delivery is found by one seek however many wait; and
// what is in strict order by its group and place, where what has to wait for another (ORDERED) has no due time.
//
// It promises that due times survive restarts, since they are in the state, and that a delivery's bytes on the topic
// do not depend on how many others wait. It must not decide whether a delivery may be sent: that is dispatch's.
package schedule

import (
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Tx is what the schedule needs of a transaction; *stream.Tx is one.
type Tx interface {
	Get(store string, key []byte) (value []byte, ok bool, err error)
	Put(store string, key, value []byte)
	Delete(store string, key []byte)
	Scan(store string, prefix, from []byte, fn func(key, value []byte) bool) error
	ScanIndex(store string, prefix, from []byte, fn func(indexKey []byte) bool) error
	DropIndex(store string, indexKey []byte)
}

// Store is the state store of what waits.
func Store() stream.StoreSpec {
	return stream.StoreSpec{Topic: schemas.Retries, Index: index}
}

// Keys of the store, and of its index.
const (
	payloadPrefix = "p/"
	statePrefix   = "s/"
	commandPrefix = "c/"
	duePrefix     = "d/"
	groupPrefix   = "g/"
)

func payloadKey(delivery string) []byte { return append([]byte(payloadPrefix), delivery...) }
func stateKey(delivery string) []byte   { return append([]byte(statePrefix), delivery...) }

// index derives d/<endpoint>\0<due><order><delivery> from a state, unless it has to wait for another, and
// g/<endpoint>\0<group><order><delivery> if it is in strict order, all integers big-endian. What it cannot read has no
// place in the order, and is reported when the state is read.
func index(key, value []byte, put func(indexKey []byte)) {
	if len(key) < len(statePrefix) || string(key[:len(statePrefix)]) != statePrefix {
		return
	}
	var state webhooksv1.WaitingState
	if proto.Unmarshal(value, &state) == nil {
		eachKey(string(key[len(statePrefix):]), &state, put)
	}
}

// eachKey calls fn for the index keys of a state.
func eachKey(delivery string, s *webhooksv1.WaitingState, fn func(indexKey []byte)) {
	if !behind(s) {
		fn(dueKey(delivery, s))
	}
	if s.OrderGroup != nil {
		fn(groupKey(delivery, s))
	}
}

// behind reports that a delivery has to wait for another, whatever its due time.
func behind(s *webhooksv1.WaitingState) bool {
	return s.GetReason() == webhooksv1.WaitingReason_WAITING_REASON_ORDERED
}

func dueKey(delivery string, s *webhooksv1.WaitingState) []byte {
	key := endpointPrefix(s.GetEndpointId())
	key = binary.BigEndian.AppendUint64(key, orderable(s.GetDueUnixMs()))
	key = binary.BigEndian.AppendUint64(key, orderable(s.GetOrder()))
	return append(key, delivery...)
}

func endpointPrefix(endpoint string) []byte {
	return append(append([]byte(duePrefix), endpoint...), 0)
}

func groupKey(delivery string, s *webhooksv1.WaitingState) []byte {
	return append(orderKey(s.GetEndpointId(), s.GetOrderGroup(), s.GetOrder()), delivery...)
}

func orderPrefix(endpoint string, group uint64) []byte {
	key := append(append([]byte(groupPrefix), endpoint...), 0)
	return binary.BigEndian.AppendUint64(key, group)
}

func orderKey(endpoint string, group uint64, order int64) []byte {
	return binary.BigEndian.AppendUint64(orderPrefix(endpoint, group), orderable(order))
}

// orderable makes a signed number compare as bytes.
func orderable(n int64) uint64     { return uint64(n) ^ 1<<63 }
func fromOrderable(u uint64) int64 { return int64(u ^ 1<<63) }

// Put writes where a delivery stands; before is its former state, or nil when it begins to wait.
func Put(tx Tx, delivery string, state, before *webhooksv1.WaitingState) error {
	value, err := proto.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode waiting state of %s: %w", delivery, err)
	}
	tx.Put(schemas.Retries, stateKey(delivery), value)
	if before != nil && !behind(before) {
		if old := dueKey(delivery, before); behind(state) || string(old) != string(dueKey(delivery, state)) {
			tx.DropIndex(schemas.Retries, old)
		}
	}
	return nil
}

// PutPayload writes what a delivery that begins to wait will send.
func PutPayload(tx Tx, delivery string, payload *webhooksv1.WaitingPayload) error {
	value, err := proto.Marshal(payload)
	if err != nil {
		return fmt.Errorf("encode payload of %s: %w", delivery, err)
	}
	tx.Put(schemas.Retries, payloadKey(delivery), value)
	return nil
}

// Remove ends the waiting of a delivery.
func Remove(tx Tx, delivery string, state *webhooksv1.WaitingState) {
	tx.Delete(schemas.Retries, stateKey(delivery))
	tx.Delete(schemas.Retries, payloadKey(delivery))
	eachKey(delivery, state, func(k []byte) { tx.DropIndex(schemas.Retries, k) })
}

// State reads where a delivery stands; nil when it does not wait.
func State(tx Tx, delivery string) (*webhooksv1.WaitingState, error) {
	value, ok, err := tx.Get(schemas.Retries, stateKey(delivery))
	if err != nil || !ok {
		return nil, err
	}
	state := new(webhooksv1.WaitingState)
	if err := proto.Unmarshal(value, state); err != nil {
		return nil, fmt.Errorf("decode waiting state of %s: %w", delivery, err)
	}
	return state, nil
}

// Payload reads what a waiting delivery sends; nil when there is none.
func Payload(tx Tx, delivery string) (*webhooksv1.WaitingPayload, error) {
	value, ok, err := tx.Get(schemas.Retries, payloadKey(delivery))
	if err != nil || !ok {
		return nil, err
	}
	payload := new(webhooksv1.WaitingPayload)
	if err := proto.Unmarshal(value, payload); err != nil {
		return nil, fmt.Errorf("decode payload of %s: %w", delivery, err)
	}
	return payload, nil
}

// Entry is a place in an endpoint's order of what waits.
type Entry struct {
	Delivery string
	Due      time.Time
	key      []byte
}

// Scan calls fn for what waits for an endpoint, the oldest due first, until fn returns false. Entries may be out of
// date: Current says whether one holds, and what does not must be dropped with Drop.
func Scan(tx Tx, endpoint string, fn func(Entry) bool) error {
	prefix := endpointPrefix(endpoint)
	return tx.ScanIndex(schemas.Retries, prefix, nil, func(key []byte) bool {
		e, ok := parseEntry(key, len(prefix))
		return !ok || fn(e)
	})
}

func parseEntry(key []byte, at int) (Entry, bool) {
	if len(key) < at+16 {
		return Entry{}, false
	}
	due := fromOrderable(binary.BigEndian.Uint64(key[at:]))
	return Entry{
		Delivery: string(key[at+16:]),
		Due:      time.UnixMilli(due),
		key:      append([]byte(nil), key...),
	}, true
}

// Current reports whether the entry is still the place of a delivery in that state.
func (e Entry) Current(state *webhooksv1.WaitingState) bool {
	return state != nil && !behind(state) && string(dueKey(e.Delivery, state)) == string(e.key)
}

// Drop removes an entry that is out of date.
func (e Entry) Drop(tx Tx) { tx.DropIndex(schemas.Retries, e.key) }

// ScanOrder calls fn for what waits in one group of an endpoint's strict order, from a place on, until fn returns false.
// What the state does not stand behind any more is dropped.
func ScanOrder(tx Tx, endpoint string, group uint64, from int64, fn func(delivery string, state *webhooksv1.WaitingState) bool) error {
	prefix := orderPrefix(endpoint, group)
	var old [][]byte
	var failed error
	err := tx.ScanIndex(schemas.Retries, prefix, orderKey(endpoint, group, from), func(key []byte) bool {
		if len(key) < len(prefix)+8 {
			return true
		}
		delivery := string(key[len(prefix)+8:])
		state, err := State(tx, delivery)
		if err != nil {
			failed = err
			return false
		}
		if state == nil || state.OrderGroup == nil || string(groupKey(delivery, state)) != string(key) {
			old = append(old, append([]byte(nil), key...))
			return true
		}
		return fn(delivery, state)
	})
	for _, key := range old {
		tx.DropIndex(schemas.Retries, key)
	}
	if err == nil {
		err = failed
	}
	return err
}

// Heads calls fn for each endpoint that something waits for, with the earliest due time; one seek an endpoint.
func Heads(tx Tx, fn func(endpoint string, due time.Time)) error {
	from := []byte(duePrefix)
	for from != nil {
		var next []byte
		err := tx.ScanIndex(schemas.Retries, []byte(duePrefix), from, func(key []byte) bool {
			for end := len(duePrefix); end < len(key); end++ {
				if key[end] != 0 {
					continue
				}
				if e, ok := parseEntry(key, end+1); ok {
					fn(string(key[len(duePrefix):end]), e.Due)
				}
				next = append(append([]byte(nil), key[:end]...), 1)
				return false
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("find endpoints with waiting deliveries: %w", err)
		}
		from = next
	}
	return nil
}

// ScanStates calls fn for the states of waiting deliveries whose id comes after the given one, in order of id, until fn
// returns false. A state that cannot be read is passed as nil.
func ScanStates(tx Tx, after string, fn func(delivery string, state *webhooksv1.WaitingState) bool) error {
	var from []byte
	if after != "" {
		from = append(stateKey(after), 0)
	}
	return tx.Scan(schemas.Retries, []byte(statePrefix), from, func(key, value []byte) bool {
		state := new(webhooksv1.WaitingState)
		if proto.Unmarshal(value, state) != nil {
			state = nil
		}
		return fn(string(key[len(statePrefix):]), state)
	})
}
