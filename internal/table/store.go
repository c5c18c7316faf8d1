package table

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/betterdata/webhooks/internal/store"
)

const (
	// cacheBytes is a table's share of block cache; what is read often is held by its readers.
	cacheBytes = 8 << 20
	// memTableBytes bounds what a table keeps in memory before it goes to disk.
	memTableBytes = 4 << 20
	// lockWait is how long a predecessor may take to let go of the folder.
	lockWait = 10 * time.Second
	// stampEvery is how often the store of an idle topic notes that it is still being kept current.
	stampEvery = time.Minute
)

// records is the index of the store that holds the topic's records, of all partitions in one key order, as reads want
// them. The stores after it have no records: each keeps the position of one partition of the topic.
const records = 0

// position is how far a partition was applied: the next offset, and the leader epoch of the last record.
type position struct {
	offset int64
	epoch  int32
}

// local is the local half of a Copy: records, and how far each partition was applied.
type local struct {
	log *slog.Logger
	db  *store.DB
	// reader serves reads from the beginning; writer is there once the topic is known.
	reader, writer *store.Partition

	// positions as written, and when all of them were last stamped. Both belong to whoever applies.
	positions []store.Position
	stamped   time.Time

	// mu guards closed; users counts readers that close waits for.
	mu     sync.RWMutex
	closed bool
	users  sync.WaitGroup
}

func openLocal(stateDir, topic string, wait time.Duration, log *slog.Logger) (*local, error) {
	db, err := store.Open(filepath.Join(stateDir, "tables", topic),
		store.Options{CacheBytes: cacheBytes, MemTableBytes: memTableBytes, LockWait: wait}, log)
	if err != nil {
		return nil, fmt.Errorf("open table copy of %s: %w", topic, err)
	}
	reader, err := db.Acquire(0, storeNames(0))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open table copy of %s: %w", topic, err), db.Close())
	}
	return &local{log: log, db: db, reader: reader}, nil
}

func storeNames(partitions int) []string {
	names := []string{"records"}
	for p := range partitions {
		names = append(names, fmt.Sprint("partition ", p))
	}
	return names
}

// resume returns the positions to read on from. A store that cannot be continued is emptied first.
func (l *local) resume(at *place, now time.Time) ([]position, error) {
	why, err := l.load(at, now)
	if err != nil {
		return nil, err
	}
	if why != "" {
		l.log.Info("table copy starts empty", "reason", why)
		if err := l.empty(at, now); err != nil {
			return nil, err
		}
	}
	positions := make([]position, len(l.positions))
	for p, pos := range l.positions {
		positions[p] = position{offset: pos.Offset, epoch: pos.LeaderEpoch}
	}
	return positions, nil
}

// load reads where the store stands, or says why it cannot be continued.
func (l *local) load(at *place, now time.Time) (why string, err error) {
	if l.writer, err = l.db.Acquire(0, storeNames(len(at.starts))); err != nil {
		return "", err
	}
	l.positions = make([]store.Position, len(at.starts))
	for p := range l.positions {
		pos, ok, err := l.writer.Position(positionOf(p))
		if err != nil {
			return "", err
		}
		if !ok {
			return "no earlier copy", nil
		}
		why := pos.Distrust(store.Log{TopicID: at.id, Start: at.starts[p], End: at.ends[p]}, now)
		if why != "" {
			return why, nil
		}
		l.positions[p] = pos
	}
	return "", nil
}

// positionOf is the index of the store that keeps a partition's position.
func positionOf[P int | int32](partition P) int { return records + 1 + int(partition) }

// empty removes all records; an empty copy is current as of the log's start.
func (l *local) empty(at *place, now time.Time) error {
	b := l.writer.Batch()
	b.Wipe(records)
	for p, start := range at.starts {
		l.positions[p] = store.Position{TopicID: at.id, LeaderEpoch: -1, Offset: start, AppliedAt: now}
		b.Position(positionOf(p), l.positions[p])
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("empty table copy: %w", err)
	}
	return nil
}

// disown makes the next start find no copy. Nothing is written after it.
func (l *local) disown() error {
	b := l.writer.Batch()
	for p := range l.positions {
		b.Wipe(positionOf(p))
	}
	if err := b.Commit(); err != nil && !errors.Is(err, store.ErrSuperseded) {
		return fmt.Errorf("give up table copy: %w", err)
	}
	l.writer.Release()
	return nil
}

// needsStamp reports that the store should note that it was current at fresh.
func (l *local) needsStamp(fresh time.Time) bool { return fresh.Sub(l.stamped) >= stampEvery }

// get returns a copy of the value of a record.
func (l *local) get(key []byte) ([]byte, bool, error) {
	if !l.enter() {
		return nil, false, ErrClosed
	}
	defer l.users.Done()
	value, ok, err := l.reader.AppendGet(nil, records, key)
	if ok && value == nil {
		value = []byte{}
	}
	return value, ok, err
}

func (l *local) scan(prefix []byte, fn func(key, value []byte) bool) (err error) {
	if !l.enter() {
		return ErrClosed
	}
	defer l.users.Done()
	it, err := l.reader.Scan(records, prefix, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ; it.Valid(); it.Next() {
		if !fn(it.Key(), it.Value()) {
			return nil
		}
	}
	return nil
}

// enter registers a reader; false when the store is closed.
func (l *local) enter() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return false
	}
	l.users.Add(1)
	return true
}

func (l *local) close() error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	if already {
		return nil
	}
	l.users.Wait()
	return l.db.Close()
}

// commit writes a batch of records with the positions after it, and when the copy was last known to be current (zero: as
// before). It need not be synced: data and positions are one batch, and a store that lost its tail reads it again.
func (l *local) commit(b *store.Batch, moved map[int32]position, fresh time.Time) error {
	all := l.needsStamp(fresh)
	for p := range l.positions {
		at, ok := moved[int32(p)]
		if !ok && !all {
			continue
		}
		pos := &l.positions[p]
		if ok {
			pos.Offset, pos.LeaderEpoch = at.offset, at.epoch
		}
		if !fresh.IsZero() {
			pos.AppliedAt = fresh
		}
		b.Position(positionOf(p), *pos)
	}
	if all {
		l.stamped = fresh
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("write table copy: %w", err)
	}
	return nil
}
