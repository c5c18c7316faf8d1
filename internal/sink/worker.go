package sink

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recordOverhead is what a record costs in memory beyond its key and value, roughly.
const recordOverhead = 200

// worker takes one partition, for as long as it is assigned, from its committed offset to its end. Its goroutine starts
// with the first records.
type worker struct {
	sink      *Sink
	partition int32

	// ctx ends when the worker is cut off: whatever it does then fails.
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	queue []*kgo.Record
	// polls are those whose records are not all in the table, oldest first; end is that of the partition at the newest.
	polls []poll
	end   int64
	// started says that run is on its way; ended is closed when it has returned.
	started bool
	ended   chan struct{}
	// more is signalled when queue has grown; stopping is closed by stop.
	more     chan struct{}
	stopping chan struct{}
	flush    bool

	// next is the offset after what is in the table; since when the oldest record held came (Unix ns), 0 = none is
	// held, for metrics.
	next, since atomic.Int64
	// stuck says that the partition was stopped.
	stuck atomic.Bool

	// Below belong to run.

	// metadata was committed with the offset by an earlier owner; rows up to skipTo are in the table.
	metadata string
	skipTo   int64
	// tries is how often the records at next were tried before, by whomever.
	tries uint32
	// committed is the offset last committed; -1 = none.
	committed int64
	// epoch is the leader epoch of the record before next.
	epoch int32
	batch batch
}

// poll is when the records up to offset last came.
type poll struct {
	last int64
	came time.Time
}

// batch is a run of records [first..last] and their rows.
type batch struct {
	rows        rows
	first, last int64
	epoch       int32
	unit        int64
	bytes       int
}

func newWorker(s *Sink, partition int32, committed int64, metadata string) *worker {
	w := &worker{
		sink: s, partition: partition, committed: committed, metadata: metadata, epoch: -1, skipTo: -1,
		ended: make(chan struct{}), more: make(chan struct{}, 1), stopping: make(chan struct{}),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.next.Store(committed)
	w.batch.last = -1
	return w
}

// push hands over records that just came, in order, and the end of their partition, and says how many bytes they take. It
// never blocks; the caller keeps to MaxBuffered.
func (w *worker) push(records []*kgo.Record, came time.Time, end int64) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stuck.Load() {
		return 0
	}
	for _, r := range records {
		n += size(r)
	}
	w.sink.buffered.Add(int64(n))
	w.queue = append(w.queue, records...)
	w.polls = append(w.polls, poll{last: records[len(records)-1].Offset, came: came})
	w.end = end
	w.since.CompareAndSwap(0, came.UnixNano())
	if !w.started {
		w.started = true
		go w.run()
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
	return n
}

func size(r *kgo.Record) int { return len(r.Key) + len(r.Value) + recordOverhead }

func (w *worker) begun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.started
}

// stop asks the worker to end after the insert it is at; with flush, after inserting what it holds.
func (w *worker) stop(flush bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush = w.flush || flush
	select {
	case <-w.stopping:
	default:
		close(w.stopping)
	}
}

// wait returns when the worker has ended and will not commit any more.
func (w *worker) wait() {
	w.mu.Lock()
	started := w.started
	// One that never started never will: its partition is given up.
	w.started = true
	w.mu.Unlock()
	if started {
		<-w.ended
	}
	w.cancel()
}

// run is the worker's life.
func (w *worker) run() {
	defer close(w.ended)
	defer w.dropQueue()
	if !w.settle() {
		return
	}
	for {
		if !w.gather() {
			return
		}
		if w.batch.empty() {
			w.reset()
			// What an earlier owner had inserted was passed over without a batch.
			w.settlePolls()
			if w.isStopping() {
				break
			}
			w.commitDone()
			continue
		}
		if w.isStopping() && !w.flushing() {
			break
		}
		if !w.store() {
			return
		}
	}
	w.commitDone()
}

// flushing reports that a stopping worker inserts what it holds. It is asked only after isStopping.
func (w *worker) flushing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush
}

func (b *batch) empty() bool { return b.last < b.first }

// gather fills the batch until it is full, it is time to flush, the next record belongs to another table partition,
// or the worker is to stop. It comes back with nothing when nothing came; false when the worker has to end.
func (w *worker) gather() bool {
	w.batch.rows = w.sink.pool.Get().(rows)
	interval := time.NewTimer(w.sink.untilFlush())
	defer interval.Stop()
	for !w.full() {
		r := w.peek()
		switch {
		case r == nil:
			if w.isStopping() || !w.await(interval.C) {
				return true
			}
		case w.backwards(r.Offset):
			w.stopPartition("the log begins again before what was read: it has lost its newest records, and nobody knows which rows of "+
				"the table are theirs. Delete the rows with this src_topic, src_part and an src_offset of the log's end or more from "+
				"the table, commit the log's end without metadata, and restart", "offset", r.Offset, "committed", w.committed)
			return false
		case r.Offset <= w.skipTo:
			w.pop()
			w.sink.free(size(r))
		case !w.take(r):
			return true
		default:
			w.pop()
		}
	}
	return true
}

// backwards reports that a plain table's offset comes again, because the client found the committed one to be outside
// the log and began at its start: its record may have a row.
func (w *worker) backwards(offset int64) bool {
	return !w.sink.table.replacing && offset < max(w.committed, w.batch.last+1)
}

// await waits for more records; false when it is time to go on without.
func (w *worker) await(interval <-chan time.Time) bool {
	select {
	case <-w.more:
		return true
	case <-w.stopping:
		return true
	case <-interval:
		return false
	}
}

// reset empties the batch. Buffers are shared by the sink's workers: after a backlog each would keep its own at full size.
func (w *worker) reset() {
	if w.batch.rows != nil {
		w.batch.rows.reset()
		w.sink.pool.Put(w.batch.rows)
	}
	w.sink.free(w.batch.bytes)
	w.batch = batch{last: -1}
}

func (w *worker) full() bool {
	return w.batch.rows.len() >= w.sink.cfg.MaxRows || w.batch.bytes >= w.sink.cfg.MaxBytes
}

func (w *worker) peek() *kgo.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil
	}
	return w.queue[0]
}

// take adds a record to the batch; false when it belongs to another table partition than the batch's rows. A record
// that cannot be decoded has no row: it must not block those behind it.
func (w *worker) take(r *kgo.Record) bool {
	b := &w.batch
	if !r.Attrs.IsControl() {
		unit, err := b.rows.decode(r.Value)
		switch {
		case err != nil:
			w.sink.metrics.dead.Inc()
			w.sink.log.Error("record has no row: it cannot be decoded", "topic", w.sink.topic(), "partition", w.partition,
				"offset", r.Offset, "error", err)
		case b.rows.len() > 0 && unit != b.unit:
			return false
		default:
			b.unit = unit
			b.rows.append(w.partition, r.Offset)
		}
	}
	if b.empty() {
		b.first = r.Offset
	}
	b.last, b.epoch = r.Offset, r.LeaderEpoch
	b.bytes += size(r)
	return true
}

// pop removes the head of the queue.
func (w *worker) pop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue[0] = nil
	w.queue = w.queue[1:]
}

// done moves past the batch.
func (w *worker) done() {
	w.next.Store(w.batch.last + 1)
	w.epoch = w.batch.epoch
	w.reset()
	w.settlePolls()
}

// settlePolls forgets the polls whose records are all in the table: the oldest record held came with the first of the rest.
func (w *worker) settlePolls() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.polls) > 0 && w.polls[0].last < w.next.Load() {
		w.polls = w.polls[1:]
	}
	if len(w.polls) == 0 {
		w.since.Store(0)
		return
	}
	w.since.Store(w.polls[0].came.UnixNano())
}

// dropQueue gives back the room of what was not inserted; it is read again by the partition's next owner.
func (w *worker) dropQueue() {
	w.reset()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.queue {
		w.sink.free(size(r))
	}
	w.queue, w.polls = nil, nil
	w.since.Store(0)
}

func (w *worker) isStopping() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// pause waits, unless the worker is cut off or asked to stop; false when it was.
func (w *worker) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-w.stopping:
		return false
	case <-w.ctx.Done():
		return false
	}
}
