package sink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
)

// watchLag keeps the group's lag known, of all partitions and from the first moment: also while ClickHouse is away and
// nobody is a member of the group yet. It asks with a client of its own, which joins no group.
func (s *Sink) watchLag(ctx context.Context) error {
	client, err := kgo.NewClient(kafka.Options(s.cfg.Kafka, s.log)...)
	if err != nil {
		return fmt.Errorf("sink of %s: %w", s.table.Name, err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for {
		lag, err := s.askLag(ctx, admin)
		if err == nil {
			s.behind.Store(lag)
		} else if ctx.Err() == nil {
			s.log.Debug("cannot tell the lag", "error", err)
		}
		select {
		case <-time.After(s.cfg.LagInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// askLag counts the offsets between what the group has committed, or the log's start, and the last stable offsets.
func (s *Sink) askLag(ctx context.Context, admin *kadm.Client) (lag int64, err error) {
	commits, err := admin.FetchOffsets(ctx, s.group())
	// A group that never had a member has committed nothing.
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return 0, fmt.Errorf("fetch committed offsets: %w", err)
	}
	starts, err := admin.ListStartOffsets(ctx, s.topic())
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("list first offsets: %w", err)
	}
	ends, err := admin.ListCommittedOffsets(ctx, s.topic())
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("list last offsets: %w", err)
	}
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(s.topic(), end.Partition)
		from := start.Offset
		if at, ok := commits.Lookup(s.topic(), end.Partition); ok && at.Err == nil {
			from = max(from, at.At)
		}
		lag += max(0, end.Offset-from)
	})
	return lag, nil
}

// lag is how many offsets of all partitions were not known to be in the table when last asked.
func (s *Sink) lag() float64 { return float64(s.behind.Load()) }

// age is for how long, in seconds, the oldest record held has waited since it was read. Before the sink can read, it is
// for how long there has been something to read.
func (s *Sink) age() float64 {
	oldest := int64(math.MaxInt64)
	if began := s.began.Load(); began != 0 && s.behind.Load() > 0 && !s.ready.Load() {
		oldest = began
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if since := w.since.Load(); since != 0 {
			oldest = min(oldest, since)
		}
	}
	if oldest == math.MaxInt64 {
		return 0
	}
	return time.Since(time.Unix(0, oldest)).Seconds()
}
