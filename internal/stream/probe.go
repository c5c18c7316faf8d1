package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// stalled is how long a tail may stand still before it is asked why.
const stalled = 2 * time.Second

// probe asks the cluster why nothing comes between a tail's position and its target. Three answers:
//   - the last stable offset is below the target: a transaction is open there, and is waited for; the cluster ends it
//     after its time-out;
//   - the log now ends below the target: it was truncated, and the target with it;
//   - a fetch from the position gets nothing though the stable log goes on: all that was there is compacted away, and
//     the client, which learns offsets from records, cannot know it. The position is at the end then.
func (r *restore) probe(ctx context.Context, t *tail) error {
	ends, err := r.g.adm.ListEndOffsets(ctx, t.topic)
	if err != nil {
		return fmt.Errorf("list end offsets of %s: %w", t.topic, err)
	}
	if end, ok := ends.Lookup(t.topic, t.o.id); ok && end.Err == nil && end.Offset < t.target {
		r.log.Warn("changelog was truncated while it was read", "topic", t.topic, "partition", t.o.id, "end", end.Offset)
		t.target = end.Offset
	}
	next, stable, err := r.fetchOnce(ctx, t)
	if err != nil {
		return err
	}
	if stable < t.target {
		r.log.Info("waiting for an open transaction on a changelog", "topic", t.topic, "partition", t.o.id,
			"offset", t.from.offset, "stable", stable, "target", t.target)
		return nil
	}
	if next == t.from.offset {
		t.from.offset = t.target
	}
	return nil
}

// fetchOnce fetches from a tail's position, by hand: only the raw answer tells "nothing is there" from "nothing came".
// next is the position after what was returned.
func (r *restore) fetchOnce(ctx context.Context, t *tail) (next, stable int64, err error) {
	topics, err := r.g.adm.ListTopics(ctx, t.topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find leader of %s/%d: %w", t.topic, t.o.id, err)
	}
	part := kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = t.o.id, t.from.offset, 1<<20
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = t.topic, topics[t.topic].ID
	topic.Partitions = append(topic.Partitions, part)
	req := kmsg.NewPtrFetchRequest()
	req.IsolationLevel, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 1, 500, 1, 1<<20
	req.Topics = append(req.Topics, topic)
	leader := topics[t.topic].Partitions[t.o.id].Leader
	kresp, err := r.g.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return 0, 0, fmt.Errorf("fetch %s/%d: %w", t.topic, t.o.id, err)
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return 0, 0, fmt.Errorf("fetch %s/%d: %w", t.topic, t.o.id, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, 0, fmt.Errorf("fetch %s/%d: the answer does not have it", t.topic, t.o.id)
	}
	fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: t.from.offset, IsolationLevel: kgo.ReadCommitted(), Topic: t.topic, Partition: t.o.id,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	if fp.Err != nil {
		return 0, 0, fmt.Errorf("fetch %s/%d: %w", t.topic, t.o.id, fp.Err)
	}
	return next, fp.LastStableOffset, nil
}
