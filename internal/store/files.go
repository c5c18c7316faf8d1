package store

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// files of a piece, in Pebble's format, which are not part of the database yet.
type files struct {
	db    *DB
	names []string
}

// filePrefix tells them from the database's own, beside which they lie.
const filePrefix = "load-"

func (db *DB) newFiles() *files { return &files{db: db} }

// removeFiles deletes what a predecessor has left.
func removeFiles(dir string, fs vfs.FS) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, filePrefix) {
			if err := fs.Remove(fs.PathJoin(dir, name)); err != nil {
				return fmt.Errorf("remove what was not loaded: %w", err)
			}
		}
	}
	return nil
}

// write makes a file of what a sorted run has, if anything: keys get the prefix. The file is synced.
func (f *files) write(prefix []byte, r *run) error {
	if len(r.order) == 0 {
		return nil
	}
	name := f.db.fs.PathJoin(f.db.dir, fmt.Sprint(filePrefix, f.db.files.Add(1)))
	file, err := f.db.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	f.names = append(f.names, name)
	// Not as one of the lowest level, though it may get there: deletions would hide nothing in it.
	const level = 0
	w := sstable.NewWriter(newWritable(file), f.db.options.MakeWriterOptions(level, f.db.pebble.TableFormat()))
	key := append([]byte(nil), prefix...)
	for p := range r.newest() {
		k, value, deleted := r.record(p)
		key = append(key[:len(prefix)], k...)
		if deleted {
			err = w.Delete(key)
		} else {
			err = w.Set(key, value)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, w.Close())
}

// discard deletes those that have not become part of the database.
func (f *files) discard() {
	for _, name := range f.names {
		_ = f.db.fs.Remove(name) // the next start tries again
	}
}

// writable is a file that is written in large pieces; Pebble's own makes a system call of each block.
type writable struct {
	file vfs.File
	buf  *bufio.Writer
}

func newWritable(file vfs.File) *writable {
	file = vfs.NewSyncingFile(file, vfs.SyncingFileOptions{BytesPerSync: bytesPerSync})
	return &writable{file, bufio.NewWriterSize(file, 256<<10)}
}

func (w *writable) Write(p []byte) error {
	_, err := w.buf.Write(p)
	return err
}

func (w *writable) Finish() error {
	err := w.buf.Flush()
	if err == nil {
		err = w.file.Sync()
	}
	return errors.Join(err, w.file.Close())
}

func (w *writable) Abort() { _ = w.file.Close() }
