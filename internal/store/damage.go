package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// damagedFile in a folder says that what a file of it holds was found damaged while the database was open: the next Open
// empties the folder.
const damagedFile = "DAMAGED"

// errMarked says that a folder has such a file.
var errMarked = errors.New("found damaged while it was open")

// damage is what was found of it in an open database.
type damage struct {
	log  *slog.Logger
	fs   vfs.FS
	dir  string
	once sync.Once
	// found is closed when what is set.
	found chan struct{}
	what  string
}

func newDamage(dir string, fs vfs.FS, log *slog.Logger) *damage {
	return &damage{log: log, fs: fs, dir: dir, found: make(chan struct{})}
}

// note is told by Pebble of a block that does not hold what was written, by whoever reads it: a task, a request, a merge.
func (d *damage) note(info pebble.DataCorruptionInfo) {
	d.once.Do(func() {
		d.what = info.String()
		d.log.Error("state on disk is damaged; the next start restores it from Kafka", "folder", d.dir, "error", d.what)
		if err := mark(d.dir, d.fs); err != nil {
			d.log.Error("that could not be noted; delete the folder before the next start", "folder", d.dir, "error", err)
		}
		close(d.found)
	})
}

// mark says of a folder that it is to be emptied.
func mark(dir string, fs vfs.FS) error {
	file, err := fs.Create(fs.PathJoin(dir, damagedFile), vfs.WriteCategoryUnspecified)
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		return fmt.Errorf("mark the folder as damaged: %w", err)
	}
	return nil
}

// Watch returns when ctx ends, or with an error when something on disk is found damaged while the database is open. What
// is damaged cannot be served, nor told from what is not: whoever has the database has to close it, and to open it anew,
// empty.
func (db *DB) Watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-db.damage.found:
		return fmt.Errorf("state in %s is damaged, start again to restore it from Kafka: %s", db.dir, db.damage.what)
	}
}
