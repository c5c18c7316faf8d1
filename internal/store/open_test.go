package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
)

// kept makes a database with a record in it, and more, and returns its folder.
func kept(t *testing.T, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	db, err := Open(dir, Options{}, quiet)
	require.NoError(t, err)
	p := acquire(t, db, 0, "s")
	put(t, p, 0, append(more, "k")...)
	require.NoError(t, db.pebble.Flush())
	require.NoError(t, db.Close())
	return dir
}

// has reports whether the record of kept is still there.
func has(t *testing.T, dir string) bool {
	t.Helper()
	db, err := Open(dir, Options{}, quiet)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	_, ok, err := acquire(t, db, 0, "s").AppendGet(nil, 0, []byte("k"))
	require.NoError(t, err)
	return ok
}

func TestADamagedDatabaseIsEmptied(t *testing.T) {
	for _, pattern := range []string{"MANIFEST-*", "*", "marker.manifest.*", "OPTIONS-*"} {
		t.Run(pattern, func(t *testing.T) {
			dir := kept(t)
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			require.NoError(t, err)
			require.NotEmpty(t, files)
			for _, f := range files {
				require.NoError(t, os.WriteFile(f, []byte("not a database"), 0o600))
			}
			db, err := Open(dir, Options{}, quiet)
			require.NoError(t, err)
			put(t, acquire(t, db, 0, "s"), 0, "k")
			require.NoError(t, db.Close())
			require.True(t, has(t, dir))
		})
	}
	t.Run("files cut in half", func(t *testing.T) {
		dir := kept(t)
		for _, f := range tables(t, dir) {
			info, err := os.Stat(f)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(f, info.Size()/2))
		}
		require.False(t, has(t, dir))
	})
	for _, pattern := range []string{"MANIFEST-*", "*.sst"} {
		t.Run("without "+pattern, func(t *testing.T) {
			dir := kept(t)
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			require.NoError(t, err)
			require.NotEmpty(t, files)
			for _, f := range files {
				require.NoError(t, os.Remove(f))
			}
			require.False(t, has(t, dir))
		})
	}
}

// tables are the files that hold records.
func tables(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func manyKeys(n int) (keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprint("a", i))
	}
	return keys
}

// The database opens: Pebble reads a block when somebody asks for what is in it.
func TestDamageThatIsFoundLaterEmptiesTheDatabaseAtTheNextStart(t *testing.T) {
	dir := kept(t, manyKeys(10_000)...)
	for _, f := range tables(t, dir) {
		content, err := os.ReadFile(f)
		require.NoError(t, err)
		content[0] ^= 0xff // of the first block, which has records
		require.NoError(t, os.WriteFile(f, content, 0o600))
	}
	db, err := Open(dir, Options{}, quiet)
	require.NoError(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, db.Watch(ended))
	_, _, err = acquire(t, db, 0, "s").AppendGet(nil, 0, []byte("a0"))
	require.Error(t, err)
	require.ErrorContains(t, db.Watch(t.Context()), dir)
	require.NoError(t, db.Close())
	require.False(t, has(t, dir))
	db, err = Open(dir, Options{}, quiet)
	require.NoError(t, err)
	put(t, acquire(t, db, 0, "s"), 0, "k")
	require.NoError(t, db.Close())
	require.True(t, has(t, dir), "and only then")
}

// failing is a disk on which making or opening certain files fails.
type failing struct {
	vfs.FS
	on  func(name string) bool
	err error
}

func (f failing) check(name string) error {
	if f.on(name) {
		return &os.PathError{Op: "open", Path: name, Err: f.err}
	}
	return nil
}

func (f failing) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.check(name); err != nil {
		return nil, err
	}
	return f.FS.Create(name, c)
}

func (f failing) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.check(name); err != nil {
		return nil, err
	}
	return f.FS.Open(name, opts...)
}

func TestNothingButDamageCostsTheCache(t *testing.T) {
	manifest := func(name string) bool { return strings.Contains(filepath.Base(name), "MANIFEST") }
	anything := func(name string) bool { return strings.Contains(filepath.Base(name), ".") || manifest(name) }
	for name, f := range map[string]failing{
		"disk full":                {err: syscall.ENOSPC, on: anything},
		"too few file handles":     {err: syscall.EMFILE, on: manifest},
		"a right is missing":       {err: syscall.EACCES, on: manifest},
		"the disk does not answer": {err: syscall.EIO, on: manifest},
	} {
		t.Run(name, func(t *testing.T) {
			dir := kept(t)
			f.FS = vfs.Default
			_, err := open(dir, f, Options{}, quiet)
			require.ErrorIs(t, err, f.err)
			require.NotErrorIs(t, err, ErrLocked)
			require.True(t, has(t, dir), "and the lock was given back")
		})
	}
	t.Run("written by a newer version", func(t *testing.T) {
		dir := kept(t)
		marker, err := filepath.Glob(filepath.Join(dir, "marker.format-version.*"))
		require.NoError(t, err)
		require.Len(t, marker, 1)
		newer := filepath.Join(dir, fmt.Sprintf("marker.format-version.%06d.%03d", 999, 999))
		require.NoError(t, os.Rename(marker[0], newer))
		_, err = Open(dir, Options{}, quiet)
		require.ErrorContains(t, err, "format")
		require.NoError(t, os.Rename(newer, marker[0]))
		require.True(t, has(t, dir))
	})
}

func TestAFailureToLockIsALockOnlyWhenSomeoneHasIt(t *testing.T) {
	require.True(t, held(fmt.Errorf("lock: %w", syscall.EWOULDBLOCK)))
	require.True(t, held(errors.New("lock held by current process")))
	require.False(t, held(nil))
	require.False(t, held(&os.PathError{Op: "open", Path: "LOCK", Err: syscall.EACCES}))
	require.False(t, held(syscall.ENOSPC))
}

func TestALockIsGivenBackWhenTheNamesCannotBeRead(t *testing.T) {
	dir := kept(t)
	db, err := Open(dir, Options{}, quiet)
	require.NoError(t, err)
	require.NoError(t, db.pebble.Set([]byte("nodd"), []byte("x"), nil))
	require.NoError(t, db.Close())
	require.False(t, has(t, dir), "a name of another format: the folder was emptied, and could be opened")
}
