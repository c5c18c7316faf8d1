package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/betterdata/webhooks/schemas"
)

const (
	// cacheBytes is a table's share of block cache; what is read often is held by its readers.
	cacheBytes = 8 << 20
	// memTableBytes bounds what a table keeps in memory before it goes to disk (two of them at most).
	memTableBytes = 4 << 20
	// maxAge is half of the time tombstones live. A tombstone outlives the first cleaning that sees it by
	// delete.retention.ms, so a store that was current more recently than that cannot have missed one.
	maxAge = schemas.TombstoneRetention / 2
	// stampEvery is how often the store of an idle topic notes that it is still being kept current.
	stampEvery = time.Minute
)

// Keys of the store: what the copy knows about itself, and the topic's records.
const (
	spaceMeta   = 0x00
	spaceRecord = 0x01
	spaceEnd    = 0x02
)

var (
	keyTopicID = []byte{spaceMeta, 'i'}
	keyStamp   = []byte{spaceMeta, 't'}
)

func keyPosition(partition int32) []byte {
	return binary.BigEndian.AppendUint32([]byte{spaceMeta, 'p'}, uint32(partition))
}

// position is how far a partition was applied: the next offset, and the leader epoch of the last record.
type position struct {
	offset int64
	epoch  int32
}

// store is the local half of a Copy: records, positions, and the identity of the topic they came from.
type store struct {
	log *slog.Logger
	db  *pebble.DB

	stamp time.Time

	// mu guards closed; users counts readers that Close waits for.
	mu     sync.RWMutex
	closed bool
	users  sync.WaitGroup
}

func openStore(stateDir, topic string, log *slog.Logger) (*store, error) {
	dir := filepath.Join(stateDir, "tables", topic)
	db, err := pebble.Open(dir, &pebble.Options{
		CacheSize:          cacheBytes,
		MemTableSize:       memTableBytes,
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             pebbleLog{log},
	})
	if err != nil {
		return nil, fmt.Errorf("open table copy in %s (another process may hold it; the folder may be deleted): %w", dir, err)
	}
	return &store{log: log, db: db}, nil
}

// resume returns the positions to read on from. A store that cannot be continued is emptied first.
func (s *store) resume(at *place, now time.Time) ([]position, error) {
	positions, why, err := s.positions(at, now)
	if err != nil {
		return nil, err
	}
	if why == "" {
		return positions, nil
	}
	s.log.Info("table copy starts empty", "reason", why)
	b := s.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange([]byte{spaceMeta}, []byte{spaceEnd}, nil); err != nil {
		return nil, fmt.Errorf("empty table copy: %w", err)
	}
	if err := errors.Join(b.Set(keyTopicID, at.id[:], nil), b.Set(keyStamp, encodeStamp(now), nil)); err != nil {
		return nil, fmt.Errorf("empty table copy: %w", err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return nil, fmt.Errorf("empty table copy: %w", err)
	}
	positions = make([]position, len(at.starts))
	for p, start := range at.starts {
		positions[p] = position{offset: start, epoch: -1}
	}
	return positions, nil
}

// positions reads where the store stands, or says why it cannot be continued.
func (s *store) positions(at *place, now time.Time) (positions []position, why string, err error) {
	id, ok, err := s.read(keyTopicID)
	if err != nil || !ok {
		return nil, "no earlier copy", err
	}
	if string(id) != string(at.id[:]) {
		return nil, "it is of another topic", nil
	}
	stamp, ok, err := s.read(keyStamp)
	if err != nil {
		return nil, "", err
	}
	if !ok || now.Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(stamp)))) > maxAge {
		return nil, "it is too old", nil
	}
	positions = make([]position, len(at.starts))
	for p := range positions {
		raw, ok, err := s.read(keyPosition(int32(p)))
		if err != nil {
			return nil, "", err
		}
		if !ok {
			positions[p] = position{offset: at.starts[p], epoch: -1}
			continue
		}
		pos := position{
			offset: int64(binary.BigEndian.Uint64(raw)),
			epoch:  int32(binary.BigEndian.Uint32(raw[8:])),
		}
		if pos.offset < at.starts[p] || pos.offset > at.ends[p] {
			return nil, "its offset is outside the log", nil
		}
		positions[p] = pos
	}
	return positions, "", nil
}

// disown makes the next start find no copy.
func (s *store) disown() error {
	if err := s.db.Delete(keyTopicID, pebble.NoSync); err != nil {
		return fmt.Errorf("give up table copy: %w", err)
	}
	return nil
}

// needsStamp reports that the store should note that it was current at fresh.
func (s *store) needsStamp(fresh time.Time) bool { return fresh.Sub(s.stamp) >= stampEvery }

func encodeStamp(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli()))
}

// get returns a copy of the value of a record.
func (s *store) get(key []byte) ([]byte, bool, error) {
	return s.read(append(append(make([]byte, 0, len(key)+1), spaceRecord), key...))
}

func (s *store) read(key []byte) ([]byte, bool, error) {
	if !s.enter() {
		return nil, false, ErrClosed
	}
	defer s.users.Done()
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read table copy: %w", err)
	}
	out := append(make([]byte, 0, len(value)), value...)
	return out, true, closer.Close()
}

func (s *store) scan(prefix []byte, fn func(key, value []byte) bool) (err error) {
	if !s.enter() {
		return ErrClosed
	}
	defer s.users.Done()
	lower := append([]byte{spaceRecord}, prefix...)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: after(lower)})
	if err != nil {
		return fmt.Errorf("scan table copy: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if !fn(it.Key()[1:], it.Value()) {
			return nil
		}
	}
	return nil
}

// after is the smallest key that is greater than every key with the prefix, which is never all 0xff.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; ; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
}

// enter registers a reader; false when the store is closed.
func (s *store) enter() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	s.users.Add(1)
	return true
}

func (s *store) close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	s.mu.Unlock()
	if already {
		return nil
	}
	s.users.Wait()
	return s.db.Close()
}

// storeBatch collects what one poll changes.
type storeBatch struct {
	s   *store
	b   *pebble.Batch
	key []byte
	err error
}

func (s *store) begin() *storeBatch { return &storeBatch{s: s, b: s.db.NewBatch()} }

// set writes a record; value nil deletes.
func (b *storeBatch) set(key, value []byte) {
	b.key = append(append(b.key[:0], spaceRecord), key...)
	var err error
	if value == nil {
		err = b.b.Delete(b.key, nil)
	} else {
		err = b.b.Set(b.key, value, nil)
	}
	b.err = errors.Join(b.err, err)
}

// commit writes the batch with the positions after it, and when the store was last known to be current (zero: as
// before). It need not be synced: data and positions are one batch, and a store that lost its tail reads it again.
func (b *storeBatch) commit(moved map[int32]position, fresh time.Time) error {
	for p, pos := range moved {
		raw := binary.BigEndian.AppendUint64(nil, uint64(pos.offset))
		raw = binary.BigEndian.AppendUint32(raw, uint32(pos.epoch))
		b.err = errors.Join(b.err, b.b.Set(keyPosition(p), raw, nil))
	}
	if !fresh.IsZero() {
		b.err = errors.Join(b.err, b.b.Set(keyStamp, encodeStamp(fresh), nil))
		b.s.stamp = fresh
	}
	if b.err == nil {
		b.err = b.b.Commit(pebble.NoSync)
	}
	if b.err != nil {
		return fmt.Errorf("write table copy: %w", b.err)
	}
	return nil
}

func (b *storeBatch) discard() { b.b.Close() }

// pebbleLog passes on what the store itself reports.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("local store", "error", fmt.Sprintf(format, args...))
}

// Fatalf is called when the disk cannot be trusted any more; the store must not go on.
func (l pebbleLog) Fatalf(format string, args ...any) {
	panic("local store: " + fmt.Sprintf(format, args...))
}
