package table

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/store"
)

// sayEvery is how often the log says that the topic is still not found.
const sayEvery = 30 * time.Second

// freshenEvery is how often an idle copy proves to itself that it is current; it bounds how coarse Age is.
const freshenEvery = time.Second

// openWait is how long the barrier waits for transactions that are open. Ours last 25 ms; markers follow their end at
// once on a healthy cluster.
const openWait = time.Second

// stalled is how long a position may stand still before the partition is asked whether anything is left to read.
const stalled = time.Second

// latestOffset asks ListOffsets for the end of the log; read committed, that is the last stable offset (KIP-98).
const (
	latestOffset         = -1
	readUncommitted int8 = 0
	readCommitted   int8 = 1
)

// place is the topic as it stands on the cluster.
type place struct {
	id     [16]byte
	starts []int64
	// ends are high watermarks: no committed position lies beyond them.
	ends []int64
}

// locate finds the topic, trying until ctx ends: reads go on answering from what an earlier process left.
func (c *Copy) locate(ctx context.Context) (*place, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 2*time.Second
	var said time.Time
	return backoff.Retry(ctx, func() (*place, error) { return c.look(ctx) },
		backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if time.Since(said) >= sayEvery {
				said = time.Now()
				c.log.Warn("the table's topic is not found yet; will go on trying", "error", err)
			}
		}))
}

func (c *Copy) look(ctx context.Context) (*place, error) {
	admin, topic := kadm.NewClient(c.client), c.topic()
	topics, err := admin.ListTopics(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("find topic %s: %w", topic, err)
	}
	found := topics[topic]
	if found.Err != nil {
		return nil, fmt.Errorf("find topic %s: %w", topic, found.Err)
	}
	n := len(found.Partitions)
	at := &place{id: found.ID, starts: make([]int64, n), ends: make([]int64, n)}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list first offsets of %s: %w", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list last offsets of %s: %w", topic, err)
	}
	for p := range n {
		start, okStart := starts.Lookup(topic, int32(p))
		end, okEnd := ends.Lookup(topic, int32(p))
		if !okStart || !okEnd {
			return nil, fmt.Errorf("partition %d of %s has no offsets", p, topic)
		}
		at.starts[p], at.ends[p] = start.Offset, end.Offset
	}
	return at, nil
}

// WaitCurrent is the read barrier: it returns once the copy holds every change of the routing key's partition whose
// transaction had ended when it was called.
//
// Kafka acknowledges the end of a transaction before its markers are written, partition by partition; until then the
// last stable offset stands before a change that was already answered. So the barrier is the last stable offset, and,
// for as long as openWait at most, the end of the log: a transaction still open then is one whose writer is slow or
// dead, and nobody has been told that it ended.
func (c *Copy) WaitCurrent(ctx context.Context, routingKey string) error {
	if err := c.waitPlace(ctx); err != nil {
		return err
	}
	return c.waitCurrent(ctx, kafka.PartitionOf(routingKey, int32(len(c.place.Load().starts))))
}

// WaitAllCurrent is the read barrier of every partition, for a read that no routing key bounds.
func (c *Copy) WaitAllCurrent(ctx context.Context) error {
	if err := c.waitPlace(ctx); err != nil {
		return err
	}
	return c.waitCurrent(ctx, c.allPartitions()...)
}

// waitPlace waits until the position of the copy is known.
func (c *Copy) waitPlace(ctx context.Context) error {
	return c.Wait(ctx, func() (bool, error) { return c.place.Load() != nil, nil })
}

func (c *Copy) waitCurrent(ctx context.Context, partitions ...int32) error {
	var stable, end map[int32]int64
	ask, asking := errgroup.WithContext(ctx)
	ask.Go(func() (err error) { stable, err = c.lastOffsets(asking, readCommitted, partitions...); return err })
	ask.Go(func() (err error) { end, err = c.lastOffsets(asking, readUncommitted, partitions...); return err })
	if err := ask.Wait(); err != nil {
		return fmt.Errorf("read barrier of %s, partitions %v: %w", c.cfg.Topic, partitions, err)
	}
	bounded, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	if c.waitReached(bounded, end) == nil {
		return nil
	}
	return c.waitReached(ctx, stable)
}

func (c *Copy) allPartitions() []int32 {
	all := make([]int32, len(c.place.Load().starts))
	for p := range all {
		all[p] = int32(p)
	}
	return all
}

// Wait returns once cond does, asking it again after each batch applied; its error ends the wait.
func (c *Copy) Wait(ctx context.Context, cond func() (bool, error)) error {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if ok, err := cond(); err != nil || ok {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for table %s: %w", c.cfg.Topic, ctx.Err())
		}
	}
}

// Age is for how long the copy may have missed changes; before it has first caught up, a day.
func (c *Copy) Age() time.Duration {
	fresh := c.freshTime()
	if fresh.IsZero() {
		return 24 * time.Hour
	}
	return max(0, time.Since(fresh))
}

// freshTime is the newest time at which the copy is known to have held all that was committed; zero when none is.
func (c *Copy) freshTime() time.Time {
	fresh := c.fresh.Load()
	if fresh == 0 {
		return time.Time{}
	}
	return time.Unix(0, fresh)
}

// keepFresh records, about once a second, that the copy has reached all that was committed a moment ago. It returns
// an error when the copy was cut off for so long that tombstones may have passed it by.
func (c *Copy) keepFresh(ctx context.Context) error {
	all := c.allPartitions()
	for {
		asked := time.Now()
		stable, err := c.lastOffsets(ctx, readCommitted, all...)
		if err == nil {
			err = c.catchUp(ctx, stable)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && c.fresh.Load() != 0 && asked.Sub(c.freshTime()) > store.MaxAge:
			return errors.Join(errors.New("cut off from Kafka for too long; the copy is rebuilt at the next start"), c.local.disown())
		case err != nil:
			c.log.Debug("cannot tell whether the table is current", "error", err)
		case c.fresh.Swap(asked.UnixNano()) == 0:
			c.log.Info("table copy is current")
		}
		select {
		case <-time.After(freshenEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

// catchUp waits as waitReached does, and passes what the log holds but shows to no reader.
func (c *Copy) catchUp(ctx context.Context, stable map[int32]int64) error {
	for {
		c.mu.Lock()
		before := slices.Clone(c.reached)
		c.mu.Unlock()
		bounded, cancel := context.WithTimeout(ctx, stalled)
		err := c.waitReached(bounded, stable)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		for p, end := range stable {
			if before[p] >= end {
				continue
			}
			if err := c.passHidden(ctx, p, before[p]); err != nil {
				return err
			}
		}
	}
}

// passHidden moves a partition's position to where the next record is, when it still stands at from. It is not
// written: the next start finds out again.
func (c *Copy) passHidden(ctx context.Context, partition int32, from int64) error {
	next, _, err := kafka.NextVisible(ctx, c.client, c.topic(), partition, from)
	if err != nil {
		return err
	}
	c.mu.Lock()
	moved := c.reached[partition] == from && next > from
	if moved {
		c.reached[partition] = next
	}
	c.mu.Unlock()
	if moved {
		c.announce()
	}
	return nil
}

func (c *Copy) waitReached(ctx context.Context, stable map[int32]int64) error {
	return c.Wait(ctx, func() (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for p, offset := range stable {
			if c.reached[p] < offset {
				return false, nil
			}
		}
		return true, nil
	})
}

// lastOffsets asks the partitions' leaders for their last stable offsets, or the ends of their logs.
func (c *Copy) lastOffsets(ctx context.Context, isolation int8, partitions ...int32) (map[int32]int64, error) {
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = c.topic()
	for _, p := range partitions {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = p, latestOffset
		topic.Partitions = append(topic.Partitions, part)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel = -1, isolation
	req.Topics = append(req.Topics, topic)

	offsets := make(map[int32]int64, len(partitions))
	for _, shard := range c.client.RequestSharded(ctx, req) {
		if shard.Err != nil {
			return nil, fmt.Errorf("list last offsets: %w", shard.Err)
		}
		for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return nil, fmt.Errorf("list last offset of partition %d: %w", p.Partition, err)
				}
				offsets[p.Partition] = p.Offset
			}
		}
	}
	if len(offsets) != len(partitions) {
		return nil, fmt.Errorf("list last offsets: %d of %d partitions answered", len(offsets), len(partitions))
	}
	return offsets, nil
}

// announce wakes everyone who waits for a change.
func (c *Copy) announce() {
	c.mu.Lock()
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
}
