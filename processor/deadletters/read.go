package deadletters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Place is where a letter stands on `inbound.dead`.
type Place struct {
	Partition int32
	Offset    int64
}

// Letter is one that was read.
type Letter struct {
	*webhooksv1.DeadInbound
	At     Place
	Buried time.Time
	// Replayed is when it was last replayed, zero for never.
	Replayed time.Time
	// key is that of the letter's own record.
	key []byte
}

// Each gives fn the letters that a filter chooses and that were there when it was called, in the order of their
// partitions. It reads the topic twice, so that it knows what was replayed and yet holds one letter at a time.
//
// What it ends at is not the last stable offset, behind which a note may hide, but the end of the log: where a transaction
// is open, it waits for it. Those of the processor and of a replay end within seconds.
func Each(ctx context.Context, cluster kafka.Config, filter Filter, log *slog.Logger, fn func(*Letter) error) error {
	s, err := openSpan(ctx, cluster, filter.Since, log)
	if err != nil {
		return err
	}
	replayed := map[Place]time.Time{}
	err = s.each(ctx, func(at Place, _ *kgo.Record, m *webhooksv1.DeadInbound) error {
		if note := m.GetReplayed(); note != nil {
			at.Offset = note.Offset
			replayed[at] = time.UnixMilli(note.ReplayedUnixMs)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.each(ctx, func(at Place, r *kgo.Record, m *webhooksv1.DeadInbound) error {
		l := &Letter{DeadInbound: m, At: at, Buried: r.Timestamp, Replayed: replayed[at], key: r.Key}
		if m.BuriedUnixMs != 0 {
			l.Buried = time.UnixMilli(m.BuriedUnixMs)
		}
		if m.Replayed != nil || !filter.chooses(l) {
			return nil
		}
		return fn(l)
	})
}

// span is a part of `inbound.dead`, by partition.
type span struct {
	cluster   kafka.Config
	log       *slog.Logger
	from, end map[int32]int64
}

const (
	// reachable is how long a cluster may take to answer before there is none.
	reachable = 10 * time.Second
	// clockStep is by how much a letter's record may seem older than the letter.
	clockStep = time.Minute
	// quiet is how long nothing comes before it is looked whether anything will.
	quiet = time.Second
)

// openSpan is everything from a time on, or from the beginning, to what is the end now.
func openSpan(ctx context.Context, cluster kafka.Config, since time.Time, log *slog.Logger) (*span, error) {
	client, err := kgo.NewClient(kafka.Options(cluster, log)...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", cluster.Brokers, err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	adm, topic := kadm.NewClient(client), cluster.Topic(schemas.InboundDead)
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil && !since.IsZero() {
		starts, err = adm.ListOffsetsAfterMilli(ctx, since.Add(-clockStep).UnixMilli(), topic)
	}
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the beginning of %s at %v: %w", topic, cluster.Brokers, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the end of %s at %v: %w", topic, cluster.Brokers, err)
	}
	s := &span{cluster: cluster, log: log, from: map[int32]int64{}, end: map[int32]int64{}}
	starts.Each(func(o kadm.ListedOffset) { s.from[o.Partition] = o.Offset })
	ends.Each(func(o kadm.ListedOffset) { s.end[o.Partition] = o.Offset })
	return s, nil
}

// each gives fn what is committed, letters and notes. A record that is neither is told of and left out.
func (s *span) each(ctx context.Context, fn func(Place, *kgo.Record, *webhooksv1.DeadInbound) error) error {
	topic, at, next := s.cluster.Topic(schemas.InboundDead), map[int32]kgo.Offset{}, map[int32]int64{}
	for p, from := range s.from {
		if from < s.end[p] {
			at[p], next[p] = kgo.NewOffset().At(from), from
		}
	}
	if len(next) == 0 {
		return nil
	}
	client, err := kgo.NewClient(append(kafka.Options(s.cluster, s.log),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		// The last record before the end may be a marker.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		return fmt.Errorf("read %s: %w", topic, err)
	}
	defer client.Close()
	for len(next) > 0 {
		fetches, err := poll(ctx, client)
		if err != nil {
			return fmt.Errorf("read %s: %w", topic, err)
		}
		for r := range fetches.RecordsAll() {
			s.passed(next, r.Partition, r.Offset+1)
			if r.Attrs.IsControl() || r.Offset >= s.end[r.Partition] {
				continue
			}
			m := &webhooksv1.DeadInbound{}
			if err := proto.Unmarshal(r.Value, m); err != nil || m.Event == nil && m.Replayed == nil {
				s.log.Warn("not a dead letter", "topic", topic, "partition", r.Partition, "offset", r.Offset, "error", err)
				continue
			}
			if err := fn(Place{r.Partition, r.Offset}, r, m); err != nil {
				return err
			}
		}
		if fetches.NumRecords() == 0 {
			if err := s.look(ctx, client, next); err != nil {
				return err
			}
		}
	}
	return nil
}

// poll waits for records, not long: none is no error.
func poll(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	wait, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	fetches := client.PollFetches(wait)
	err := fetches.Err()
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return fetches, err
}

func (s *span) passed(next map[int32]int64, partition int32, offset int64) {
	if _, open := next[partition]; !open {
		return
	}
	if next[partition] = offset; offset >= s.end[partition] {
		delete(next, partition)
	}
}

// look finds the partitions where nothing more is to come: what is left there was aborted, or is no longer kept.
func (s *span) look(ctx context.Context, client *kgo.Client, next map[int32]int64) error {
	for p, from := range next {
		visible, _, err := kafka.NextVisible(ctx, client, s.cluster.Topic(schemas.InboundDead), p, from)
		if err != nil {
			return err
		}
		if visible >= s.end[p] {
			delete(next, p)
		}
	}
	return nil
}
