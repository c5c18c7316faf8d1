package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Load brings what a changelog says into one store, piece by piece. A piece is records, their index keys and the
// position that they bring the store to, all or nothing, as in a Batch; but one that is large is written as sorted files
// that become part of the database as they are. In a batch each byte is written three times: to Pebble's log, from
// memory to a file, and once more when files are merged.
type Load struct {
	p     *Partition
	store int
	index Index
	wipe  bool
	run   *run // nil while there is nothing
}

// Index calls put with the index keys of a record.
type Index = func(key, value []byte, put func(indexKey []byte))

// fileBytes is from what size on a piece is written as files. These cost syncs of the disk, some milliseconds for
// which other partitions' writes wait, and files of a few keys are soon merged again: what is smaller goes through a
// batch.
const fileBytes = 4 << 20

// Load makes an empty one; index may be nil. It must be closed. A piece may have 4 GB.
func (p *Partition) Load(store int, index Index) *Load {
	return &Load{p: p, store: store, index: index}
}

// Wipe has the next Commit remove everything of the store first.
func (l *Load) Wipe() { l.wipe = true }

// Put adds a record. Of the records of a key the last one counts.
func (l *Load) Put(key, value []byte) { l.add(key, value, false) }

// Delete adds that there is no such record.
func (l *Load) Delete(key []byte) { l.add(key, nil, true) }

func (l *Load) add(key, value []byte, deleted bool) {
	if l.run == nil {
		l.run = newRun()
	}
	l.run.add(key, value, deleted)
}

// Bytes is what the records take in memory that are not committed yet.
func (l *Load) Bytes() int {
	if l.run == nil {
		return 0
	}
	return l.run.bytes
}

// Commit applies the piece, all or nothing; when it fails, the piece is lost. What a crash leaves of a wipe and the piece
// after it may be the wipe alone: a store without a position.
func (l *Load) Commit(ctx context.Context, pos Position) error {
	if l.Bytes() < fileBytes {
		return l.commitBatch(pos)
	}
	return l.commitFiles(ctx, pos)
}

// Close drops the piece.
func (l *Load) Close() {
	if l.run != nil {
		l.run.free()
		l.run = nil
	}
}

func (l *Load) commitBatch(pos Position) error {
	defer l.Close()
	b := l.p.Batch()
	if l.wipe {
		b.Wipe(l.store)
	}
	if l.run != nil {
		l.run.sort() // key order costs the store a quarter less than the log's
		for p := range l.run.newest() {
			key, value, deleted := l.run.record(p)
			if deleted {
				b.Delete(l.store, key)
				continue
			}
			b.Put(l.store, key, value)
			if l.index != nil {
				l.index(key, value, func(k []byte) { b.PutIndex(l.store, k) })
			}
		}
	}
	b.Position(l.store, pos)
	err := b.Commit()
	l.wipe = l.wipe && err != nil
	return err
}

// commitFiles writes records, index keys and position as a file each; Pebble takes all of them in at once.
func (l *Load) commitFiles(ctx context.Context, pos Position) (err error) {
	defer l.Close()
	if err := l.wipeFirst(); err != nil {
		return err
	}
	index, position := newRun(), newRun()
	defer index.free()
	defer position.free()
	l.run.sort()
	l.indexKeys(index)
	index.sort()
	position.add(nil, pos.encode(), false)
	files := l.p.db.newFiles()
	defer files.discard()
	if err := errors.Join(
		files.write(l.prefix(kindData), l.run), files.write(l.prefix(kindIndex), index), files.write(l.prefix(kindPosition), position),
	); err != nil {
		return fmt.Errorf("write files of store %s/%d: %w", l.p.names[l.store], l.p.id, err)
	}
	if err := l.p.db.room(ctx); err != nil {
		return err
	}
	return l.p.ingest(ctx, files)
}

func (l *Load) prefix(kind byte) []byte { return l.p.key(nil, kind, l.store, nil) }

func (l *Load) indexKeys(to *run) {
	if l.index == nil {
		return
	}
	for p := range l.run.newest() {
		if key, value, deleted := l.run.record(p); !deleted {
			l.index(key, value, func(k []byte) { to.add(k, nil, false) })
		}
	}
}

// wipeFirst removes everything of the store in a batch of its own. An empty store is left alone: files could not go
// below the batch's deletions, and would be merged.
func (l *Load) wipeFirst() error {
	if !l.wipe {
		return nil
	}
	empty, err := l.p.empty(l.store)
	if err != nil {
		return err
	}
	if !empty {
		b := l.p.Batch()
		b.Wipe(l.store)
		if err := b.Commit(); err != nil {
			return err
		}
	}
	l.wipe = false
	return nil
}

// empty reports that there is nothing of a store, no position either.
func (p *Partition) empty(store int) (bool, error) {
	for _, kind := range []byte{kindData, kindIndex, kindPosition} {
		it, err := p.iter(kind, store, nil, nil)
		if err != nil {
			return false, err
		}
		found := it.Valid()
		if err := it.Close(); err != nil || found {
			return false, err
		}
	}
	return true, nil
}

// ingest makes files part of the database.
func (p *Partition) ingest(ctx context.Context, files *files) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.superseded {
		return ErrSuperseded
	}
	if err := p.db.pebble.Ingest(ctx, files.names); err != nil {
		return fmt.Errorf("take files into the state of partition %d: %w", p.id, err)
	}
	files.names = nil
	return nil
}

// room waits while files lie over one another that are to be merged: a few more, and Pebble would stop everyone's writes.
func (db *DB) room(ctx context.Context) error {
	for db.pebble.Metrics().Levels[0].Sublevels >= mergeAt {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}
