package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// session is one member of the group: a client, a transactional id, and one loop that does everything to its
// partitions. See DESIGN.md for what runs beside the loop and how it talks to it.
type session struct {
	shared
	g   *Group
	log *slog.Logger

	// Of the current client; the loop's alone.
	gts    *kgo.GroupTransactSession
	client *kgo.Client
	hard   context.Context // ends when there is no more time for work
	end    context.Context // ends when there is none for leaving the group either
	owned  map[int32]*owned
	input  string

	restoring context.Context // ends with the client
	restores  sync.WaitGroup

	told      bool      // which partitions are owned, in the log
	complaint complaint // of polls, as last logged
	lastBatch int       // inputs of the last transaction
	// backlogBytes is the size of the backlogs of all owned partitions.
	backlogBytes int
	lastCommit   time.Time // when it ended
	progress     bool      // this client has committed something

	mail mailbox
}

type complaint struct {
	text string
	at   time.Time
}

var (
	errJoining   = errors.New("joining the group")
	errRestoring = errors.New("restoring state")
)

func newSession(g *Group, n int) *session {
	s := &session{g: g, log: g.log.With("session", n), input: g.cfg.Kafka.Topic(g.spec.Input)}
	s.places = map[int32]*place{}
	s.state = errJoining
	return s
}

// maxBarren is how many clients in a row may fail for the task's own error, without one commit between, before Run
// gives up: the record will not get better.
const maxBarren = 5

// run keeps a client working until ctx ends, or what it meets cannot be healed. Then it leaves the group.
func (s *session) run(ctx, hard, end context.Context, txnID string) error {
	s.hard, s.end = hard, end
	defer s.leave(txnID)
	backoff, barren := 100*time.Millisecond, 0
	for {
		err := s.life(ctx, txnID)
		if ctx.Err() != nil {
			if err != nil {
				s.log.Warn("stopped without a clean hand-over; the next owner restores", "error", err)
			}
			return nil
		}
		if s.progress {
			backoff, barren = 100*time.Millisecond, 0
		}
		if taskErr := (*taskError)(nil); errors.As(err, &taskErr) {
			barren++
		}
		if incurable(err) || barren >= maxBarren {
			return fmt.Errorf("group %s cannot go on: %w", s.g.spec.Group, err)
		}
		s.setStatus(err)
		s.g.metrics.rebuilds.Inc()
		s.log.Warn("session failed; building a new one", "error", err, "in", backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

// life is that of one client.
func (s *session) life(ctx context.Context, txnID string) (err error) {
	s.owned, s.progress, s.told = map[int32]*owned{}, false, true
	s.backlogBytes = 0
	s.mail.reset()
	if s.gts, err = kgo.NewGroupTransactSession(s.options(txnID)...); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	s.client = s.gts.Client()
	rctx, cancel := context.WithCancel(s.hard)
	s.restoring = rctx
	defer func() {
		cancel()
		for _, o := range s.owned {
			s.give(o)
		}
		s.close()
		s.restores.Wait()
	}()
	s.gate()
	for ctx.Err() == nil {
		if err := s.turn(ctx); err != nil {
			return err
		}
	}
	return s.handOver(s.all())
}

// close closes the client, within bounds also when no broker answers. A static member does not leave the group by
// that: the next client, of this process or of one that is started again, takes its place.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(s.end, leaveTime)
	defer cancel()
	s.gts.AllowRebalance()
	if err := s.client.LeaveGroupContext(ctx); err != nil { // ends membership here; the group is not told
		s.log.Warn("closing the client of a session took too long", "error", err)
	}
	s.gts.CloseAllowingRebalance()
}

// leave takes the member out of the group, whether a client of it is at work, failed or not there yet: its partitions
// are somebody else's from now on.
func (s *session) leave(instance string) {
	ctx, cancel := context.WithTimeout(s.end, leaveTime)
	defer cancel()
	if err := s.g.leave(ctx, instance); err != nil {
		s.log.Warn("leaving the group failed; it waits for the session to time out", "error", err)
	}
}

// leaveTime bounds what is said to the group at the end.
const leaveTime = 5 * time.Second

func (s *session) options(txnID string) []kgo.Opt {
	cfg := &s.g.cfg
	return append(kafka.Options(cfg.Kafka, s.log),
		kgo.ConsumerGroup(s.g.name()),
		// Static membership (KIP-345): a process that was killed and is started again within the session time-out has its
		// partitions back at once, and nobody else's work is interrupted. One that is told to stop leaves (leave).
		kgo.InstanceID(txnID),
		kgo.ConsumeTopics(s.input),
		kgo.Balancers(newBalancer(s.mail.synced)),
		kgo.SessionTimeout(cfg.SessionTimeout),
		kgo.HeartbeatInterval(min(cfg.SessionTimeout/4, time.Second)),
		kgo.RebalanceTimeout(cfg.RebalanceTimeout),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers are records of a kind: with them the position reaches the log's end and lag becomes 0.
		kgo.KeepControlRecords(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.FetchMaxPartitionBytes(2<<20),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.mail.blocked() }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) { s.mail.gone(gone[s.input]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) { s.mail.lost(gone[s.input]) }),
		kgo.OnOffsetsFetched(s.fetched),
		// A transaction that follows another at once is told CONCURRENT_TRANSACTIONS until the markers are written, some
		// milliseconds: waiting the usual 50 for it would be most of the latency.
		kgo.RetryBackoffFn(retryBackoff),
		kgo.ConcurrentTransactionsBackoff(retryBackoff(1)),
		kgo.TransactionalID(txnID),
		kgo.TransactionTimeout(cfg.TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(schemas.MaxRecordBytes),
		kgo.MaxBufferedRecords(100_000),
		kgo.ProducerLinger(10*time.Millisecond), // the flush at the end cuts it short
	)
}

// retryBackoff doubles from 5 ms to 1.28 s.
func retryBackoff(fails int) time.Duration { return 5 * time.Millisecond << min(max(fails-1, 0), 8) }

// gate holds rebalances back from now on: a poll with a context that has ended returns nothing and counts as a poll.
// The gate is open only in yield. So nothing is revoked behind the loop's back, and when something is to be, the
// client says so first.
func (s *session) gate() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	s.gts.PollRecords(ended, 1)
}

// turn of the loop: what the group says, one batch, one transaction.
func (s *session) turn(ctx context.Context) error {
	if err := s.readMail(); err != nil {
		return err
	}
	s.report() // before the poll: what has just got its state is ready now, not when the wait for records ends
	b := batch{limit: s.g.cfg.BatchRecords}
	if err := s.collect(ctx, &b); err != nil {
		return err
	}
	s.lastBatch = b.inputs
	if err := s.advance(); err != nil {
		return err
	}
	return s.commit()
}

// all partitions with a running task.
func (s *session) all() []*owned {
	var all []*owned
	for _, o := range s.owned {
		if o.task != nil {
			all = append(all, o)
		}
	}
	return all
}

// advance calls the tasks that asked for it, and those whose transaction is about to be committed.
func (s *session) advance() error {
	now := time.Now()
	early := now.Sub(s.lastCommit) < s.g.cfg.WakePace
	for _, o := range s.owned {
		if o.task == nil {
			continue
		}
		due, _ := o.part.due(now)
		if o.open || due && !early {
			if err := o.advance(now); err != nil {
				return &taskError{err}
			}
		}
	}
	return nil
}

// report updates what others see: readiness, lag.
func (s *session) report() {
	restoring, joined, now := s.mail.awaited(s.owned), s.mail.isSynced(), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range s.owned {
		if o.task == nil {
			restoring++
		}
		p := s.places[id]
		if p == nil {
			p = &place{end: o.track.next.offset, since: now}
			s.places[id] = p
		}
		p.stand(o, now)
	}
	for id := range s.places {
		if s.owned[id] == nil {
			delete(s.places, id)
		}
	}
	switch {
	case restoring > 0:
		s.state = errRestoring
	case !joined:
		s.state = errJoining
	default:
		s.state = nil
		if !s.told {
			s.told = true
			s.log.Info("at work", "topic", s.input, "count", len(s.owned), "partitions", ranges(slices.Sorted(maps.Keys(s.owned))))
		}
	}
}

// ranges writes sorted numbers as "0-3,7".
func ranges(ids []int32) string {
	var text []byte
	for i, id := range ids {
		follows := i > 0 && ids[i-1] == id-1
		switch {
		case follows && i+1 < len(ids) && ids[i+1] == id+1:
			continue // within a range
		case follows:
			text = append(text, '-')
		case i > 0:
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, int64(id), 10)
	}
	return string(text)
}

// taskError is the task's own: its code, or what it was given, not the cluster.
type taskError struct{ err error }

func (e *taskError) Error() string { return e.err.Error() }
func (e *taskError) Unwrap() error { return e.err }
