// Package dedupe remembers which events took effect: a source sends an event again and again until it hears of a 2xx, and
// by hand for weeks.
//
// A Memory is one partition's, over a store of the partition's task: one small record an event, kept until the day after
// which it may be forgotten. Records lie in segments of sixteen days of expiry, and a segment is dropped whole once its
// last day is over; nothing is ever searched for what has expired. The store's topic drops its records by age too, so
// nobody deletes them there one by one. Within a segment an account's events lie together, to be handed over with it.
//
// Most events are new, and looking for what is not there in a store of a hundred million keys is what would cost. So
// each segment has a filter in memory, two to three bytes a key, that says "surely new" in one look. It holds what this owner has
// added from the start, and what was there before once a goroutine beside has read that, some seconds for the largest
// stores; until then the store is asked. The answers are exact with and without it.
package dedupe

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
)

// Key says which event it is: what all events of its account have in common, and a hash of the event's id.
type Key [accountBytes + eventBytes]byte

const (
	accountBytes = 6
	eventBytes   = 10
)

// Account is what the keys of an account's events begin with, so that they can be found: a hash, which another account may
// share.
type Account [accountBytes]byte

// AccountOf is that of a source's account. It is FNV-1a, folded: it is asked for with every event.
func AccountOf(source, account string) Account {
	h := uint64(14695981039346656037)
	add := func(text string) {
		for i := range len(text) {
			h = (h ^ uint64(text[i])) * 1099511628211
		}
	}
	add(source)
	add("/")
	add(account)
	var room [8]byte
	binary.BigEndian.PutUint64(room[:], h^h<<48)
	return Account(room[:accountBytes])
}

// KeyOf is the key of an event of a source's account, "" where it has none. eventID is ours, itself a hash of the source
// and of what makes an event the same there. The organization is not part of it: an account may be moved to another one, and
// its events remain the same.
func KeyOf(source, account, eventID string) Key {
	var room [64]byte
	sum := sha256.Sum256(append(room[:0], eventID...))
	k, of := Key{}, AccountOf(source, account)
	copy(k[:], of[:])
	copy(k[accountBytes:], sum[:])
	return k
}

// Known is what is remembered of an event.
type Known byte

const (
	// New is an event of which nothing is known, or not any more.
	New Known = iota
	// Done is one that was dealt with.
	Done
	// Dead is one that could not be used. It may be used yet, when it comes again after a fix.
	Dead
)

// Day counts days since the epoch, UTC; the type holds until 2149.
type Day uint16

// DayOf is the day of a time.
func DayOf(t time.Time) Day { return Day(t.Unix() / (24 * 60 * 60)) }

// segmentDays is how many days of expiry lie in one segment: an event is kept that much longer at most, and looked for in
// one segment more for each that a retention reaches over.
const segmentDays = 16

func segmentOf(d Day) uint16 { return uint16(d) / segmentDays }

// furthest is how far ahead of now an event's last day may be. It is the limit, not what is configured: the retention may
// have been longer when an event was remembered. The day is for an earlier owner's clock that was ahead of this one's.
const furthest = schemas.MaxDedupeRetention + 24*time.Hour

// Config of the memories of a process.
type Config struct {
	// Store is the topic of the store in the task's Spec.
	Store string
	// Reading bounds how many partitions read at once what was there before; it is shared by all of a process.
	Reading chan struct{}
	Log     *slog.Logger
}

// Memory is a partition's. Its methods are called from the task's calls.
type Memory struct {
	cfg      Config
	segments map[uint16]*segment
	// read is closed when before is complete; whole says that this was noticed.
	read   chan struct{}
	before map[uint16]*filter
	whole  bool
	cancel context.CancelFunc
}

// segment has the filters of one: what this owner added, and what was there before, nil until that is read.
type segment struct {
	added  filter
	before *filter
}

// Open makes the memory of a partition whose state is restored.
func Open(p *stream.Partition, cfg Config) *Memory {
	ctx, cancel := context.WithCancel(p.Context())
	m := &Memory{cfg: cfg, segments: map[uint16]*segment{}, read: make(chan struct{}), before: map[uint16]*filter{}, cancel: cancel}
	go m.readBefore(ctx, p)
	return m
}

// Close stops reading and waits for it.
func (m *Memory) Close() {
	m.cancel()
	<-m.read
}

// readBefore fills the filters of what is in the store now. What comes later is added by who puts it there. When it cannot
// be read, the filters stay as they are and the store is asked.
func (m *Memory) readBefore(ctx context.Context, p *stream.Partition) {
	defer close(m.read)
	select {
	case m.cfg.Reading <- struct{}{}:
		defer func() { <-m.cfg.Reading }()
	case <-ctx.Done():
		m.before = nil
		return
	}
	n := 0
	err := p.ReadScan(m.cfg.Store, nil, nil, func(key, _ []byte) bool {
		if at, k, ok := decodeKey(key); ok {
			f := m.before[at]
			if f == nil {
				f = &filter{}
				m.before[at] = f
			}
			f.add(k)
		}
		n++
		return n%4096 != 0 || ctx.Err() == nil
	})
	if err != nil {
		m.cfg.Log.Error("the dedupe filter could not be read; the store is asked for every event", "partition", p.ID(), "error", err)
	}
	if err != nil || ctx.Err() != nil {
		m.before = nil
	}
}

// takeBefore takes over what was read, once it is complete.
func (m *Memory) takeBefore() {
	select {
	case <-m.read:
	default:
		return
	}
	if m.before == nil {
		return
	}
	for at, f := range m.before {
		m.segment(at).before = f
	}
	m.before, m.whole = map[uint16]*filter{}, true
}

func (m *Memory) segment(at uint16) *segment {
	s := m.segments[at]
	if s == nil {
		s = &segment{}
		m.segments[at] = s
	}
	return s
}

// Recall says what is known of an event. One that is known in two segments was dead and is done.
func (m *Memory) Recall(tx *stream.Tx, k Key) (known Known, err error) {
	if !m.whole {
		m.takeBefore()
	}
	today := DayOf(tx.Now())
	newest, oldest := segmentOf(DayOf(tx.Now().Add(furthest))), segmentOf(today)
	for i := range newest - oldest + 1 {
		at := newest - i
		if m.surelyNew(at, k) {
			continue
		}
		value, ok, err := tx.Get(m.cfg.Store, encodeKey(at, k))
		if err != nil {
			return New, fmt.Errorf("look for an event in %s: %w", m.cfg.Store, err)
		}
		if !ok {
			continue
		}
		switch last, is := decodeValue(value); {
		case last < today:
		case is == Done:
			return Done, nil
		default:
			known = is
		}
	}
	return known, nil
}

// surelyNew reports that a key is not in a segment.
func (m *Memory) surelyNew(at uint16, k Key) bool {
	s := m.segments[at]
	switch {
	case s == nil:
		return m.whole
	case s.added.has(k):
		return false
	case s.before == nil:
		return m.whole
	}
	return !s.before.has(k)
}

// Remember keeps an event until the given time, by whole days, rounded up. A dead one may be done later, never the other
// way round.
func (m *Memory) Remember(tx *stream.Tx, k Key, known Known, until time.Time) {
	m.remember(tx, k, known, DayOf(until))
}

func (m *Memory) remember(tx *stream.Tx, k Key, known Known, last Day) {
	m.segment(segmentOf(last)).added.add(k)
	key, value := encode(k, known, last)
	tx.Put(m.cfg.Store, key, value)
}

// Forget drops the segments that are over.
func (m *Memory) Forget(tx *stream.Tx) {
	today := segmentOf(DayOf(tx.Now()))
	tx.ForgetBelow(m.cfg.Store, binary.BigEndian.AppendUint16(nil, today))
	for at := range m.segments {
		if at < today {
			delete(m.segments, at)
		}
	}
}

// Record is what the store keeps of an event that Remember is told.
func Record(k Key, known Known, until time.Time) (key, value []byte) {
	return encode(k, known, DayOf(until))
}

func encode(k Key, known Known, last Day) (key, value []byte) {
	return encodeKey(segmentOf(last), k), encodeValue(last, known)
}

// A record's key is the segment, 2 bytes, and the event's key; its value the last day, 2 bytes, and what is known.
const (
	keyBytes   = 2 + len(Key{})
	valueBytes = 3
)

func encodeKey(at uint16, k Key) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, keyBytes), at), k[:]...)
}

func decodeKey(b []byte) (at uint16, k Key, ok bool) {
	if len(b) != keyBytes {
		return 0, k, false
	}
	return binary.BigEndian.Uint16(b), Key(b[2:]), true
}

func encodeValue(last Day, known Known) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, valueBytes), uint16(last)), byte(known))
}

func decodeValue(b []byte) (last Day, known Known) {
	if len(b) != valueBytes {
		return 0, New
	}
	return Day(binary.BigEndian.Uint16(b)), Known(b[2])
}
