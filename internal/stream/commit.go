package stream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
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
	unjammed := s.unjam()
	committed, endErr := s.gts.End(ctx, kgo.TransactionEndTry(produceErr == nil && !s.g.faults.abort()))
	opened := unjammed()
	committed = committed && !s.g.faults.forget()
	switch {
	case opened && !committed:
		return false, errors.Join(errors.New("lost the group while a transaction was ending"), endErr, produceErr)
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

// jam is how long a rebalance may wait at the gate while a transaction ends.
const jam = 500 * time.Millisecond

// unjam opens the gate when the end of a transaction and a rebalance wait for each other. It is called before End; what
// it returns, after it, and tells whether it had to.
//
// How that comes about: the member is frozen, and expelled. When it goes on, its heartbeat loop ends with
// UNKNOWN_MEMBER_ID, and the client wants to run OnPartitionsLost: that waits at the gate. The loop is about to call End,
// which gets the same answer for its offsets and then waits for a heartbeat, or for the partitions to be lost: there is
// no heartbeat loop any more, and the loss waits at the gate that only this loop opens.
//
// Once the gate was open the client may have joined again, under a new name which a commit for the old partitions would
// pass with. So what did not commit then must not be tried again.
func (s *session) unjam() (stop func() (opened bool)) {
	var opened atomic.Bool
	ended, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(jam)
		defer tick.Stop()
		for waits := 0; ; {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			if waits++; !s.mail.wantsGate() {
				waits = 0
			}
			if waits == 2 {
				opened.Store(true)
				s.gts.AllowRebalance()
			}
		}
	}()
	return func() bool {
		close(ended)
		<-gone
		if opened.Load() {
			s.gate()
		}
		return opened.Load()
	}
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
			ends[j] = store.Position{
				TopicID: o.topics[j], LeaderEpoch: epoch, Offset: r.Offset + 1, AppliedAt: now,
				IndexVersion: o.spec.Stores[j].IndexVersion,
			}
		}
		s.g.metrics.inputs.Add(float64(o.track.spent))
		err := errors.Join(o.apply(ends), o.refresh(now))
		o.announced(id)
		o.settle(true)
		if errors.Is(err, store.ErrSuperseded) {
			s.give(o)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// refreshEvery is how old the age of a store that nobody writes to may grow.
const refreshEvery = 10 * time.Minute

// refresh notes that the partition's stores are current. A commit has just proved that it is still owned, and so that
// nobody else has written to them; without one, a zombie could make a stale store look young.
func (o *owned) refresh(now time.Time) error {
	if now.Sub(o.refreshed) < refreshEvery {
		return nil
	}
	o.refreshed = now
	b := o.store.Batch()
	for i := range o.spec.Stores {
		pos, ok, err := o.store.Position(i)
		if err != nil {
			return errors.Join(err, b.Close())
		}
		if ok {
			pos.AppliedAt = now
			b.Position(i, pos)
		}
	}
	return b.Commit()
}
