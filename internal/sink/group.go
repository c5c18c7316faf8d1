package sink

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// sessionTimeout is when Kafka gives a dead instance's partitions to others.
	sessionTimeout = 10 * time.Second
	// fetchBytes and partitionBytes bound what the client fetches ahead, by broker and partition.
	fetchBytes     = 8 << 20
	partitionBytes = 1 << 20
	// pollPause follows a poll that brought less than bigPoll bytes; it is a quarter of a short FlushInterval.
	pollPause = 250 * time.Millisecond
	bigPoll   = 1 << 20
)

func (s *Sink) groupOptions() []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumerGroup(s.group()),
		kgo.ConsumeTopics(s.topic()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(s.cfg.heartbeat),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers move the offset too; without them an idle partition would seem to lag for ever.
		kgo.KeepControlRecords(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(partitionBytes),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.DisableAutoCommit(),
		// Records are handed to workers before partitions can be taken away; afterwards a worker is stopped first.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnOffsetsFetched(s.onOffsets),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			s.release(s.workersOf(gone[s.topic()]), false)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
			s.abandon(s.workersOf(gone[s.topic()]))
		}),
	}
}

// consume hands polled records to the partitions' workers until ctx ends.
func (s *Sink) consume(ctx context.Context) error {
	for s.waitRoom(ctx) {
		fetches := s.client.PollRecords(ctx, maxPoll)
		fetches.EachError(func(_ string, partition int32, err error) {
			if ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
				s.log.Warn("read rows, will go on", "partition", partition, "error", err)
			}
		})
		polled := 0
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			s.mu.Lock()
			w := s.workers[p.Partition]
			s.mu.Unlock()
			if w != nil && len(p.Records) > 0 {
				polled += w.push(p.Records, time.Now(), p.HighWatermark)
			}
		})
		s.client.AllowRebalance()
		if polled < bigPoll {
			s.letGather(ctx)
		}
	}
	return nil
}

// letGather lets more records come before the next poll. The client asks a broker again only once its last answer was
// polled, and the broker answers with whatever is there: without a pause each transaction of those who write is fetched
// by itself, and what a fetch costs here is more than what its few rows do.
func (s *Sink) letGather(ctx context.Context) {
	select {
	case <-time.After(min(pollPause, s.cfg.FlushInterval/4)):
	case <-ctx.Done():
	}
}

// waitRoom waits until less than MaxBuffered is held; false when ctx has ended.
func (s *Sink) waitRoom(ctx context.Context) bool {
	for s.buffered.Load() >= int64(s.cfg.MaxBuffered) {
		select {
		case <-s.freed:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// free gives back room of n bytes.
func (s *Sink) free(n int) {
	s.buffered.Add(-int64(n))
	select {
	case s.freed <- struct{}{}:
	default:
	}
}

// onOffsets makes the workers of newly assigned partitions, with the batch an earlier owner may have left open.
func (s *Sink) onOffsets(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	add := func(partition int32, offset int64, metadata *string) {
		w := newWorker(s, partition, offset, deref(metadata))
		s.mu.Lock()
		defer s.mu.Unlock()
		// Offsets may be fetched again before anything was read; a worker that has begun knows better.
		if known := s.workers[partition]; known == nil || !known.begun() {
			s.workers[partition] = w
		}
	}
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				add(p.Partition, p.Offset, p.Metadata)
			}
		}
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			add(p.Partition, p.Offset, p.Metadata)
		}
	}
	return nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// workersOf are the workers of the partitions that have one.
func (s *Sink) workersOf(partitions []int32) []*worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*worker
	for _, p := range partitions {
		if w := s.workers[p]; w != nil {
			found = append(found, w)
		}
	}
	return found
}

func (s *Sink) allWorkers() []*worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.workers))
}

// release stops workers after the insert they are at; flush inserts what they hold, too. One that has not ended within
// HandOver is cut off: whoever owns the partition next finds out what became of its batch.
func (s *Sink) release(workers []*worker, flush bool) {
	for _, w := range workers {
		w.stop(flush)
	}
	timer := time.AfterFunc(s.cfg.HandOver, func() {
		for _, w := range workers {
			w.cancel()
		}
	})
	defer timer.Stop()
	s.join(workers)
}

// abandon cuts workers off at once: their partitions already belong to others, who refuse their commits.
func (s *Sink) abandon(workers []*worker) {
	for _, w := range workers {
		w.cancel()
		w.stop(false)
	}
	s.join(workers)
}

// join waits for workers to end and forgets them. Until then they stay known, so that whoever gives their partitions
// up meanwhile waits for them too: a commit after that would not be refused.
func (s *Sink) join(workers []*worker) {
	gone := make([]int32, 0, len(workers))
	for _, w := range workers {
		w.wait()
		gone = append(gone, w.partition)
		s.mu.Lock()
		if s.workers[w.partition] == w {
			delete(s.workers, w.partition)
		}
		s.mu.Unlock()
	}
	// The client would remember a pause when the partition comes back.
	s.client.ResumeFetchPartitions(map[string][]int32{s.topic(): gone})
}

func (s *Sink) stoppedPartitions() float64 {
	return s.sum(func(w *worker) float64 {
		if w.stuck.Load() {
			return 1
		}
		return 0
	})
}

func (s *Sink) sum(of func(*worker) float64) (total float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		total += of(w)
	}
	return total
}
