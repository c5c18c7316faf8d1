package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// NextVisible is the first offset at or after from at which a partition has something for a read committed reader that
// keeps control records; when there is nothing, it is the last stable offset, which is returned too. topic is the full
// name.
//
// A client learns offsets from records. It cannot know that it is at the end of a log whose last records were
// compacted away, or belong to an aborted transaction whose marker was: only the raw answer tells "nothing is there"
// from "nothing came".
func NextVisible(ctx context.Context, client *kgo.Client, topic string, partition int32, from int64) (next, stable int64, err error) {
	topics, err := kadm.NewClient(client).ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find leader of %s/%d: %w", topic, partition, err)
	}
	found := topics[topic]
	for next = from; ; {
		fp, after, err := fetchOnce(ctx, client, found, partition, next)
		if err != nil {
			return 0, 0, fmt.Errorf("fetch %s/%d at %d: %w", topic, partition, next, err)
		}
		switch {
		case len(fp.Records) > 0:
			return fp.Records[0].Offset, fp.LastStableOffset, nil
		case after <= next:
			return max(next, fp.LastStableOffset), fp.LastStableOffset, nil
		}
		next = after
	}
}

// NextRecord is NextVisible for a reader that control records mean nothing to: the offset of the first record at or after
// from that is none, or the last stable offset.
func NextRecord(ctx context.Context, client *kgo.Client, topic string, partition int32, from int64) (int64, error) {
	topics, err := kadm.NewClient(client).ListTopics(ctx, topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("find leader of %s/%d: %w", topic, partition, err)
	}
	for next := from; ; {
		fp, after, err := fetchOnce(ctx, client, topics[topic], partition, next)
		if err != nil {
			return 0, fmt.Errorf("fetch %s/%d at %d: %w", topic, partition, next, err)
		}
		for _, r := range fp.Records {
			if !r.Attrs.IsControl() {
				return r.Offset, nil
			}
		}
		if after <= next {
			return max(next, fp.LastStableOffset), nil
		}
		next = after
	}
}

// fetchOnce fetches by hand; next is the position after what was returned.
func fetchOnce(ctx context.Context, client *kgo.Client, t kadm.TopicDetail, partition int32, from int64) (fp kgo.FetchPartition, next int64, err error) {
	part := kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes = partition, from, 1<<20
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = t.Topic, t.ID
	topic.Partitions = append(topic.Partitions, part)
	req := kmsg.NewPtrFetchRequest()
	req.IsolationLevel, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 1, 500, 1, 1<<20
	req.Topics = append(req.Topics, topic)
	kresp, err := client.Broker(int(t.Partitions[partition].Leader)).RetriableRequest(ctx, req)
	if err != nil {
		return fp, 0, err
	}
	resp := kresp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return fp, 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return fp, 0, errors.New("the answer does not have the partition")
	}
	fp, next = kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: t.Topic, Partition: partition,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return fp, next, fp.Err
}
