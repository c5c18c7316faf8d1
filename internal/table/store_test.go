package table

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/store"
)

func TestLocalStoreIsEmptiedWhenItCannotBeContinued(t *testing.T) {
	cases := map[string]struct {
		spoil func(f *fixture)
		// change is what happens to each position.
		change  func(*store.Position)
		emptied bool
	}{
		"as it was left":               {},
		"topic was created anew":       {spoil: (*fixture).createTopicAnew, emptied: true},
		"its offset is beyond the log": {change: func(p *store.Position) { p.Offset = 1000 }, emptied: true},
		"it was last current too long ago": {
			change: func(p *store.Position) { p.AppliedAt = time.Now().Add(-store.MaxAge - time.Hour) }, emptied: true,
		},
		"it is from the future": {change: func(p *store.Position) { p.AppliedAt = time.Now().Add(2 * time.Hour) }, emptied: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			dir := f.leave()
			f.meddle(dir, c.change)
			if c.spoil != nil {
				c.spoil(f)
			}
			f.put("new", "2")
			copied := f.start(dir)
			f.current(copied, "new")
			require.Equal(t, "2", f.get(copied, "new"))
			require.Equal(t, c.emptied, f.get(copied, "ghost") == "")
		})
	}
}

// A copy that was given up is read anew, whatever was still being applied.
func TestNothingIsWrittenToACopyThatWasGivenUp(t *testing.T) {
	l, err := openLocal(t.TempDir(), topic, 0, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, l.close()) }()
	at := &place{id: [16]byte{1}, starts: make([]int64, partitions), ends: []int64{9, 9, 9}}
	_, err = l.resume(at, time.Now())
	require.NoError(t, err)
	everywhere := map[int32]position{0: {offset: 5}, 1: {offset: 5}, 2: {offset: 5}}
	require.NoError(t, l.commit(l.writer.Batch(), everywhere, time.Now()))
	why, err := l.load(at, time.Now())
	require.NoError(t, err)
	require.Empty(t, why)

	require.NoError(t, l.disown())
	require.ErrorIs(t, l.commit(l.writer.Batch(), everywhere, time.Now()), store.ErrSuperseded)
	why, err = l.load(at, time.Now())
	require.NoError(t, err)
	require.Equal(t, "no earlier copy", why)
}

// A copy that is still catching up is as old as it was: its records of today may hide a tombstone missed long ago.
func TestOnlyACurrentCopyIsStamped(t *testing.T) {
	l, err := openLocal(t.TempDir(), topic, 0, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, l.close()) }()
	began := time.Now().Add(-store.MaxAge / 2).Truncate(time.Millisecond)
	at := &place{id: [16]byte{1}, starts: make([]int64, partitions), ends: []int64{9, 9, 9}}
	_, err = l.resume(at, began)
	require.NoError(t, err)
	stamps := func() (all []time.Time) {
		for p := range partitions {
			pos, ok, err := l.writer.Position(positionOf(p))
			require.NoError(t, err)
			require.True(t, ok)
			all = append(all, pos.AppliedAt)
		}
		return all
	}
	one := map[int32]position{1: {offset: 5}}
	require.NoError(t, l.commit(l.writer.Batch(), one, time.Time{}))
	require.Equal(t, []time.Time{began, began, began}, stamps())
	// Once it is current, all partitions are, those that nothing comes to as well.
	current := began.Add(time.Hour)
	require.NoError(t, l.commit(l.writer.Batch(), one, current))
	require.Equal(t, []time.Time{current, current, current}, stamps())
}

func TestFolderIsUsedByOneCopyAtATime(t *testing.T) {
	f := newFixture(t)
	dir := f.dir()
	first := f.open(dir)
	cfg := Config{Kafka: f.cfg, StateDir: dir, Topic: topic, LockWait: time.Millisecond}
	_, err := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.ErrorIs(t, err, store.ErrLocked)

	// A predecessor that is about to end is waited for.
	ended := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		ended <- first.Close()
	}()
	f.open(dir)
	require.NoError(t, <-ended)
}

// leave is the folder of a stopped copy, which has a record.
func (f *fixture) leave() (dir string) {
	f.t.Helper()
	dir = f.dir()
	f.put("live", "1")
	copied := f.start(dir)
	f.current(copied, "live")
	f.stop(copied)
	return dir
}

// meddle changes what a stopped copy has on disk: its positions, and a record that the log never had.
func (f *fixture) meddle(dir string, change func(*store.Position)) {
	f.t.Helper()
	db, err := store.Open(filepath.Join(dir, "tables", topic), store.Options{}, slog.New(slog.DiscardHandler))
	require.NoError(f.t, err)
	defer func() { require.NoError(f.t, db.Close()) }()
	p, err := db.Acquire(0, storeNames(partitions))
	require.NoError(f.t, err)
	b := p.Batch()
	b.Put(records, []byte("ghost"), []byte("x"))
	for i := range partitions {
		pos, ok, err := p.Position(positionOf(i))
		require.NoError(f.t, err)
		require.True(f.t, ok)
		if change != nil {
			change(&pos)
		}
		b.Position(positionOf(i), pos)
	}
	require.NoError(f.t, b.Commit())
}

// Pebble finds what was damaged when somebody asks for it.
func TestDamageEndsTheCopyAndTheNextIsReadAnew(t *testing.T) {
	f := newFixture(t)
	dir := f.leave()
	f.damage(dir)

	copied := f.open(dir)
	ended := make(chan error, 1)
	go func() { ended <- copied.Run(t.Context()) }()
	f.current(copied, "live")
	_, _, err := copied.Get([]byte("ghost 0"))
	require.Error(t, err)
	require.ErrorContains(t, <-ended, "damaged")
	require.NoError(t, copied.Close())

	copied = f.start(dir)
	f.current(copied, "live")
	require.Equal(t, "1", f.get(copied, "live"))
	require.Empty(t, f.get(copied, "ghost 0"))
}

// damage adds records that the log never had to a stopped copy, and changes some of them on disk.
func (f *fixture) damage(dir string) {
	f.t.Helper()
	folder := filepath.Join(dir, "tables", topic)
	for _, more := range []int{10_000, 0} { // what is in the log of writes goes to files at the next start
		db, err := store.Open(folder, store.Options{}, slog.New(slog.DiscardHandler))
		require.NoError(f.t, err)
		p, err := db.Acquire(0, storeNames(partitions))
		require.NoError(f.t, err)
		b := p.Batch()
		for i := range more {
			b.Put(records, fmt.Append(nil, "ghost ", i), []byte("x"))
		}
		require.NoError(f.t, b.Commit())
		require.NoError(f.t, db.Close())
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.sst"))
	require.NoError(f.t, err)
	largest, content := "", []byte(nil)
	for _, name := range files {
		read, err := os.ReadFile(name)
		require.NoError(f.t, err)
		if len(read) > len(content) {
			largest, content = name, read
		}
	}
	require.NotEmpty(f.t, content)
	content[0] ^= 0xff
	require.NoError(f.t, os.WriteFile(largest, content, 0o600))
}
