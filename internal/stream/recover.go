package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// lookBack finds out whether a transaction committed that did not end with a plain yes. If it did, state, positions
// and tasks follow. An error is fatal to the session: the next client begins from what Kafka has.
func (s *session) lookBack(parts []*owned, id uint64) (committed bool, err error) {
	ctx, cancel := context.WithTimeout(s.hard, 6*s.g.cfg.TransactionTimeout)
	defer cancel()
	if committed, err = s.outcome(ctx, parts, id); err != nil {
		return false, fmt.Errorf("find out how a transaction ended: %w", err)
	}
	if !committed {
		return false, nil
	}
	s.log.Info("a transaction whose answer was lost has committed")
	s.g.metrics.transactions[resultUnknown].Inc()
	if err := s.restoreNow(ctx, parts); err != nil {
		return false, fmt.Errorf("restore after a transaction whose answer was lost: %w", err)
	}
	for _, o := range parts {
		o.announced(id)
		o.settle(true)
	}
	s.progress = true
	s.keepPositions()
	return true, nil
}

// takeBack undoes what the transaction did in memory; its records are taken from the log again. The changelogs are
// read to their ends first, though nobody but this owner can have written to them: what the local state says from here
// on was checked against the log.
func (s *session) takeBack(parts []*owned) error {
	s.log.Info("transaction aborted; its work is done again")
	ctx, cancel := context.WithTimeout(s.hard, 6*s.g.cfg.TransactionTimeout)
	defer cancel()
	if err := s.restoreNow(ctx, parts); err != nil {
		return fmt.Errorf("restore after an aborted transaction: %w", err)
	}
	for _, o := range parts {
		o.settle(false)
	}
	s.rewind()
	return nil
}

// outcome reads it from the committed offsets' metadata, which name the transaction that wrote them.
func (s *session) outcome(ctx context.Context, parts []*owned, id uint64) (committed bool, err error) {
	names, err := s.lastTransactions(ctx, parts)
	if err != nil {
		return false, err
	}
	for _, o := range parts {
		switch names[o.id] {
		case id:
			committed = true // of all: a group's offsets are in one partition
		case o.last:
		default:
			return false, fmt.Errorf("partition %d was committed by another owner", o.id)
		}
	}
	return committed, nil
}

// lastTransactions reads which transaction committed last, by partition, once no transaction holds their offsets.
//
// Partitions are asked for by name. Asked for all of a group's offsets (as kadm asks) a broker says nothing of a
// partition whose first offset is still pending, and the transaction would be taken for aborted; asked by name it
// answers UNSTABLE_OFFSET_COMMIT.
func (s *session) lastTransactions(ctx context.Context, parts []*owned) (map[int32]uint64, error) {
	details, err := s.g.adm.ListTopics(ctx, s.input)
	if err == nil {
		err = details.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", s.input, err)
	}
	topic := kmsg.NewOffsetFetchRequestGroupTopic()
	topic.Topic, topic.TopicID = s.input, details[s.input].ID
	for _, o := range parts {
		topic.Partitions = append(topic.Partitions, o.id)
	}
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = s.g.name()
	group.Topics = append(group.Topics, topic)
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	req.Groups = append(req.Groups, group)
	for {
		names, err := s.fetchNames(ctx, req)
		if err == nil {
			return names, nil
		}
		if !errors.Is(err, kerr.UnstableOffsetCommit) && !kerr.IsRetriable(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *session) fetchNames(ctx context.Context, req *kmsg.OffsetFetchRequest) (map[int32]uint64, error) {
	resp, err := req.RequestWith(ctx, s.g.client)
	if err != nil {
		return nil, fmt.Errorf("fetch committed offsets: %w", err)
	}
	names := map[int32]uint64{}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, fmt.Errorf("fetch committed offsets: %w", err)
		}
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return nil, fmt.Errorf("fetch committed offset of partition %d: %w", p.Partition, err)
				}
				metadata := ""
				if p.Metadata != nil {
					metadata = *p.Metadata
				}
				meta, _ := decodeMetadata(metadata)
				names[p.Partition] = meta.GetTransaction()
			}
		}
	}
	if want := len(req.Groups[0].Topics[0].Partitions); len(names) != want {
		return nil, fmt.Errorf("fetch committed offsets: %d partitions answered of %d", len(names), want)
	}
	return names, nil
}

// rewind takes what was polled and not processed from the log again.
func (s *session) rewind() {
	for _, o := range s.owned {
		if o.task != nil {
			s.dropBacklog(o)
			o.fetched = o.track.next
		}
	}
	s.keepPositions()
}

func (s *session) dropBacklog(o *owned) {
	for _, r := range o.backlog {
		s.backlogBytes -= inputBytes(r)
	}
	clear(o.backlog)
	o.backlog = o.backlog[:0]
}

// keepPositions sets the client's positions behind what has been polled. Whenever a transaction does not commit it
// moves them back to what it holds for committed, which is what was polled by then.
func (s *session) keepPositions() {
	at := map[int32]kgo.EpochOffset{}
	for _, o := range s.owned {
		if o.fetched.offset >= 0 {
			at[o.id] = kgo.EpochOffset{Epoch: o.fetched.epoch, Offset: o.fetched.offset}
		}
	}
	s.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{s.input: at})
}
