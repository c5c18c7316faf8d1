// Package sink copies the rows of a topic into a ClickHouse table: each record of a plain table exactly once, whatever
// is killed whenever.
//
// One consumer group a table. Each assigned partition has a worker, which goes through its records in sequence:
//
//	cut [a..b] within one table partition → commit offset a with metadata (b, rows, try, deadline) → one INSERT → next
//
// The rows carry their place (src_topic, src_part, src_offset), and they are the truth: after anything but a plain success, and
// after a take-over, the worker counts the rows of [a..b] in the table. All there: done. None, once the deadline has
// passed on the server and the old INSERT is gone: inserted again, as the next try. Anything else is never guessed at:
// the partition stops, with an alert. ClickHouse's insert token is set, and not relied on: it is remembered before the
// part is, so a server killed between the two acknowledges a retry and stores nothing.
//
// One INSERT carries the batches of several partitions, each of a plain table announced by its own commit before. It writes one
// part, all or nothing, and its name tells the partitions: so each is judged, taken over and inserted again (then alone) by
// itself, whoever has the others by then.
//
// The commit is refused by Kafka when the partition has a new owner (its generation fences it), and the INSERT is
// refused by ClickHouse past its deadline; so an owner that was frozen and wakes can do neither.
//
// When Kafka has forgotten the group's offsets, a partition goes on after its last row in the table. Where the log has lost
// records that have rows, it stops.
//
// A ReplacingMergeTree is simply inserted, then committed: rows that come twice replace each other.
//
// While ClickHouse is away, what is buffered stays within MaxBuffered, polling stops, and Kafka keeps the rest.
package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// Config says where rows go and how large batches grow. Zero values take the defaults.
type Config struct {
	Kafka kafka.Config
	// ClickHouse has the table's database as its default.
	ClickHouse driver.Conn
	// Prepare makes the tables (clickhouse.Migrate); it is tried until it succeeds before anything is consumed.
	Prepare func(ctx context.Context) error

	// FlushInterval is how long a row that was read waits for others at most; 1 s.
	FlushInterval time.Duration
	// MaxRows and MaxBytes (of records) end a batch before that; 50,000 and 8 MiB.
	MaxRows, MaxBytes int
	// MaxBuffered bounds the bytes of records held, over all partitions, while inserts are slow or fail; 32 MiB.
	// One poll, of at most 5,000 records, may come on top.
	MaxBuffered int
	// InsertTimeout is the deadline of one INSERT, kept by the server; 10 s. A batch whose fate is unknown waits for
	// it before it may be inserted again.
	InsertTimeout time.Duration
	// Inserts bounds the INSERTs that run at the same time; 4.
	Inserts int
	// HandOver is how long a worker may finish its insert when its partition is taken away or the process stops; 5 s.
	HandOver time.Duration
	// LagInterval is how often the group's lag is asked for, in three small requests; 5 s.
	LagInterval time.Duration

	// heartbeat is how often a member asks the group for news, and so how soon it learns of a rebalance; 2 s.
	heartbeat time.Duration
	// maxPause bounds the pause before something that failed is tried again; 10 s.
	maxPause time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.FlushInterval, time.Second)
	setDefault(&c.MaxRows, 50_000)
	setDefault(&c.MaxBytes, 8<<20)
	setDefault(&c.MaxBuffered, 32<<20)
	setDefault(&c.InsertTimeout, 10*time.Second)
	setDefault(&c.Inserts, 4)
	setDefault(&c.HandOver, 5*time.Second)
	setDefault(&c.LagInterval, 5*time.Second)
	setDefault(&c.heartbeat, 2*time.Second)
	setDefault(&c.maxPause, 10*time.Second)
	return c
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// maxPoll bounds the records taken from the client at a time.
const maxPoll = 5_000

// Sink fills one table.
type Sink struct {
	table    Table
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	client   *kgo.Client
	commits  *committer
	inserter *inserter
	// epoch is a moment at which workers flush, as they do every FlushInterval before and after it.
	epoch time.Time
	// pool holds batch buffers (rows).
	pool sync.Pool

	// topicID tells a topic from one that was created anew under its name, in base64; part of insert tokens and rows.
	topicID string
	// clock is the server's time less ours, in milliseconds: deadlines are in the server's time.
	clock atomic.Int64
	// buffered counts the bytes of records held; freed is signalled when it falls.
	buffered atomic.Int64
	freed    chan struct{}
	// trouble is why the newest insert or count failed; nil after a success.
	trouble atomic.Pointer[error]
	ready   atomic.Bool
	// began is when Run was called (Unix ns); behind the group's lag as last asked for.
	began, behind atomic.Int64

	mu      sync.Mutex
	workers map[int32]*worker
}

// New makes a sink; Run starts it. It connects to nothing yet.
func New(table Table, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Sink, error) {
	if cfg.ClickHouse == nil {
		return nil, fmt.Errorf("sink of %s: ClickHouse is required", table.Name)
	}
	s := &Sink{
		table: table, cfg: cfg.withDefaults(), log: log.With("table", table.Name),
		freed: make(chan struct{}, 1), workers: map[int32]*worker{},
	}
	s.pool.New = func() any { return table.newRows() }
	s.inserter = newInserter(s)
	// Not with the other sinks of the process, nor with the other processes.
	s.epoch = time.Now().Add(-rand.N(s.cfg.FlushInterval))
	s.metrics = newMetrics(reg, table.Name, s.lag, s.age, s.stoppedPartitions)
	return s, nil
}

// Run copies until ctx ends, then inserts what it holds, commits and leaves the group. It returns nil on a clean stop;
// trouble with ClickHouse is retried for ever, never returned.
func (s *Sink) Run(ctx context.Context) error {
	s.began.Store(time.Now().UnixNano())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.watchLag(ctx) })
	group.Go(func() error { return s.copy(ctx) })
	return group.Wait()
}

// copy is Run without the watch over its lag.
func (s *Sink) copy(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	client, err := kgo.NewClient(append(kafka.Options(s.cfg.Kafka, s.log), s.groupOptions()...)...)
	if err != nil {
		return fmt.Errorf("sink of %s: %w", s.table.Name, err)
	}
	s.client = client
	s.commits = newCommitter(client, s.topic())
	if err := s.findTopic(ctx); err != nil || ctx.Err() != nil {
		client.Close()
		return err
	}
	var background sync.WaitGroup
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	background.Go(func() { s.commits.run(working) })
	background.Go(func() { s.inserter.run(working) })
	s.ready.Store(true)
	err = s.consume(ctx)
	s.ready.Store(false)
	s.release(s.allWorkers(), true)
	client.CloseAllowingRebalance()
	stop()
	background.Wait()
	return err
}

// prepare waits for ClickHouse and its tables.
func (s *Sink) prepare(ctx context.Context) error {
	return s.insist(ctx, "prepare ClickHouse tables", func(ctx context.Context) error {
		if s.cfg.Prepare != nil {
			if err := s.cfg.Prepare(ctx); err != nil {
				return err
			}
		}
		return s.readClock(ctx)
	})
}

func (s *Sink) findTopic(ctx context.Context) error {
	return s.insist(ctx, "find topic "+s.topic(), func(ctx context.Context) error {
		topics, err := kadm.NewClient(s.client).ListTopics(ctx, s.topic())
		if err != nil {
			return err
		}
		s.topicID = topics[s.topic()].ID.String()
		return topics[s.topic()].Err
	})
}

// insist repeats do until it succeeds or ctx ends, noting the trouble for Check and in the log.
func (s *Sink) insist(ctx context.Context, what string, do func(context.Context) error) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := do(ctx)
		s.note(err)
		return struct{}{}, err
	}, backoff.WithBackOff(s.newBackOff()), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, next time.Duration) {
			s.log.Warn(what+": will try again", "error", err, "after", next.Round(time.Millisecond))
		}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// newBackOff spreads retries from 100 ms to maxPause, jittered by half.
func (s *Sink) newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, s.cfg.maxPause
	return b
}

// untilFlush is how long it is until workers flush, all at the same moment, so that their batches go together.
func (s *Sink) untilFlush() time.Duration {
	return s.cfg.FlushInterval - time.Since(s.epoch)%s.cfg.FlushInterval
}

func (s *Sink) note(err error) {
	if err == nil {
		s.trouble.Store(nil)
		return
	}
	s.trouble.Store(&err)
}

// Check is nil while rows go through. A sink that is not ready delays the record and loses nothing, so a service that
// has other work stays useful without it.
func (s *Sink) Check(context.Context) error {
	if n := s.stoppedPartitions(); n > 0 {
		return fmt.Errorf("sink of %s: %d partitions stopped, see the log", s.table.Name, int(n))
	}
	if err := s.trouble.Load(); err != nil {
		return fmt.Errorf("sink of %s: %w", s.table.Name, *err)
	}
	if !s.ready.Load() {
		return fmt.Errorf("sink of %s: %w", s.table.Name, errors.New("not started"))
	}
	return nil
}

func (s *Sink) topic() string { return s.cfg.Kafka.Topic(s.table.Topic) }
func (s *Sink) group() string { return s.cfg.Kafka.Topic(schemas.GroupSinkPrefix + s.table.Name) }
