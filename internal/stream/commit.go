package stream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/betterdata/webhooks/internal/store"
)

func (s *session) now() time.Time { return time.Now() }

// commit runs the open transactions of all partitions as one. After it none is open.
func (s *session) commit() error {
	var parts []*owned
	for _, o := range s.owned {
		switch {
		case o.task == nil:
		case o.pending():
			parts = append(parts, o)
		case o.open: // nothing to tell Kafka; dropped index keys, perhaps
			if err := o.apply(nil); err != nil {
				return err
			}
			o.settle(true)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	began := time.Now()
	result, err := s.transact(parts)
	s.lastCommit = time.Now()
	s.g.metrics.seconds.Observe(s.lastCommit.Sub(began).Seconds())
	s.g.metrics.transactions[result].Inc()
	return err
}

// transact produces, commits and settles. An error is fatal to the session.
//
// A transaction that aborts is tried again as it is, a few times: what it holds was computed from committed state and
// nothing of it has left, so only the cluster's reason can have changed. The usual one is CONCURRENT_TRANSACTIONS: the
// markers of the transaction before are still being written. Then the work is taken back and done again.
func (s *session) transact(parts []*owned) (result string, err error) {
	for try := 0; ; try++ {
		committed, err := s.attempt(parts, try)
		if err != nil {
			return resultFailed, err
		}
		if committed {
			return resultCommitted, nil
		}
		s.g.metrics.transactions[resultAborted].Inc()
		if try == s.g.retries || s.hard.Err() != nil {
			return resultTakenBack, s.takeBack(parts)
		}
		time.Sleep(5 * time.Millisecond << try)
	}
}

// attempt runs one transaction. It reports that it committed, and has settled then, or that it did not.
func (s *session) attempt(parts []*owned, try int) (committed bool, err error) {
	id := rand.Uint64() | 1 // never 0, which stands for none
	offsets, err := commitOffsets(parts, id)
	if err != nil {
		return false, err
	}
	if err := s.gts.Begin(); err != nil {
		return false, fmt.Errorf("begin transaction: %w", err)
	}
	last, n, produceErr := s.produce(parts)
	ctx := kgo.PreTxnCommitFnContext(s.hard, func(req *kmsg.TxnOffsetCommitRequest) error {
		// Whatever the client put there is of its own making: the heads it has polled, not what is done.
		topic := kmsg.NewTxnOffsetCommitRequestTopic()
		topic.Topic, topic.Partitions = s.input, offsets
		for _, t := range req.Topics {
			topic.TopicID = t.TopicID
		}
		req.Topics = []kmsg.TxnOffsetCommitRequestTopic{topic}
		return nil
	})
	committed, endErr := s.gts.End(ctx, kgo.TransactionEndTry(produceErr == nil && !s.g.faults.abort()))
	committed = committed && !s.g.faults.forget()
	switch {
	case endErr != nil:
		return false, fmt.Errorf("end transaction: %w", errors.Join(endErr, produceErr))
	case errors.Is(produceErr, kerr.MessageTooLarge), errors.Is(produceErr, kerr.RecordListTooLarge):
		return false, &taskError{fmt.Errorf("%w: %w", errTooLarge, produceErr)}
	case committed:
		if err := s.committed(parts, last, id, n); err != nil {
			return false, err
		}
		if try > 0 {
			s.keepPositions() // the aborts before had moved them back
		}
		return true, nil
	}
	s.log.Debug("transaction not confirmed", "try", try, "error", produceErr)
	return s.lookBack(parts, id)
}

// commitOffsets is what the transaction commits: for every partition it writes state for, moved or not.
func commitOffsets(parts []*owned, id uint64) ([]kmsg.TxnOffsetCommitRequestTopicPartition, error) {
	offsets := make([]kmsg.TxnOffsetCommitRequestTopicPartition, 0, len(parts))
	for _, o := range parts {
		meta := o.track.metadata(o.ahead(), o.handover && o.clean)
		meta.Transaction = id
		metadata, err := encodeMetadata(meta)
		if err != nil {
			return nil, err
		}
		at := o.track.watermark()
		p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = o.id, at.offset, at.epoch, &metadata
		offsets = append(offsets, p)
	}
	return offsets, nil
}

// produce sends everything and waits for it. last has, for each partition and store, the last changelog record.
func (s *session) produce(parts []*owned) (last [][]*kgo.Record, n int, err error) {
	all := kgo.AbortingFirstErrPromise(s.client)
	for _, o := range parts {
		ends := make([]*kgo.Record, len(o.tx.over))
		for i, over := range o.tx.over {
			topic := s.g.cfg.Kafka.Topic(o.spec.Stores[i].Topic)
			for _, key := range over.order {
				r := changelogRecord(key, over.data[key])
				r.Topic, r.Partition = topic, o.id
				s.client.Produce(s.hard, r, all.Promise())
				ends[i] = r
			}
			n += len(over.order)
		}
		for _, e := range o.tx.emits {
			e.record.Topic, e.record.Partition = s.g.cfg.Kafka.Topic(e.topic), e.partition
			s.client.Produce(s.hard, e.record, all.Promise())
		}
		n += len(o.tx.emits)
		last = append(last, ends)
	}
	if n > 0 {
		err = s.client.Flush(s.hard)
	}
	return last, n, errors.Join(err, all.Err())
}

// committed makes the local state follow. Until the gate opens nobody else can have written it, unless this process
// slept through the loss of a partition: then the store refuses, and the partition goes.
func (s *session) committed(parts []*owned, last [][]*kgo.Record, id uint64, n int) error {
	s.progress = true
	s.g.metrics.outputs.Add(float64(n))
	now := time.Now()
	for i, o := range parts {
		ends := make([]store.Position, len(o.spec.Stores))
		for j, r := range last[i] {
			if r == nil {
				continue
			}
			_, epoch, _ := s.client.PartitionLeader(r.Topic, r.Partition)
			ends[j] = store.Position{TopicID: o.topics[j], LeaderEpoch: epoch, Offset: r.Offset + 1, AppliedAt: now}
		}
		s.g.metrics.inputs.Add(float64(o.track.spent))
		err := o.apply(ends)
		o.claimed, o.last = true, id
		o.settle(true)
		if errors.Is(err, store.ErrSuperseded) {
			s.give(o)
		} else if err != nil {
			return err
		}
	}
	return nil
}
