package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// recover finds out how a transaction ended that did not end with a plain yes, makes state, positions and tasks
// follow, and lets the loop go on. An error is fatal to the session: the next client begins from what Kafka has.
func (s *session) recover(parts []*owned, id uint64) (result string, err error) {
	ctx, cancel := context.WithTimeout(s.hard, 6*s.g.cfg.TransactionTimeout)
	defer cancel()
	committed, err := s.outcome(ctx, parts, id)
	if err != nil {
		return resultUnknown, fmt.Errorf("find out how a transaction ended: %w", err)
	}
	if err := s.restoreNow(ctx, parts); err != nil {
		return resultUnknown, fmt.Errorf("restore after an aborted transaction: %w", err)
	}
	for _, o := range parts {
		if committed {
			o.claimed, o.last = true, id
		}
		o.settle(committed)
	}
	s.rewind()
	if committed {
		s.progress = true
		return resultUnknown, nil
	}
	return resultAborted, nil
}

// outcome reads it from the committed offsets' metadata, which name the transaction that wrote them.
func (s *session) outcome(ctx context.Context, parts []*owned, id uint64) (committed bool, err error) {
	offsets, err := s.stableOffsets(ctx)
	if err != nil {
		return false, err
	}
	for _, o := range parts {
		at, _ := offsets.Lookup(s.input, o.id)
		meta, _ := decodeMetadata(at.Metadata)
		switch meta.GetTransaction() {
		case id:
			committed = true // of all: one group's offsets are one partition
		case o.last:
		default:
			return false, fmt.Errorf("partition %d was committed by another owner", o.id)
		}
	}
	return committed, nil
}

// stableOffsets waits until no transaction holds any of the group's offsets on the input.
func (s *session) stableOffsets(ctx context.Context) (kadm.OffsetResponses, error) {
	group := s.g.cfg.Kafka.TopicPrefix + s.g.spec.Group
	for {
		offsets, err := s.g.adm.FetchOffsets(kadm.RequireStable(ctx), group)
		if err == nil {
			err = offsets.Error()
		}
		if err == nil {
			return offsets, nil
		}
		if !errors.Is(err, kerr.UnstableOffsetCommit) && !kerr.IsRetriable(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// rewind takes what was polled and not processed from the log again. The client has moved its positions to what it
// holds for committed; they are set to what is.
func (s *session) rewind() {
	at := map[int32]kgo.EpochOffset{}
	for _, o := range s.owned {
		if o.task == nil {
			continue
		}
		clear(o.backlog)
		o.backlog, o.backlogBytes = o.backlog[:0], 0
		o.fetched = o.track.next
		at[o.id] = kgo.EpochOffset{Epoch: o.track.next.epoch, Offset: o.track.next.offset}
	}
	s.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{s.input: at})
}
