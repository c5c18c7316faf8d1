package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// batch is the input of one transaction.
type batch struct {
	inputs int
	limit  int
	began  time.Time // zero until there is a record
	bytes  int       // of outputs
	closed bool
}

const (
	// busy is from how many inputs the last transaction is taken for throughput: then the next one waits for company
	// until BatchAge. Below, it closes as soon as nothing more is at hand, for latency.
	busy = 200
	// idlePoll bounds a poll with nothing to wait for.
	idlePoll = time.Second
	// maxBacklogRecords is how many records of a partition may wait in memory for room.
	maxBacklogRecords = 1000
	// maxBacklogBytes bounds what waits in a session, all its partitions together: beyond it, those that have a backlog are
	// polled no more. One poll may overshoot it by what the client holds, fetchBytes a broker. With three brokers that is
	// 32 + 3 × 16 = 80 MB of backlogs and 48 MB within the client, at most, however many partitions there are.
	//
	// That is of records that are not compressed, as the edge's are not. fetchBytes counts what lies on the log, and what our
	// own transactions write there is compressed with Snappy: an event by itself is three times as large in memory, many that
	// are alike, or a body of one byte again and again, up to twenty times. The client has no bound for that but smaller
	// fetches. Half as much (and 1 MiB a partition) took the peak of bench/processor from 550 to 340 MB. What that costs is not
	// known: the machine was too busy to tell a tenth of the CPU or of the events a second, so it is as it was.
	maxBacklogBytes = 32 << 20
	fetchBytes      = 16 << 20
)

// collect polls and processes until the batch closes: by count, size or age, or because nothing more is at hand.
func (s *session) collect(ctx context.Context, b *batch) error {
	if err := s.drainBacklogs(b); err != nil || b.closed {
		return err
	}
	for {
		n, err := s.poll(ctx, s.patience(b), b.limit-b.inputs)
		if err != nil {
			return err
		}
		if err := s.drainBacklogs(b); err != nil {
			return err
		}
		if n == 0 || b.closed || ctx.Err() != nil {
			return nil
		}
	}
}

// patience is how long the next poll may wait.
func (s *session) patience(b *batch) time.Duration {
	now := time.Now()
	if !b.began.IsZero() {
		if s.lastBatch < busy {
			return 0
		}
		return s.g.cfg.BatchAge - now.Sub(b.began)
	}
	wait := idlePoll
	for _, o := range s.owned {
		if o.task == nil {
			continue
		}
		if o.pending() { // a claim waits to be committed
			return 0
		}
		due, at := o.part.due(now)
		if due {
			at = now
		}
		if !at.IsZero() {
			// Results that come one by one share transactions.
			paced := max(at.Sub(now), s.g.cfg.WakePace-now.Sub(s.lastCommit))
			wait = min(wait, max(paced, 0))
		}
	}
	return wait
}

// poll takes records into the partitions' backlogs and says how many.
func (s *session) poll(ctx context.Context, wait time.Duration, limit int) (n int, err error) {
	pctx, done := s.mail.pollContext(ctx, wait)
	defer done()
	fetches := s.gts.PollRecords(pctx, max(limit, 1))
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if p.Err != nil {
			err = errors.Join(err, s.pollError(p))
		}
		o := s.owned[p.Partition]
		if o == nil || p.Topic != s.input || len(p.Records) == 0 {
			return
		}
		s.backlogBytes += o.take(p.Records)
		o.end = p.HighWatermark
		n += len(p.Records)
	})
	return n, err
}

// pollError tells what the loop must stop for. The rest the client mends itself.
func (s *session) pollError(p kgo.FetchTopicPartition) error {
	switch {
	case errors.Is(p.Err, context.Canceled), errors.Is(p.Err, context.DeadlineExceeded):
		return nil
	case errors.Is(p.Err, kgo.ErrClientClosed), incurable(p.Err):
		return fmt.Errorf("poll %s/%d: %w", p.Topic, p.Partition, p.Err)
	}
	if loss := (*kgo.ErrDataLoss)(nil); errors.As(p.Err, &loss) {
		s.log.Error("the cluster lost input records", "topic", p.Topic, "partition", p.Partition, "error", p.Err)
		return nil
	}
	// The client tries again, and reports each try: once in a while is enough, and what is new.
	if text := p.Err.Error(); text != s.complaint.text || time.Since(s.complaint.at) > 10*time.Second {
		s.complaint.text, s.complaint.at = text, time.Now()
		s.log.Warn("polling fails", "topic", p.Topic, "partition", p.Partition, "error", p.Err)
	}
	return nil
}

// take queues polled records and returns their size.
func (o *owned) take(records []*kgo.Record) (bytes int) {
	for _, r := range records {
		bytes += inputBytes(r)
	}
	o.backlog = append(o.backlog, records...)
	last := records[len(records)-1]
	o.fetched = position{last.Offset + 1, last.LeaderEpoch}
	return bytes
}

func inputBytes(r *kgo.Record) int {
	n := len(r.Value) + len(r.Key)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// drainBacklogs processes what is queued, as far as tasks and the batch have room, and stops the polling of partitions
// that have none.
func (s *session) drainBacklogs(b *batch) error {
	for _, o := range s.owned {
		if o.task != nil {
			if err := s.drainBacklog(o, b); err != nil {
				return &taskError{err}
			}
		}
	}
	for _, o := range s.owned { // now that it is known how much waits
		s.setPaused(o)
	}
	b.closed = b.closed || b.inputs >= b.limit || b.bytes >= s.g.cfg.BatchBytes ||
		!b.began.IsZero() && time.Since(b.began) >= s.g.cfg.BatchAge
	return nil
}

func (s *session) drainBacklog(o *owned, b *batch) error {
	taken, before, prefetched := 0, o.tx.bytes, false
	for ; taken < len(o.backlog); taken++ {
		r := o.backlog[taken]
		if r.Attrs.IsControl() {
			o.track.skip(r)
			s.backlogBytes -= inputBytes(r)
			continue
		}
		if b.inputs >= b.limit || b.bytes+o.tx.bytes-before >= s.g.cfg.BatchBytes || !o.mayTake() {
			break
		}
		if !prefetched {
			prefetched = true
			ahead := o.backlog[taken:min(len(o.backlog), taken+b.limit-b.inputs)]
			if err := o.prefetch(ahead, minPrefetch); err != nil {
				return err
			}
		}
		now := time.Now()
		if b.began.IsZero() {
			b.began = now
		}
		b.inputs++
		if err := o.process(r, now); err != nil {
			return err
		}
		s.backlogBytes -= inputBytes(r)
	}
	b.bytes += o.tx.bytes - before
	if taken > 0 {
		kept := copy(o.backlog, o.backlog[taken:])
		clear(o.backlog[kept:])
		o.backlog = o.backlog[:kept]
	}
	return nil
}

// mayTake reports that one more record may be processed in this transaction.
func (o *owned) mayTake() bool {
	if o.spec.Window > 0 && (!o.claimed || o.track.spent >= o.allowed) {
		return false
	}
	return !o.full()
}

// hasEnough reports that more of a partition would only wait in memory: its task has no room, too much waits, or the
// partition is paused already. Pausing drops what the client has fetched ahead, so it lasts until the backlog is used up.
func (o *owned) hasEnough(sessionBytes int) bool {
	return len(o.backlog) > 0 &&
		(o.paused || o.full() || len(o.backlog) >= maxBacklogRecords || sessionBytes >= maxBacklogBytes)
}

// setPaused keeps the client from fetching what could only be queued.
func (s *session) setPaused(o *owned) {
	pause := o.task == nil || o.hasEnough(s.backlogBytes)
	if pause == o.paused {
		return
	}
	o.paused = pause
	ids := map[string][]int32{s.input: {o.id}}
	if pause {
		s.client.PauseFetchPartitions(ids)
	} else {
		s.client.ResumeFetchPartitions(ids)
	}
}
