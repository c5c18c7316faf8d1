package siege

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

// read gives fn the records of a partition from an offset to what is its end now, until fn returns false. A read committed
// reader is given what is committed.
func read(
	ctx context.Context, cluster kafka.Config, level kgo.IsolationLevel, topic string, partition int32, from int64, fn func(*kgo.Record) bool,
) error {
	full := cluster.Topic(topic)
	client, err := kgo.NewClient(append(kafka.Options(cluster, slog.New(slog.DiscardHandler)),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{full: {partition: kgo.NewOffset().At(from)}}),
		// The last record before the end may be a marker.
		kgo.FetchIsolationLevel(level), kgo.KeepControlRecords(), kgo.FetchMaxPartitionBytes(8<<20))...)
	if err != nil {
		return fmt.Errorf("read %s/%d: %w", topic, partition, err)
	}
	defer client.Close()
	list := kadm.NewClient(client).ListEndOffsets
	if level == kgo.ReadCommitted() {
		list = kadm.NewClient(client).ListCommittedOffsets
	}
	ends, err := list(ctx, full)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("find the end of %s/%d: %w", topic, partition, err)
	}
	end, _ := ends.Lookup(full, partition)
	for next := from; next < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s/%d: %w", topic, partition, err)
		}
		for r := range fetches.RecordsAll() {
			if next = r.Offset + 1; r.Offset < end.Offset && !r.Attrs.IsControl() && !fn(r) {
				return nil
			}
		}
	}
	return nil
}

// readAll is read of a whole partition, committed, into memory.
func readAll(ctx context.Context, cluster kafka.Config, topic string, partition int32) (all []*kgo.Record, err error) {
	err = read(ctx, cluster, kgo.ReadCommitted(), topic, partition, 0, func(r *kgo.Record) bool {
		all = append(all, r)
		return true
	})
	return all, err
}

// isTimers reports that an event of `events` was caused by a timer.
func isTimers(r *kgo.Record) bool {
	return kafka.ReadHeader(r.Headers, schemas.HeaderCauseSource) == billing.TimerSource
}

// numberOf is an organization's number by its name, also of one that its account was moved to.
func numberOf(name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, "org_")
	digits, _, _ = strings.Cut(digits, "-")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil
}
