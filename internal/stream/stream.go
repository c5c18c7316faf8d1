// Package stream is the exactly-once runtime: consume → state → produce, one Kafka transaction a batch.
//
// A task group subscribes to exactly one topic. For each partition it is assigned, the runtime restores the
// partition's state stores from their changelog topics, makes a Task and feeds it the input records in order. What the
// task writes and emits collects in a Tx and becomes visible all together, with the input offset, or not at all.
//
// A task may finish a record later than the call that brought it (Tx.Track): the runtime commits the watermark below
// which everything is done and, in the offset's metadata, a bit for each unit done beyond it. No transaction is ever
// open while a task waits for the world.
//
// What it promises and how is in DESIGN.md beside this file.
package stream

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Spec says what a task group consumes, keeps and produces.
type Spec struct {
	// Group is the consumer group (without the topic prefix) and the name of its state folder.
	Group string
	// Input is the one topic it subscribes to (without the topic prefix).
	Input string
	// Stores are the partition's state; partition p is restored from partition p of each store's topic.
	Stores []StoreSpec
	// NewTask makes the logic of one assigned partition, after its state is restored. It may read that state, and call
	// Partition.Wake to be advanced before any record comes.
	NewTask func(*Partition) (Task, error)
	// Window bounds the units of work (Tx.Track) that may be unfinished beyond the watermark of a partition; 0 for
	// groups whose records are done when Process returns. At most MaxWindow.
	Window int
}

// MaxWindow keeps the bitset of a full window, encoded, below the 4,096 bytes that Kafka allows for offset metadata.
const MaxWindow = 16384

// StoreSpec is one key-value store whose changelog is a compacted topic, or one that drops records by age (ByAge); a
// public table may be one.
type StoreSpec struct {
	Topic string
	// ByAge says that a record means nothing to the task any more once the topic has dropped it for its age
	// (retention.ms). What was deleted while a local store was away, tombstone and all, is past its time there too: the
	// store is trusted however old it is. The task forgets what is over (Tx.ForgetBelow) when it starts.
	ByAge bool
	// Index derives local index keys from a record, or is nil. Index keys are never sent to Kafka; they are written
	// when the record is put, in the same batch. A key that a later put no longer derives is left behind: whoever scans
	// the index checks what it finds against the record, and drops what no longer holds with Tx.DropIndex.
	Index func(key, value []byte, put func(indexKey []byte))
	// IndexVersion is raised when Index derives other keys than before: local stores are then built anew.
	IndexVersion uint32
}

// Task is the logic of one partition. The runtime calls its methods from one goroutine at a time. An error returned
// from any of them is fatal to the session: a record that cannot be used must be dead-lettered by the task, not
// returned as an error.
type Task interface {
	// Process applies one input record. It is called in offset order. Unless it calls tx.Track, the record is done when
	// it returns. After an abort the records of the aborted transaction are given again, in order: what is still in
	// flight must be recognised (Track returns the Pending it returned before).
	Process(tx *Tx, in *kgo.Record) error
	// Advance brings in what the world has done since: results of asynchronous work, timers that are due. It is called
	// after Partition.Wake, when the time given to Partition.WakeAt has come, and before each commit.
	Advance(tx *Tx, now time.Time) error
	// Settled reports how the transaction that held the task's last calls ended. After a commit what Advance handed
	// over is durable and may be forgotten; after an abort it must be handed over again, in the call of Advance that
	// follows.
	Settled(committed bool)
	// Full reports that the task can take no more records now. The runtime then stops polling the partition until Wake.
	Full() bool
	// Close stops what the task has running: the partition now belongs to someone else, or the process ends.
	// Drain is called before it, when there is time.
	Close()
	// Drain stops taking new work and waits, at most until ctx ends, for what is in flight to hand over its results.
	Drain(ctx context.Context)
}

// Prefetcher is a Task that can tell from a record alone what Process will read. The runtime then reads it for many
// records at once, in key order, which costs a third of reading key by key. It is a hint: what was not named is read
// when it is asked for, and naming too much costs a read.
type Prefetcher interface {
	// Prefetch calls read for each key that Process will Get from a store. The key is kept.
	Prefetch(in *kgo.Record, read func(store string, key []byte))
}
