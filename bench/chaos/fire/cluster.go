package fire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/betterdata/webhooks/internal/kafka"
)

// Cluster is Kafka as it is seen from outside.
type Cluster struct {
	kafka.Config
	Admin *kadm.Client

	client *kgo.Client
}

// NewCluster makes a client that asks.
func NewCluster(cfg kafka.Config) (*Cluster, error) {
	client, err := kgo.NewClient(kafka.Options(cfg, slog.New(slog.DiscardHandler))...)
	if err != nil {
		return nil, err
	}
	return &Cluster{Config: cfg, Admin: kadm.NewClient(client), client: client}, nil
}

// Close ends the client.
func (c *Cluster) Close() { c.client.Close() }

// Read gives fn the records of a partition from an offset to what is its end now, until fn returns false. A read committed
// reader is given what is committed.
func (c *Cluster) Read(
	ctx context.Context, level kgo.IsolationLevel, topic string, partition int32, from int64, fn func(*kgo.Record) bool,
) error {
	full := c.Topic(topic)
	client, err := kgo.NewClient(append(kafka.Options(c.Config, slog.New(slog.DiscardHandler)),
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

// ReadAll is Read of a whole partition, committed, into memory.
func (c *Cluster) ReadAll(ctx context.Context, topic string, partition int32) (all []*kgo.Record, err error) {
	err = c.Read(ctx, kgo.ReadCommitted(), topic, partition, 0, func(r *kgo.Record) bool {
		all = append(all, r)
		return true
	})
	return all, err
}

// Tail reads topics from their beginning until ctx ends. fn is told the topic without its prefix.
func (c *Cluster) Tail(
	ctx context.Context, level kgo.IsolationLevel, fn func(topic string, r *kgo.Record, now time.Time), topics ...string,
) error {
	names := map[string]string{}
	var full []string
	for _, topic := range topics {
		names[c.Topic(topic)] = topic
		full = append(full, c.Topic(topic))
	}
	client, err := kgo.NewClient(append(kafka.Options(c.Config, slog.New(slog.DiscardHandler)),
		kgo.ConsumeTopics(full...), kgo.FetchIsolationLevel(level), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(50*time.Millisecond))...)
	if err != nil {
		return fmt.Errorf("watch %v: %w", topics, err)
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) { fn(names[r.Topic], r, now) })
	}
	return nil
}

// members are the instance ids of a group's members.
func (c *Cluster) members(ctx context.Context, group string) (ids []string, err error) {
	name := c.Topic(group)
	described, err := c.Admin.DescribeGroups(ctx, name)
	if err == nil {
		err = described[name].Err
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the members of %s: %w", group, err)
	}
	for _, m := range described[name].Members {
		if m.InstanceID != nil {
			ids = append(ids, *m.InstanceID)
		}
	}
	return ids, nil
}

// Assembled says which of the herd's groups does not have every instance for a member.
func (c *Cluster) Assembled(ctx context.Context, h *Herd) (string, error) {
	for _, group := range h.Groups {
		members, err := c.members(ctx, group)
		if err != nil {
			return "", err
		}
		if len(members) != h.Size() {
			return fmt.Sprintf("group %s has %d members of %d", group, len(members), h.Size()), nil
		}
	}
	return "", nil
}

// OpenTransaction reports whether a producer's transaction is open, and the producer's id.
func (c *Cluster) OpenTransaction(ctx context.Context, transactionalID string) (open bool, producer int64, err error) {
	described, err := c.Admin.DescribeTransactions(ctx, transactionalID)
	if err != nil {
		return false, 0, fmt.Errorf("ask for the transaction of %s: %w", transactionalID, err)
	}
	transaction := described[transactionalID]
	if transaction.Err != nil && !errors.Is(transaction.Err, kerr.TransactionalIDNotFound) {
		return false, 0, fmt.Errorf("ask for the transaction of %s: %w", transactionalID, transaction.Err)
	}
	return transaction.State == "Ongoing", transaction.ProducerID, nil
}

// offsetsTopic is where the coordinators of groups keep what they know.
const offsetsTopic = "__consumer_offsets"

// groupMetadata is the version of the keys under which they keep a group.
const groupMetadata = 2

// Rebalances are the groups' last generations.
func (c *Cluster) Rebalances(ctx context.Context, groups []string) (map[string]int32, error) {
	topics, err := c.Admin.ListTopicsWithInternal(ctx, offsetsTopic)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", offsetsTopic, err)
	}
	of := map[string]int32{}
	whole := *c
	whole.TopicPrefix = ""
	for p := range topics[offsetsTopic].Partitions {
		err := whole.Read(ctx, kgo.ReadCommitted(), offsetsTopic, p, 0, func(r *kgo.Record) bool {
			var key kmsg.GroupMetadataKey
			var value kmsg.GroupMetadataValue
			if key.ReadFrom(r.Key) != nil || key.Version != groupMetadata || value.ReadFrom(r.Value) != nil {
				return true
			}
			if name, ours := strings.CutPrefix(key.Group, c.TopicPrefix); ours && slices.Contains(groups, name) {
				of[name] = max(of[name], value.Generation)
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return of, nil
}
