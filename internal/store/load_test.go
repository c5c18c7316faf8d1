package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// byFirst is an index: the first byte of the value, then the key. It is no longer right once the value begins otherwise.
func byFirst(key, value []byte, put func([]byte)) {
	if len(value) > 0 {
		put(append(value[:1:1], key...))
	}
}

func at(offset int) Position { return Position{Offset: int64(offset), AppliedAt: time.UnixMilli(0)} }

// content is all of a store: records as key=value, index keys, and how far it is, -1 without a position.
type content struct {
	records, index []string
	offset         int64
}

func contentOf(t require.TestingT, p *Partition, store int) content {
	c := content{offset: -1}
	it, err := p.Scan(store, nil, nil)
	require.NoError(t, err)
	for ; it.Valid(); it.Next() {
		c.records = append(c.records, fmt.Sprintf("%s=%s", it.Key(), it.Value()))
	}
	require.NoError(t, it.Close())
	it, err = p.ScanIndex(store, nil, nil)
	require.NoError(t, err)
	for ; it.Valid(); it.Next() {
		c.index = append(c.index, string(it.Key()))
	}
	require.NoError(t, it.Close())
	pos, ok, err := p.Position(store)
	require.NoError(t, err)
	if ok {
		c.offset = pos.Offset
	}
	return c
}

// As files or as batches, in pieces of any size, between other writes, merges and restarts: a store is what its changelog says.
func TestAStoreIsTheSameHoweverItWasLoaded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs, ctx := vfs.NewMem(), context.Background()
		openIt := func() (*DB, *Partition) {
			db, err := open("state", fs, Options{CacheBytes: 1 << 20, MemTableBytes: 256 << 10}, quiet)
			require.NoError(t, err)
			p, err := db.Acquire(3, []string{"files", "batches", "either"})
			require.NoError(t, err)
			return db, p
		}
		db, p := openIt()
		defer func() { require.NoError(t, db.Close()) }()
		key, value := rapid.StringMatching(`[a-c]{0,2}`), rapid.StringMatching(`[x-z]{0,2}`)
		want, offset := map[string]string{}, 0
		for range rapid.IntRange(1, 8).Draw(t, "pieces") {
			loads := []*Load{p.Load(0, byFirst), p.Load(1, byFirst), p.Load(2, byFirst)}
			if rapid.IntRange(0, 5).Draw(t, "wiped") == 0 {
				clear(want)
				for _, l := range loads {
					l.Wipe()
				}
			}
			for range rapid.IntRange(1, 12).Draw(t, "records") {
				offset++
				k, v := key.Draw(t, "key"), value.Draw(t, "value")
				if rapid.IntRange(0, 2).Draw(t, "deleted") == 0 {
					delete(want, k)
					for _, l := range loads {
						l.Delete([]byte(k))
					}
					continue
				}
				want[k] = v
				for _, l := range loads {
					l.Put([]byte(k), []byte(v))
				}
			}
			require.NoError(t, loads[0].commitFiles(ctx, at(offset)))
			require.NoError(t, loads[1].commitBatch(at(offset)))
			if rapid.Bool().Draw(t, "as files") {
				require.NoError(t, loads[2].commitFiles(ctx, at(offset)))
			} else {
				require.NoError(t, loads[2].commitBatch(at(offset)))
			}
			switch rapid.IntRange(0, 4).Draw(t, "then") {
			case 0:
				require.NoError(t, db.pebble.Flush())
			case 1:
				require.NoError(t, db.pebble.Compact(ctx, []byte{0}, []byte{0xff}, true))
			case 2:
				require.NoError(t, db.Close())
				db, p = openIt()
			}
			reference := contentOf(t, p, 1)
			var records []string
			for _, k := range slices.Sorted(maps.Keys(want)) {
				records = append(records, k+"="+want[k])
				byFirst([]byte(k), []byte(want[k]), func(i []byte) { require.Contains(t, reference.index, string(i)) })
			}
			require.Equal(t, records, reference.records)
			require.Equal(t, int64(offset), reference.offset)
			require.Equal(t, reference, contentOf(t, p, 0), "by files")
			require.Equal(t, reference, contentOf(t, p, 2), "by either")
		}
	})
}

// piece adds what one piece of a changelog says: it writes one key again, and deletes what the piece before had alone.
func piece(l *Load, n int) {
	l.Put([]byte("newest"), fmt.Append(nil, n))
	l.Put(fmt.Appendf(nil, "of %d", n), []byte("x"))
	l.Delete(fmt.Appendf(nil, "of %d", n-1))
}

// afterPiece is the store after it.
func afterPiece(n int, index ...string) content {
	return content{records: []string{fmt.Sprintf("newest=%d", n), fmt.Sprintf("of %d=x", n)}, index: index, offset: int64(n)}
}

// requireNoFiles holds a database to keeping nothing but its own.
func requireNoFiles(t *testing.T, db *DB) {
	t.Helper()
	names, err := db.fs.List(db.dir)
	require.NoError(t, err)
	for _, name := range names {
		require.False(t, strings.HasPrefix(name, filePrefix), name)
	}
}

// crashing is a disk, and what a crash leaves of it.
type crashing struct {
	*vfs.MemFS
	unsynced int // percent of what was not synced that is left

	mu        sync.Mutex
	in        int // operations from now; 0: never
	rng       *rand.Rand
	committed int // pieces, at the crash, that must be there after a kill
	left      *vfs.MemFS
}

func (c *crashing) String() string { return "crashing" }
func (c *crashing) MaybeError(errorfs.Op) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in--; c.in == 0 {
		c.left = c.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.unsynced, RNG: c.rng})
	}
	return nil
}

// commits notes that so many pieces are committed, unless the crash was before.
func (c *crashing) commits(pieces int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == nil {
		c.committed = pieces
	}
}

// rebuild makes a store of others' records, wipes it and loads four pieces, the third as a batch.
func (c *crashing) rebuild(t *testing.T, crashIn int) {
	t.Helper()
	ctx := context.Background()
	db, err := open("state", errorfs.Wrap(c.MemFS, c), Options{MemTableBytes: 64 << 10}, quiet)
	require.NoError(t, err)
	p := acquire(t, db, 0, "s")
	l := p.Load(0, byFirst)
	l.Put([]byte("foreign"), []byte("f"))
	require.NoError(t, l.commitBatch(at(99)))
	require.NoError(t, db.pebble.Flush())
	c.mu.Lock()
	c.in = crashIn
	c.mu.Unlock()
	l.Wipe()
	for n := 1; n <= 4; n++ {
		piece(l, n)
		if n == 3 { // Pebble may still have it in memory
			require.NoError(t, l.commitBatch(at(n)))
			continue
		}
		require.NoError(t, l.commitFiles(ctx, at(n)))
		c.commits(n)
	}
	require.NoError(t, db.Close())
}

// The machine stops before any of the operations on its disk.
func TestACrashWhileLoadingLeavesWholePieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := []content{
		{offset: -1}, afterPiece(1, "1newest", "xof 1"), afterPiece(2, "1newest", "2newest", "xof 1", "xof 2"),
		afterPiece(3, "1newest", "2newest", "3newest", "xof 1", "xof 2", "xof 3"),
		afterPiece(4, "1newest", "2newest", "3newest", "4newest", "xof 1", "xof 2", "xof 3", "xof 4"),
	}
	foreign := content{records: []string{"foreign=f"}, index: []string{"fforeign"}, offset: 99}
	const powerLoss, kill = 0, 100
	for _, unsynced := range []int{powerLoss, kill} {
		crashes := 0
		for n := 1; ; n += 1 + rng.IntN(3) {
			disk := &crashing{MemFS: vfs.NewCrashableMem(), unsynced: unsynced, rng: rng}
			disk.rebuild(t, n)
			if disk.left == nil {
				break
			}
			crashes++
			db, err := open("state", disk.left, Options{}, quiet)
			require.NoError(t, err)
			got := contentOf(t, acquire(t, db, 0, "s"), 0)
			if unsynced == kill && disk.committed > 0 {
				require.Contains(t, pieces[disk.committed:], got, "operation %d", n)
			} else {
				require.Contains(t, append(pieces, foreign), got, "operation %d", n)
			}
			requireNoFiles(t, db)
			require.NoError(t, db.Close())
		}
		require.Greater(t, crashes, 20)
	}
}

func TestOnlyTheNewestHolderLoads(t *testing.T) {
	db := memory(t)
	old := acquire(t, db, 0, "s")
	late := old.Load(0, nil)
	late.Wipe()
	piece(late, 1)
	current := acquire(t, db, 0, "s")
	l := current.Load(0, nil)
	piece(l, 2)
	require.NoError(t, l.commitFiles(context.Background(), at(2)))
	require.ErrorIs(t, late.commitFiles(context.Background(), at(1)), ErrSuperseded, "nor does it wipe")
	require.Equal(t, afterPiece(2), contentOf(t, current, 0))

	old, current = current, acquire(t, db, 1, "s")
	late = old.Load(0, nil)
	piece(late, 3)
	acquire(t, db, 0, "s")
	require.ErrorIs(t, late.commitFiles(context.Background(), at(3)), ErrSuperseded)
	require.Equal(t, afterPiece(2), contentOf(t, old, 0))
	require.Equal(t, content{offset: -1}, contentOf(t, current, 0))
	requireNoFiles(t, db)
}

func TestALoadThatTheDiskRefusesChangesNothing(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSyncData} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			var armed atomic.Bool
			full := errors.New("the disk is full")
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == kind && strings.Contains(op.Path, filePrefix) && armed.Load() {
					return full
				}
				return nil
			}))
			db, err := open("state", fs, Options{CacheBytes: 1 << 20, MemTableBytes: 1 << 20}, quiet)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			p := acquire(t, db, 0, "s")
			l := p.Load(0, nil)
			piece(l, 1)
			require.NoError(t, l.commitFiles(context.Background(), at(1)))
			armed.Store(true)
			l = p.Load(0, nil)
			piece(l, 2)
			require.ErrorIs(t, l.commitFiles(context.Background(), at(2)), full)
			require.Equal(t, afterPiece(1), contentOf(t, p, 0))
			armed.Store(false)
			requireNoFiles(t, db)
		})
	}
}

// Large pieces become files without passing through Pebble's log; small ones do not.
func TestOnlyALargePieceIsWrittenAsFiles(t *testing.T) {
	db := memory(t)
	p := acquire(t, db, 0, "s")
	for name, c := range map[string]struct {
		bytes int
		files uint64
	}{"small": {fileBytes / 2, 0}, "large": {fileBytes, 2}, "none": {0, 0}} {
		before := db.pebble.Metrics()
		l := p.Load(0, nil)
		if c.bytes > 0 {
			l.Put([]byte("k"), make([]byte, c.bytes))
		}
		require.NoError(t, l.Commit(context.Background(), at(len(name))))
		require.Zero(t, l.Bytes())
		require.Equal(t, c.files, ingested(db)-ingestedOf(before), name)
		require.Equal(t, int64(len(name)), contentOf(t, p, 0).offset)
	}
}

func ingested(db *DB) uint64 { return ingestedOf(db.pebble.Metrics()) }
func ingestedOf(m *pebble.Metrics) (n uint64) {
	for i := range m.Levels {
		n += m.Levels[i].TablesIngested
	}
	return n
}

// Pieces of one partition lie over one another until they are merged. Where that is slow the load waits, before they are so
// many that Pebble stops all writes, at twelve.
func TestLoadsDoNotStopTheWritesOfOthers(t *testing.T) {
	slow := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") { // a merge's; files of loads are linked
			time.Sleep(300 * time.Millisecond)
		}
		return nil
	}))
	db, err := open("state", slow, Options{CacheBytes: 1 << 20, MemTableBytes: 1 << 20}, quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	p, other := acquire(t, db, 0, "s"), acquire(t, db, 1, "s")
	for i := range 30 {
		l := p.Load(0, nil)
		for k := range 20 {
			l.Put(fmt.Append(nil, k), fmt.Append(nil, i))
		}
		require.NoError(t, l.commitFiles(context.Background(), at(i)))
		put(t, other, 0, fmt.Sprint(i))
		require.LessOrEqual(t, db.pebble.Metrics().Levels[0].Sublevels, int32(mergeAt))
	}
	require.Equal(t, int64(29), contentOf(t, p, 0).offset)
}
