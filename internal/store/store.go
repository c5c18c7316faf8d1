// Package store keeps the state of a task group's partitions, or the copy of a table, on local disk, in one Pebble
// database each. The disk is a cache: every record in it came from a changelog topic and can be read from there again.
//
// Data flows in through a Batch, or a Load where there is much of it: records, local index keys and the changelog
// position they bring the store to, all of one partition, all or nothing. A crash loses the newest of them whole, which
// are not synced to disk, and the position says from where to read again.
//
// It promises that what a Position says was applied, is there, and that only the newest holder of a partition
// (Acquire) can write it. It must not talk to Kafka: the caller says what the log is now, and Distrust whether a position
// can be continued from there.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrSuperseded is returned to a holder whose partition has been acquired again since: what it wanted to write is older
// than what the new holder may have read from Kafka.
var ErrSuperseded = errors.New("partition state was taken over")

// Options of a database.
type Options struct {
	// CacheBytes is the block cache; 0 takes 64 MB.
	CacheBytes int64
	// MemTableBytes is the size of a memtable; 0 takes 16 MB. Up to four are held while the disk lags.
	MemTableBytes uint64
	// LockWait is how long Open waits for a predecessor to let go of the folder.
	LockWait time.Duration
}

// DB is the state of a group's partitions.
type DB struct {
	pebble  *pebble.DB
	options *pebble.Options
	lock    *pebble.Lock
	fs      vfs.FS
	dir     string
	files   atomic.Uint64 // written for loads
	damage  *damage

	mu      sync.Mutex
	ids     map[string]uint16 // store name → its id in keys
	holders map[int32]*Partition
}

// Open opens, or makes, the database in dir. The folder is locked while it is open; a lock held by another process is
// waited for, at most opts.LockWait, and then ErrLocked. A database that is damaged is emptied, and said so. Nothing else
// costs the cache: a full disk, too few file handles, a missing right, or a folder that a newer version of the program
// has written are errors, which leave the folder as it is.
func Open(dir string, opts Options, log *slog.Logger) (*DB, error) {
	deadline := time.Now().Add(opts.LockWait)
	for {
		db, err := open(dir, vfs.Default, opts, log)
		if err == nil || !errors.Is(err, ErrLocked) || time.Now().After(deadline) {
			return db, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// OpenMemory makes an empty database in memory, for tests.
func OpenMemory() (*DB, error) {
	return open("state", vfs.NewMem(), Options{CacheBytes: 1 << 20, MemTableBytes: 1 << 20}, slog.New(slog.DiscardHandler))
}

// ErrLocked is returned by Open when another process uses the folder.
var ErrLocked = errors.New("folder is locked by another process")

func open(dir string, fs vfs.FS, opts Options, log *slog.Logger) (*DB, error) {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 64 << 20
	}
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = 16 << 20
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	// The lock is taken apart from opening, so that "someone else has it" is told from "it cannot be read".
	lock, err := pebble.LockDirectory(dir, fs)
	if held(err) {
		return nil, fmt.Errorf("state folder %s: %w: %w", dir, ErrLocked, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock state folder %s: %w", dir, err)
	}
	db, err := load(dir, fs, lock, opts, log)
	if damaged(err) {
		log.Warn("state on disk is damaged; it is restored from Kafka", "folder", dir, "error", err)
		if err = empty(dir, fs); err == nil {
			db, err = load(dir, fs, lock, opts, log)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state in %s: %w", dir, err), lock.Close())
	}
	return db, nil
}

// held reports that a lock could not be had because someone has it: another process, or this one.
func held(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || // EWOULDBLOCK is the same number
		err != nil && strings.Contains(err.Error(), "lock held by current process")
}

// errFormat says that the database is readable and not one of ours.
var errFormat = errors.New("unknown format")

// damaged reports that opening failed for what the files hold, or for one that is missing.
func damaged(err error) bool {
	return pebble.IsCorruptionError(err) || errors.Is(err, errMarked) || errors.Is(err, errFormat) || errors.Is(err, os.ErrNotExist) ||
		err != nil && strings.Contains(err.Error(), "object size mismatch") // a file that was cut, which Pebble does not mark as damage
}

// empty deletes what is in a folder but the lock that is held on it. The mark goes last: a folder that is left half empty must
// not be taken for a database with less in it.
func empty(dir string, fs vfs.FS) error {
	if err := mark(dir, fs); err != nil {
		return err
	}
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	names = append(slices.DeleteFunc(names, func(name string) bool { return name == lockFile || name == damagedFile }), damagedFile)
	for _, name := range names {
		if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
			return fmt.Errorf("empty the folder: %w", err)
		}
	}
	return nil
}

// lockFile is what Pebble calls it.
const lockFile = "LOCK"

// load opens the database under a lock, which stays the caller's when it fails.
func load(dir string, fs vfs.FS, lock *pebble.Lock, opts Options, log *slog.Logger) (*DB, error) {
	if _, err := fs.Stat(fs.PathJoin(dir, damagedFile)); err == nil {
		return nil, errMarked
	}
	cache := pebble.NewCache(opts.CacheBytes)
	defer cache.Unref()
	found := newDamage(dir, fs, log)
	options := &pebble.Options{
		FS:           fs,
		Lock:         lock,
		Cache:        cache,
		MemTableSize: opts.MemTableBytes,
		Logger:       logger{log},
		// Without it Pebble takes the process down, or panics in a request.
		EventListener: &pebble.EventListener{DataCorruption: found.note},
		// Kafka is the log of record; an hour of replay is not worth a sync.
		WALBytesPerSync: bytesPerSync,
		BytesPerSync:    bytesPerSync,
		Levels:          levels(),
		// Work in the background takes CPU from the tasks: files are merged half as often, and not compressed.
		L0CompactionThreshold:      mergeAt,
		FormatMajorVersion:         pebble.FormatNewest,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	options.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	options.EnsureDefaults() // files of loads are written by the same
	if err := removeFiles(dir, fs); err != nil {
		return nil, err
	}
	p, err := pebble.Open(dir, options)
	if err != nil {
		return nil, err
	}
	db := &DB{
		pebble: p, options: options, lock: lock, fs: fs, dir: dir, damage: found,
		ids: map[string]uint16{}, holders: map[int32]*Partition{},
	}
	if err := db.loadIDs(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return db, nil
}

const (
	// bytesPerSync spreads the writing to disk of a file over its making.
	bytesPerSync = 1 << 20
	// mergeAt is how many files may lie over one another before they are merged. At twelve Pebble stops all writes.
	mergeAt = 8
)

// levels have Bloom filters, 10 bits a key and 1 % false positives, at the bottom too: most of what is asked for is not
// there (an event that is new, an organization without endpoints).
func levels() (l [7]pebble.LevelOptions) {
	for i := range l {
		l[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return l
}

// Close releases the folder. Holders must not be used after it.
func (db *DB) Close() error {
	db.mu.Lock()
	for id, h := range db.holders {
		h.supersede()
		delete(db.holders, id)
	}
	db.mu.Unlock()
	return errors.Join(db.pebble.Close(), db.lock.Close())
}

// Keys are kind | store id, 2 bytes | partition, 4 bytes | key. Names have the kind only.
const (
	kindName     = 'n' // store name → id
	kindPosition = 'p'
	kindData     = 'd'
	kindIndex    = 'i'

	prefixLen = 7
)

func appendPrefix(dst []byte, kind byte, store uint16, partition int32) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, store)
	return binary.BigEndian.AppendUint32(dst, uint32(partition))
}

func (db *DB) loadIDs() error {
	it, err := db.pebble.NewIter(&pebble.IterOptions{LowerBound: []byte{kindName}, UpperBound: []byte{kindName + 1}})
	if err != nil {
		return fmt.Errorf("read store names: %w", err)
	}
	for it.First(); it.Valid(); it.Next() {
		if len(it.Value()) != 2 {
			return errors.Join(fmt.Errorf("%w of a store's name", errFormat), it.Close())
		}
		db.ids[string(it.Key()[1:])] = binary.BigEndian.Uint16(it.Value())
	}
	return errors.Join(it.Error(), it.Close())
}

// id gives a store name its short form, for good. db.mu is held.
func (db *DB) id(name string) (uint16, error) {
	if id, ok := db.ids[name]; ok {
		return id, nil
	}
	id := uint16(len(db.ids) + 1)
	value := binary.BigEndian.AppendUint16(nil, id)
	if err := db.pebble.Set(append([]byte{kindName}, name...), value, pebble.NoSync); err != nil {
		return 0, fmt.Errorf("name store %s: %w", name, err)
	}
	db.ids[name] = id
	return id, nil
}

// Acquire makes the caller the holder of a partition's stores. An earlier holder's writes fail from now on.
func (db *DB) Acquire(partition int32, stores []string) (*Partition, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	p := &Partition{db: db, id: partition, names: stores}
	for _, name := range stores {
		id, err := db.id(name)
		if err != nil {
			return nil, err
		}
		p.stores = append(p.stores, id)
	}
	if old := db.holders[partition]; old != nil {
		old.supersede()
	}
	db.holders[partition] = p
	return p, nil
}

// logger passes Pebble's own messages on; its chatter about compactions is for debugging.
type logger struct{ log *slog.Logger }

func (l logger) Infof(format string, args ...any) {}
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("state store", "error", fmt.Sprintf(format, args...))
}

// Fatalf is called when Pebble cannot go on with its files; it must not return.
func (l logger) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf("state store: "+format, args...))
}
