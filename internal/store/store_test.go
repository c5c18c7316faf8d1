package store

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
)

var quiet = slog.New(slog.DiscardHandler)

func memory(t *testing.T) *DB {
	t.Helper()
	db, err := OpenMemory()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func acquire(t *testing.T, db *DB, id int32, stores ...string) *Partition {
	t.Helper()
	p, err := db.Acquire(id, stores)
	require.NoError(t, err)
	return p
}

func keys(t *testing.T, it *Iter, err error) []string {
	t.Helper()
	require.NoError(t, err)
	out := []string{}
	for ; it.Valid(); it.Next() {
		out = append(out, string(it.Key()))
	}
	require.NoError(t, it.Close())
	return out
}

func put(t *testing.T, p *Partition, store int, keys ...string) {
	t.Helper()
	b := p.Batch()
	for _, k := range keys {
		b.Put(store, []byte(k), []byte("v"+k))
		b.PutIndex(store, []byte("i"+k))
	}
	require.NoError(t, b.Commit())
}

func TestStoresAndPartitionsAreApart(t *testing.T) {
	db := memory(t)
	a, b := acquire(t, db, 1, "x", "y"), acquire(t, db, 2, "y")
	put(t, a, 0, "k", "\xff\xff")
	put(t, a, 1, "k")
	put(t, b, 0, "k", "l")

	value, ok, err := b.AppendGet([]byte("> "), 0, []byte("k"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "> vk", string(value))
	_, ok, err = b.AppendGet(nil, 0, []byte("none"))
	require.NoError(t, err)
	require.False(t, ok)

	batch := a.Batch()
	batch.Wipe(0)
	require.NoError(t, batch.Commit())
	it, err := a.Scan(0, nil, nil)
	require.Empty(t, keys(t, it, err))
	it, err = a.ScanIndex(0, nil, nil)
	require.Empty(t, keys(t, it, err))
	it, err = a.Scan(1, nil, nil)
	require.Equal(t, []string{"k"}, keys(t, it, err))
	it, err = b.ScanIndex(0, nil, nil)
	require.Equal(t, []string{"ik", "il"}, keys(t, it, err))
}

func TestSortedReadsFindWhatSingleOnesDo(t *testing.T) {
	db := memory(t)
	a, b := acquire(t, db, 1, "x", "y"), acquire(t, db, 2, "x")
	put(t, a, 0, "", "a", "ab", "b", "\xff")
	put(t, a, 1, "c")
	put(t, b, 0, "d")
	batch := a.Batch()
	batch.Delete(0, []byte("b"))
	require.NoError(t, batch.Commit())

	asked := [][]byte{[]byte(""), []byte("a"), []byte("aa"), []byte("ab"), []byte("b"), []byte("c"), []byte("d"), []byte("\xff")}
	for range 2 { // in memory, and in a file with its filter
		found := map[string]string{}
		require.NoError(t, a.GetSorted(0, asked, func(i int, value []byte) { found[string(asked[i])] = string(value) }))
		require.Equal(t, map[string]string{"": "v", "a": "va", "ab": "vab", "\xff": "v\xff"}, found)
		require.NoError(t, db.pebble.Flush())
	}
}

func TestASortedReadThatFailsOnceSaysSo(t *testing.T) {
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt && armed.CompareAndSwap(true, false) {
			return errors.New("the disk cannot be read")
		}
		return nil
	}))
	db, err := open("state", fs, Options{CacheBytes: 1 << 20, MemTableBytes: 1 << 20}, quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	p := acquire(t, db, 1, "x")
	put(t, p, 0, "a", "b")
	require.NoError(t, db.pebble.Flush())

	armed.Store(true)
	var found []string
	asked := [][]byte{[]byte("a"), []byte("b")}
	err = p.GetSorted(0, asked, func(i int, _ []byte) { found = append(found, string(asked[i])) })
	require.False(t, armed.Load(), "nothing was read from the disk")
	require.ErrorContains(t, err, "the disk cannot be read", "found %v", found)
}

func TestScanKeepsToPrefixAndFrom(t *testing.T) {
	p := acquire(t, memory(t), 0, "s")
	put(t, p, 0, "a", "ab", "abc", "b", "\xff", "\xff\xff")
	for name, test := range map[string]struct {
		prefix, from string
		want         []string
	}{
		"all":                  {want: []string{"a", "ab", "abc", "b", "\xff", "\xff\xff"}},
		"prefix":               {prefix: "ab", want: []string{"ab", "abc"}},
		"from within":          {prefix: "a", from: "aba", want: []string{"abc"}},
		"from before":          {prefix: "b", from: "a", want: []string{"b"}},
		"from behind":          {prefix: "a", from: "c", want: []string{}},
		"prefix of all ones":   {prefix: "\xff", want: []string{"\xff", "\xff\xff"}},
		"nothing starts so":    {prefix: "abcd", want: []string{}},
		"from, without prefix": {from: "b", want: []string{"b", "\xff", "\xff\xff"}},
	} {
		t.Run(name, func(t *testing.T) {
			it, err := p.Scan(0, []byte(test.prefix), []byte(test.from))
			require.Equal(t, test.want, keys(t, it, err))
		})
	}
}

func TestOnlyTheNewestHolderWrites(t *testing.T) {
	db := memory(t)
	old := acquire(t, db, 0, "s")
	late := old.Batch()
	late.Put(0, []byte("k"), []byte("old"))
	current := acquire(t, db, 0, "s")
	put(t, current, 0, "k")
	require.ErrorIs(t, late.Commit(), ErrSuperseded)
	value, _, err := old.AppendGet(nil, 0, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "vk", string(value))

	old.Release() // of what it no longer has: nothing happens to the holder
	put(t, current, 0, "l")
	current.Release()
	require.ErrorIs(t, current.Batch().Commit(), ErrSuperseded)
}

func TestStateIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	pos := Position{TopicID: [16]byte{1, 2}, LeaderEpoch: 7, Offset: 99, AppliedAt: time.UnixMilli(1e12), IndexVersion: 3}
	db, err := Open(dir, Options{}, quiet)
	require.NoError(t, err)
	p := acquire(t, db, 5, "first", "second")
	put(t, p, 1, "k")
	b := p.Batch()
	b.Position(1, pos)
	require.NoError(t, b.Commit())

	_, err = Open(dir, Options{LockWait: 150 * time.Millisecond}, quiet)
	require.ErrorIs(t, err, ErrLocked)
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = db.Close()
	}()
	db, err = Open(dir, Options{LockWait: 10 * time.Second}, quiet)
	require.NoError(t, err, "a predecessor's lock is waited for")
	defer func() { require.NoError(t, db.Close()) }()

	p = acquire(t, db, 5, "second", "third")
	got, ok, err := p.Position(0)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, pos, got)
	_, ok, err = p.AppendGet(nil, 0, []byte("k"))
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = p.Position(1)
	require.NoError(t, err)
	require.False(t, ok)
}

// After a crash at any moment the newest batches may be missing, and what the position says is there, no more and no less.
func TestACrashLosesWholeBatches(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 6 {
		fs := vfs.NewCrashableMem()
		db, err := open("state", fs, Options{MemTableBytes: 64 << 10}, quiet)
		require.NoError(t, err)
		p := acquire(t, db, 0, "s")
		n := 1 + rng.IntN(2000)
		for i := range n {
			b := p.Batch()
			b.Put(0, []byte("count"), []byte(strconv.Itoa(i)))
			b.Put(0, fmt.Appendf(nil, "k%06d", i), make([]byte, 100))
			b.Position(0, Position{Offset: int64(i), AppliedAt: time.UnixMilli(0)})
			require.NoError(t, b.Commit())
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		require.NoError(t, db.Close())

		db, err = open("state", after, Options{}, quiet)
		require.NoError(t, err)
		p = acquire(t, db, 0, "s")
		pos, ok, err := p.Position(0)
		require.NoError(t, err)
		it, err := p.Scan(0, []byte("k"), nil)
		found := keys(t, it, err)
		if !ok {
			require.Empty(t, found)
		} else {
			require.Len(t, found, int(pos.Offset)+1)
			count, _, err := p.AppendGet(nil, 0, []byte("count"))
			require.NoError(t, err)
			require.Equal(t, strconv.FormatInt(pos.Offset, 10), string(count))
		}
		require.NoError(t, db.Close())
	}
}
