package sink

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// maxLinger is how long the first batch of an INSERT waits for others; a twentieth of a short FlushInterval.
const maxLinger = 50 * time.Millisecond

// inserter sends the workers' batches. Workers flush at the same moment, and what comes together goes in one INSERT: a part
// costs the server far more than its few rows do. The part is in the table or is not, so that each worker learns from its
// own rows what became of its batch, without knowing of the others.
type inserter struct {
	sink    *Sink
	linger  time.Duration
	slots   *semaphore.Weighted
	waiting chan *insertRequest
}

// insertRequest is a batch that its worker has announced.
type insertRequest struct {
	partition int32
	in        intent
	rows      rows
	unit      int64
	bytes     int
	// ctx ends when the worker is cut off.
	ctx    context.Context
	result chan error
}

func newInserter(s *Sink) *inserter {
	return &inserter{
		sink: s, linger: min(maxLinger, s.cfg.FlushInterval/20),
		slots: semaphore.NewWeighted(int64(s.cfg.Inserts)), waiting: make(chan *insertRequest),
	}
}

// insert sends a worker's batch and waits for the answer. An error says nothing about whether it was written.
func (i *inserter) insert(w *worker, in intent) error {
	r := &insertRequest{
		partition: w.partition, in: in, rows: w.batch.rows, unit: w.batch.unit, bytes: w.batch.bytes,
		ctx: w.ctx, result: make(chan error, 1),
	}
	select {
	case i.waiting <- r:
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
	select {
	case err := <-r.result:
		return err
	case <-w.ctx.Done():
		// The INSERT goes on for the others, and may still read the rows.
		w.batch.rows = nil
		return w.ctx.Err()
	}
}

// run ends with ctx, when no worker is left and what is on its way has been answered.
func (i *inserter) run(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	var next *insertRequest
	for {
		first := next
		if first == nil {
			select {
			case first = <-i.waiting:
			case <-ctx.Done():
				return
			}
		}
		if i.slots.Acquire(ctx, 1) != nil {
			return
		}
		b := bundle{first}
		next = i.fill(&b)
		sending.Go(func() {
			defer i.slots.Release(1)
			b.answer(i.sink.insert(b))
		})
	}
}

// fill adds to the bundle what comes within linger and has room; it returns one that has none.
func (i *inserter) fill(b *bundle) *insertRequest {
	over := time.NewTimer(i.linger)
	defer over.Stop()
	for b.open(i.sink.cfg) {
		select {
		case r := <-i.waiting:
			if !b.takes(r, i.sink.cfg) {
				return r
			}
			*b = append(*b, r)
		case <-over.C:
			return nil
		}
	}
	return nil
}

// bundle is what one INSERT carries: batches of different partitions, together no larger than one may be.
type bundle []*insertRequest

// open reports that more could be added.
func (b bundle) open(cfg Config) bool {
	rows, bytes := b.size()
	return !b[0].again() && rows < cfg.MaxRows && bytes < cfg.MaxBytes
}

// takes reports that r may be added: it belongs to the same table partition, so that all is one part, and fits.
func (b bundle) takes(r *insertRequest, cfg Config) bool {
	rows, bytes := b.size()
	return !r.again() && r.unit == b[0].unit && rows+r.rows.len() <= cfg.MaxRows && bytes+r.bytes <= cfg.MaxBytes
}

// again reports that the batch was tried before. It goes alone: what the server does not take of one partition must not
// hold up the others.
func (r *insertRequest) again() bool { return r.in.try > 1 }

func (b bundle) size() (rows, bytes int) {
	for _, r := range b {
		rows, bytes = rows+r.rows.len(), bytes+r.bytes
	}
	return rows, bytes
}

// deadline is the earliest of the batches' own.
func (b bundle) deadline() int64 {
	deadline := b[0].in.deadline
	for _, r := range b {
		deadline = min(deadline, r.in.deadline)
	}
	return deadline
}

func (b bundle) rows() (all []rows) {
	for _, r := range b {
		all = append(all, r.rows)
	}
	return all
}

func (b bundle) answer(err error) {
	for _, r := range b {
		r.result <- err
	}
}

// token names the INSERT: it is its query id and its deduplication token. It names the partitions, each between slashes, so
// that whoever owns one of them next finds the INSERT; and then each one's batch and try, so that ClickHouse never takes
// other rows for these: of a Replacing table nothing announces a batch, and it may have grown when it comes again.
func (b bundle) token(topicID string) string {
	partitions, batches := "", make([]string, len(b))
	for i, r := range b {
		partitions += fmt.Sprintf("/%d", r.partition)
		batches[i] = fmt.Sprintf("%d-%d.%d", r.in.first, r.in.last, r.in.try)
	}
	return topicID + partitions + "/" + strings.Join(batches, ",")
}

// context ends at the deadline, and once all of the workers have been cut off.
func (b bundle) context(deadline time.Time) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	var gone atomic.Int32
	forget := make([]func() bool, len(b))
	for i, r := range b {
		forget[i] = context.AfterFunc(r.ctx, func() {
			if int(gone.Add(1)) == len(b) {
				cancel()
			}
		})
	}
	return ctx, func() {
		for _, f := range forget {
			f()
		}
		cancel()
	}
}
