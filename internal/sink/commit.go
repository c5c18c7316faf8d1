package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commitTimeout bounds one commit request.
const commitTimeout = 10 * time.Second

// committer sends the workers' commits: those that come while one is under way go together in the next.
type committer struct {
	client  *kgo.Client
	topic   string
	waiting chan *commitRequest
}

type commitRequest struct {
	partition int32
	at        kgo.EpochOffset
	metadata  string
	result    chan error
}

func newCommitter(client *kgo.Client, topic string) *committer {
	return &committer{client: client, topic: topic, waiting: make(chan *commitRequest)}
}

// commit commits a partition's offset with metadata. It returns nil only when Kafka has taken it from a member of the
// group's present generation. After an error it may have been taken all the same, unless ctx ended before it was sent.
func (c *committer) commit(ctx context.Context, partition int32, offset int64, epoch int32, metadata string) error {
	r := &commitRequest{
		partition: partition, at: kgo.EpochOffset{Epoch: epoch, Offset: offset},
		metadata: metadata, result: make(chan error, 1),
	}
	select {
	case c.waiting <- r:
		// It is on its way: waiting for its end is what lets a partition be handed over safely.
		return <-r.result
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *committer) run(ctx context.Context) {
	for {
		var batch []*commitRequest
		select {
		case r := <-c.waiting:
			batch = append(batch, r)
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case r := <-c.waiting:
				batch = append(batch, r)
			default:
				more = false
			}
		}
		c.send(ctx, batch)
	}
}

func (c *committer) send(ctx context.Context, batch []*commitRequest) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	offsets := make(map[int32]kgo.EpochOffset, len(batch))
	metadata := make(map[int32]*string, len(batch))
	for _, r := range batch {
		offsets[r.partition] = r.at
		metadata[r.partition] = &r.metadata
	}
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		// A member that has been thrown out has no generation, and Kafka would take its commit into an empty group.
		if req.Generation < 0 {
			return errors.New("not a member of the group now")
		}
		for t := range req.Topics {
			for p := range req.Topics[t].Partitions {
				part := &req.Topics[t].Partitions[p]
				part.Metadata = metadata[part.Partition]
			}
		}
		return nil
	})
	results := make(map[int32]error, len(batch))
	var failed error
	c.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{c.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if err != nil {
				failed = err
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					results[p.Partition] = kerr.ErrorForCode(p.ErrorCode)
				}
			}
		})
	for _, r := range batch {
		err, answered := results[r.partition]
		switch {
		case failed != nil:
			err = failed
		case !answered:
			err = errors.New("no answer for the partition")
		}
		if err != nil {
			err = fmt.Errorf("commit offset %d: %w", r.at.Offset, err)
		}
		r.result <- err
	}
}
