package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// fetched is the client's callback with what is committed for new partitions, before it fetches from them. Offsets are
// stable by then: no transaction of an earlier owner that holds one is open. Fetching waits until state is restored.
func (s *session) fetched(_ context.Context, client *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	l := letter{fetched: map[int32]fetched{}}
	var ids []int32
	for _, group := range resp.Groups {
		for _, topic := range group.Topics { // there is one
			for _, p := range topic.Partitions {
				if kerr.ErrorForCode(p.ErrorCode) != nil {
					continue // the client says so in a poll, and drops the partition
				}
				l.fetched[p.Partition] = fetched{position{p.Offset, p.LeaderEpoch}, s.inherit(p)}
				ids = append(ids, p.Partition)
			}
		}
	}
	client.PauseFetchPartitions(map[string][]int32{s.input: ids})
	s.mail.put(l)
	return nil
}

// inherit is what the commit that stands for a partition says to its next owner.
func (s *session) inherit(p kmsg.OffsetFetchResponseGroupTopicPartition) *webhooksv1.CommitMetadata {
	metadata := ""
	if p.Metadata != nil {
		metadata = *p.Metadata
	}
	meta, ours := decodeMetadata(metadata)
	if ours || p.Offset < 0 {
		return meta
	}
	s.log.Warn("offset was committed by another program; nothing beyond it is known to be done, all of it may have been started",
		"topic", s.input, "partition", p.Partition, "offset", p.Offset)
	return foreign(s.g.spec.Window)
}

// readMail does what has been asked of the loop. No transaction is open.
func (s *session) readMail() error {
	letters, yield := s.mail.take()
	if err := s.read(letters); err != nil || !yield {
		return err
	}
	if err := s.yield(); err != nil {
		return err
	}
	letters, again := s.mail.take()
	if again { // asked once more while the gate was shut again: next turn
		s.mail.blocked()
	}
	return s.read(letters)
}

func (s *session) read(letters []letter) error {
	gone := false
	for _, l := range letters {
		for _, id := range l.gone {
			gone = true
			if o := s.owned[id]; o != nil {
				s.log.Info("partition lost", "topic", s.input, "partition", id)
				s.give(o)
			}
		}
		if len(l.fetched) > 0 {
			if err := s.assign(l.fetched); err != nil {
				return err
			}
		}
		if o := l.restored; o != nil && s.owned[o.id] == o {
			if l.err != nil {
				return l.err
			}
			if err := s.started(o, l.start); err != nil {
				return err
			}
		}
	}
	if gone {
		return s.forgiveRevoked()
	}
	return nil
}

// assign takes partitions over: acquires their local state and has it restored beside the loop.
func (s *session) assign(parts map[int32]fetched) error {
	var fresh []*owned
	for id, f := range parts {
		if o := s.owned[id]; o != nil {
			s.give(o)
		}
		st, err := s.g.db.Acquire(id, s.g.spec.topics())
		if err != nil {
			return err
		}
		o := newOwned(s.hard, &s.g.spec, id, s.g.cfg.Kafka.Partitions, st, f.at, f.meta, s.mail.wake)
		o.paused, o.last, o.fetched = true, f.meta.GetTransaction(), position{-1, -1}
		s.owned[id] = o
		fresh = append(fresh, o)
	}
	s.g.metrics.restoring.Add(float64(len(fresh)))
	s.restores.Go(func() { s.restore(fresh) })
	return nil
}

// started runs the task of a restored partition. Without a committed offset it begins at the log's start, and there too
// when its next record is deleted.
func (s *session) started(o *owned, start int64) error {
	if at := o.track.next.offset; at < start {
		if at < 0 {
			if err := s.requireNew(o); err != nil {
				return err
			}
			s.log.Debug("no offset is committed; beginning at the log's start", "topic", s.input, "partition", o.id, "offset", start)
		} else {
			s.log.Error("input was deleted by retention before it was processed", "topic", s.input, "partition", o.id,
				"offset", at, "start", start)
		}
		o.track.restart(start)
	}
	if err := o.start(); err != nil {
		return &taskError{err}
	}
	s.g.metrics.restoring.Dec()
	s.g.metrics.partitions.Inc()
	s.told = false
	s.log.Debug("partition taken", "topic", s.input, "partition", o.id, "offset", o.track.next.offset)
	s.setPaused(o)
	return nil
}

// errForgotten ends a group whose offsets are gone while its state is not.
var errForgotten = errors.New("its committed offset is gone (they expire while a group is down, see offsets.retention.minutes, " +
	"or were deleted): with all processes of the group stopped, set it with kafka-consumer-groups.sh --reset-offsets " +
	"to where the group had been; --to-earliest does everything that is still in the log once more")

// requireNew refuses to begin at the log's start in a partition that the group has worked in before: all effects of the
// log would be had again. Every transaction that writes state commits an offset, so state without an offset tells.
func (s *session) requireNew(o *owned) error {
	for i := range o.spec.Stores {
		it, err := o.store.Scan(i, nil, nil)
		if err != nil {
			return err
		}
		found := it.Valid()
		if err := it.Close(); err != nil {
			return err
		}
		if found {
			return fmt.Errorf("group %s, %s/%d has state in %s: %w", s.g.name(), s.input, o.id,
				s.g.cfg.Kafka.Topic(o.spec.Stores[i].Topic), errForgotten)
		}
	}
	return nil
}

// give lets go of a partition as it is.
func (s *session) give(o *owned) {
	if o.task == nil {
		s.g.metrics.restoring.Dec()
	} else {
		s.g.metrics.partitions.Dec()
	}
	s.told = false
	s.dropBacklog(o)
	o.close()
	delete(s.owned, o.id)
}

// yield opens the gate for a rebalance. Partitions that the last sync took away are handed over first; before a sync
// nobody knows yet which these are, and nothing is lost by then.
func (s *session) yield() error {
	var leaving []*owned
	for _, o := range s.owned {
		if !s.mail.stays(o.id) {
			leaving = append(leaving, o)
		}
	}
	err := s.handOver(leaving)
	s.gts.AllowRebalance()
	s.gate() // returns when the rebalance's callbacks have run
	return err
}

// handOver drains tasks, commits what they hand over, and gives their partitions up.
func (s *session) handOver(parts []*owned) error {
	if len(parts) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.hard, s.g.drainTime())
	defer cancel()
	var tasks sync.WaitGroup
	running := parts[:0:0]
	for _, o := range parts {
		if o.task == nil {
			continue
		}
		running = append(running, o)
		tasks.Go(func() {
			o.task.Drain(ctx)
			o.clean = ctx.Err() == nil
		})
	}
	tasks.Wait()
	err := s.commitDrained(running)
	for _, o := range parts {
		if s.owned[o.id] == o {
			s.log.Debug("partition handed over", "topic", s.input, "partition", o.id,
				"offset", o.track.watermark().offset, "clean", o.clean && err == nil)
			s.give(o)
		}
	}
	return err
}

func (s *session) commitDrained(parts []*owned) error {
	for _, o := range parts {
		o.handover = true
		if err := o.advance(s.now()); err != nil {
			return &taskError{err}
		}
	}
	return s.commit()
}

// forgiveRevoked makes the session forget that partitions were revoked: it would abort the next transaction for it,
// though none was open, and, worse, not report the next revocation. An abort without a transaction does that. It also
// moves positions back to the last commit, so they are set again.
func (s *session) forgiveRevoked() error {
	if _, err := s.gts.End(s.hard, kgo.TryAbort); err != nil {
		return err
	}
	s.keepPositions()
	return nil
}
