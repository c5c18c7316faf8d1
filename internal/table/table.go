// Package table keeps a whole local copy of a compacted topic, so that a serving instance answers reads from its own
// disk.
//
// A Copy reads every partition of its topic, read committed, and applies the records to a local Pebble store: a value
// replaces, a tombstone deletes. The offsets it has reached are written in the same batch as the data, so the store
// is at every moment exactly the topic's committed state up to those offsets, also after a SIGKILL.
//
// What it promises: a reader who waits at the barrier (WaitCurrent) sees every change whose transaction had ended
// when it asked. The local store is a cache: one that belongs to another topic, that is ahead of the log, behind its
// start, or so old that a tombstone may have been compacted away, is emptied and read anew.
//
// What it must not do: write to the topic, or be the state of a task (internal/stream restores that itself).
package table

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/store"
)

// maxPoll bounds the records applied in one batch, and so the time readers wait for a change behind them.
const maxPoll = 10_000

// maxFetchWait bounds a fetch of an idle topic at the broker.
const maxFetchWait = 500 * time.Millisecond

// ErrClosed answers reads of a Copy after Close.
var ErrClosed = errors.New("table copy is closed")

// Config says which topic is copied and where to.
type Config struct {
	Kafka kafka.Config
	// StateDir is the process's state folder; the copy lives in StateDir/tables/<topic>.
	StateDir string
	// Topic is the compacted topic, without the prefix.
	Topic string
	// LockWait is how long New waits for another process to let go of the copy; 10 s.
	LockWait time.Duration
}

// Copy is a local copy of a compacted topic. A process opens at most one of a topic and shares it. All methods may be
// called from any goroutine.
type Copy struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	client  *kgo.Client
	local   *local

	watchers []func(key, value []byte)

	// place is nil until Run has found the topic.
	place atomic.Pointer[place]
	// fresh is the newest time (Unix ns) at which the copy is known to have held everything committed; 0 = never.
	fresh atomic.Int64

	mu sync.Mutex
	// reached is, by partition, the offset of the next record to apply.
	reached []int64
	// changed is closed, and replaced, whenever reached moves.
	changed chan struct{}
}

// New opens the local store. Reads answer from it at once, with whatever an earlier process left; Run makes it current.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Copy, error) {
	if cfg.Topic == "" || cfg.StateDir == "" {
		return nil, errors.New("table copy: Topic and StateDir are required")
	}
	if cfg.LockWait == 0 {
		cfg.LockWait = lockWait
	}
	log = log.With("topic", cfg.Topic)
	c := &Copy{cfg: cfg, log: log, changed: make(chan struct{})}
	client, err := kgo.NewClient(append(kafka.Options(cfg.Kafka, log),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The position has to pass the markers that end transactions, or the barrier would never open.
		kgo.KeepControlRecords(),
		// A partition whose offset is validated while a fetch for the others waits at the broker is read only after it.
		kgo.FetchMaxWait(maxFetchWait),
		// An offset that the log does not hold is no place to guess from: the store is emptied instead.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("table copy of %s: %w", cfg.Topic, err)
	}
	c.client = client
	if c.local, err = openLocal(cfg.StateDir, cfg.Topic, cfg.LockWait, log); err != nil {
		client.Close()
		return nil, err
	}
	c.metrics = newMetrics(reg, cfg.Topic, c.Age)
	return c, nil
}

// OnChange registers fn for every change; it must be called before Run. When Run starts, fn is first called for every
// record of the local store, then for every record read, in log order within a key; value nil means deleted. fn runs
// after the change can be read and before any barrier opens for it. It must be quick and not keep the slices.
func (c *Copy) OnChange(fn func(key, value []byte)) {
	c.watchers = append(c.watchers, fn)
}

// Run keeps the copy current until ctx ends. It returns an error when the topic is not the one it began with or has
// lost records; the store is then emptied at the next start. Reads go on answering after it has returned.
func (c *Copy) Run(ctx context.Context) error {
	at, err := c.locate(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("table copy of %s: %w", c.cfg.Topic, err)
	}
	if err := c.begin(at); err != nil {
		return fmt.Errorf("table copy of %s: %w", c.cfg.Topic, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.tail(ctx) })
	group.Go(func() error { return c.keepFresh(ctx) })
	group.Go(func() error { return c.local.db.Watch(ctx) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("table copy of %s: %w", c.cfg.Topic, err)
	}
	return nil
}

// begin takes the store up where it stands, or empties it, and starts reading.
func (c *Copy) begin(at *place) error {
	positions, err := c.local.resume(at, time.Now())
	if err != nil {
		return err
	}
	if len(c.watchers) > 0 {
		if err := c.local.scan(nil, func(key, value []byte) bool {
			c.notify(key, value)
			return true
		}); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.reached = make([]int64, len(positions))
	starts := make(map[int32]kgo.Offset, len(positions))
	for p, pos := range positions {
		c.reached[p] = pos.offset
		starts[int32(p)] = kgo.NewOffset().At(pos.offset).WithEpoch(pos.epoch)
	}
	c.mu.Unlock()
	c.place.Store(at)
	c.announce()
	c.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{c.topic(): starts})
	return nil
}

// tail applies what the topic holds and gets.
func (c *Copy) tail(ctx context.Context) error {
	for {
		// An idle topic must not make the store look abandoned: it is stamped at least this often.
		pollCtx, cancel := context.WithTimeout(ctx, stampEvery)
		fetches := c.client.PollRecords(pollCtx, maxPoll)
		cancel()
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return nil
		}
		if err := c.checkErrors(fetches); err != nil {
			return err
		}
		err := c.apply(fetches)
		if errors.Is(err, store.ErrSuperseded) {
			// The copy was given up; who did it says why.
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// checkErrors returns what makes the store worthless, after marking it so. Everything else the client retries.
func (c *Copy) checkErrors(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		var loss *kgo.ErrDataLoss
		switch {
		case errors.Is(e.Err, context.DeadlineExceeded):
		case errors.As(e.Err, &loss), errors.Is(e.Err, kerr.OffsetOutOfRange),
			errors.Is(e.Err, kerr.UnknownTopicID), errors.Is(e.Err, kerr.InconsistentTopicID):
			if err := c.local.disown(); err != nil {
				return err
			}
			return fmt.Errorf("read partition %d: the log is not the one copied; the copy is rebuilt at the next start: %w", e.Partition, e.Err)
		default:
			c.log.Warn("read table, will go on", "partition", e.Partition, "error", e.Err)
		}
	}
	return nil
}

// apply writes one poll's records and the offsets after them in one batch, then tells watchers and waiters.
func (c *Copy) apply(fetches kgo.Fetches) error {
	b := c.local.writer.Batch()
	moved := make(map[int32]position)
	rows := 0
	for it := fetches.RecordIter(); !it.Done(); {
		r := it.Next()
		moved[r.Partition] = position{offset: r.Offset + 1, epoch: r.LeaderEpoch}
		if r.Attrs.IsControl() {
			continue
		}
		rows++
		if r.Value == nil {
			b.Delete(records, r.Key)
		} else {
			b.Put(records, r.Key, r.Value)
		}
	}
	fresh := c.freshTime()
	if len(moved) == 0 && !c.local.needsStamp(fresh) {
		return b.Close()
	}
	if err := c.local.commit(b, moved, fresh); err != nil {
		return err
	}
	c.metrics.applied.Add(float64(rows))
	if len(c.watchers) > 0 {
		for it := fetches.RecordIter(); !it.Done(); {
			if r := it.Next(); !r.Attrs.IsControl() {
				c.notify(r.Key, r.Value)
			}
		}
	}
	c.mu.Lock()
	for p, pos := range moved {
		c.reached[p] = pos.offset
	}
	c.mu.Unlock()
	c.announce()
	return nil
}

func (c *Copy) notify(key, value []byte) {
	for _, fn := range c.watchers {
		fn(key, value)
	}
}

// Get returns a copy of the value of key; ok is false when there is none.
func (c *Copy) Get(key []byte) (value []byte, ok bool, err error) { return c.local.get(key) }

// Scan calls fn for the records whose key starts with prefix, in key order, until fn returns false. It sees the store
// as it was when Scan was called. The slices are valid during the call of fn only.
func (c *Copy) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	return c.local.scan(prefix, fn)
}

// Check is nil once the copy has held everything that was committed when this process started. It stays nil when
// Kafka goes away: a copy then goes on serving, and Age says how old it is.
func (c *Copy) Check(context.Context) error {
	if c.fresh.Load() == 0 {
		return fmt.Errorf("table copy of %s is still being read from Kafka", c.cfg.Topic)
	}
	return nil
}

// Close releases the store, after readers under way have ended. Call it after Run has returned.
func (c *Copy) Close() error {
	c.client.Close()
	if err := c.local.close(); err != nil {
		return fmt.Errorf("close table copy of %s: %w", c.cfg.Topic, err)
	}
	return nil
}

func (c *Copy) topic() string { return c.cfg.Kafka.Topic(c.cfg.Topic) }
