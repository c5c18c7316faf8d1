package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/store"
)

// Config of a group in one process. Zero fields take the default named beside them.
type Config struct {
	Kafka kafka.Config
	// StateDir holds a folder a group; it is a cache and may be deleted while the process is down. A folder is used by
	// one process at a time.
	StateDir string
	// Sessions is how many members of the group run in this process, each with its own client and loop; 1. More than
	// the input's partitions are idle.
	Sessions int
	// TransactionTimeout and SessionTimeout, 10 s: after which the cluster ends what a dead or frozen owner left, and
	// gives its partitions away.
	TransactionTimeout time.Duration
	SessionTimeout     time.Duration
	// RebalanceTimeout, 30 s, is how long the group waits for a member to hand over and join again.
	RebalanceTimeout time.Duration
	// DrainTimeout, 5 s, is how long tasks may take to hand over what is in flight.
	DrainTimeout time.Duration
	// StopTimeout, 20 s, bounds everything Run does after its context has ended, or after it failed. Where the process
	// has less time to stop (lifecycle.Deadline), it is half of what is left: others stop after this group.
	StopTimeout time.Duration
	// A transaction closes at BatchRecords inputs (1,000), BatchBytes of outputs (8 MB) or at the age BatchAge (25 ms).
	BatchRecords int
	BatchBytes   int
	BatchAge     time.Duration
	// WakePace, 5 ms, is the least time between two transactions that only bring in results, no input.
	WakePace time.Duration
	// Store bounds the memory of the local database.
	Store store.Options
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.TransactionTimeout, 10*time.Second)
	def(&c.SessionTimeout, 10*time.Second)
	def(&c.RebalanceTimeout, 30*time.Second)
	def(&c.DrainTimeout, 5*time.Second)
	def(&c.StopTimeout, 20*time.Second)
	def(&c.BatchAge, 25*time.Millisecond)
	def(&c.WakePace, 5*time.Millisecond)
	def(&c.Store.LockWait, 10*time.Second)
	c.Sessions = max(c.Sessions, 1)
	if c.BatchRecords == 0 {
		c.BatchRecords = 1000
	}
	if c.BatchBytes == 0 {
		c.BatchBytes = 8 << 20
	}
}

// Group is one process's share of a task group.
type Group struct {
	spec     Spec
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	sessions []*session
	retries  int // of a transaction that aborts
	faults   faults
	budget   atomic.Int64 // for the stop that has begun, as a time.Duration; 0 before

	// Set by Run, before the sessions start.
	db     *store.DB
	client *kgo.Client // for questions to the cluster; no group, no transactions
	adm    *kadm.Client
}

// New checks the configuration; nothing is opened before Run.
func New(spec Spec, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Group, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	if cfg.StateDir == "" {
		return nil, fmt.Errorf("group %s: StateDir is required", spec.Group)
	}
	cfg.setDefaults()
	g := &Group{spec: spec, cfg: cfg, log: log.With("group", spec.Group), retries: 4, faults: noFaults}
	g.metrics = newMetrics(reg, spec.Group, g.Lag, g.waited)
	for n := range cfg.Sessions {
		g.sessions = append(g.sessions, newSession(g, n))
	}
	return g, nil
}

// Run works until ctx ends, then hands over and returns nil. It returns an error only for what trying again cannot
// heal; everything else is logged, counted, shown by Check, and tried again.
func (g *Group) Run(ctx context.Context) (err error) {
	dir := filepath.Join(g.cfg.StateDir, g.spec.Group)
	if g.db, err = store.Open(filepath.Join(dir, "db"), g.cfg.Store, g.log); err != nil {
		return fmt.Errorf("group %s: %w", g.spec.Group, err)
	}
	defer func() { err = errors.Join(err, g.db.Close()) }()
	ids, err := memberIDs(filepath.Join(dir, "member-ids"), g.name(), len(g.sessions))
	if err != nil {
		return err
	}
	if g.client, err = kgo.NewClient(kafka.Options(g.cfg.Kafka, g.log)...); err != nil {
		return fmt.Errorf("group %s: %w", g.spec.Group, err)
	}
	defer g.client.Close()
	g.adm = kadm.NewClient(g.client)
	if err := g.succeed(ctx, ids); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// Work in hand outlives ctx: it is finished or handed over, and the group is left, within the budget of the stop. It
	// begins when ctx ends, or when a session has failed for good.
	hard, noMoreWork := context.WithCancel(context.WithoutCancel(ctx))
	defer noMoreWork()
	end, noMoreTime := context.WithCancel(context.WithoutCancel(ctx))
	defer noMoreTime()
	group, gctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(gctx, func() {
		budget := g.stopBudget(gctx)
		g.budget.Store(int64(budget))
		time.AfterFunc(budget*3/4, noMoreWork)
		time.AfterFunc(budget, noMoreTime)
	})()
	group.Go(func() error { g.watchEnds(gctx); return nil })
	group.Go(func() error { return g.db.Watch(gctx) })
	for i, s := range g.sessions {
		group.Go(func() error { return s.run(gctx, hard, end, ids[i]) })
	}
	return group.Wait()
}

// name is the consumer group's on the cluster.
func (g *Group) name() string { return g.cfg.Kafka.TopicPrefix + g.spec.Group }

// stopBudget is how long the stop may take that stopping, which has ended, asks for.
func (g *Group) stopBudget(stopping context.Context) time.Duration {
	budget := g.cfg.StopTimeout
	if by, ok := lifecycle.Deadline(stopping); ok {
		budget = min(budget, time.Until(by)/2)
	}
	return max(budget, time.Millisecond)
}

// drainTime is how long tasks may drain: what they hand over must still be committed.
func (g *Group) drainTime() time.Duration {
	if budget := time.Duration(g.budget.Load()); budget > 0 {
		return min(g.cfg.DrainTimeout, budget/2)
	}
	return g.cfg.DrainTimeout
}

// faults are where tests break a transaction.
type faults struct {
	// abort makes it abort instead of commit.
	abort func() bool
	// forget makes a commit look as if its answer had been lost.
	forget func() bool
}

var noFaults = faults{abort: func() bool { return false }, forget: func() bool { return false }}

// watchEnds keeps the input's end offsets for Lag: polls alone say nothing of a partition that is paused.
func (g *Group) watchEnds(ctx context.Context) {
	input := g.cfg.Kafka.Topic(g.spec.Input)
	for tick := time.NewTicker(5 * time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		ends, err := g.adm.ListEndOffsets(ctx, input)
		if err != nil {
			continue // the sessions say what is wrong with the cluster
		}
		for _, s := range g.sessions {
			s.saw(ends[input])
		}
	}
}

// Lag is how many input records (offsets, to be exact) wait for this process, over all partitions it owns.
func (g *Group) Lag() int64 {
	var lag int64
	for _, s := range g.sessions {
		lag += s.lag()
	}
	return lag
}

// waited is for how long the oldest of these records has.
func (g *Group) waited() (longest time.Duration) {
	for _, s := range g.sessions {
		longest = max(longest, s.waited(time.Now()))
	}
	return longest
}

// Check returns nil when every session is a member of the group and its partitions are restored and running.
func (g *Group) Check(context.Context) error {
	for _, s := range g.sessions {
		if err := s.status(); err != nil {
			return fmt.Errorf("group %s: %w", g.spec.Group, err)
		}
	}
	return nil
}

// shared is what a session's other goroutines may see of it.
type shared struct {
	mu     sync.Mutex
	state  error // why there is no useful work; nil: there is
	places map[int32]*place
}

// place is where a partition's input stands.
type place struct {
	next, end int64
	// since is when the record at next was written; before it is read, what is known to be earlier.
	since time.Time
}

// stand notes where o stands.
func (p *place) stand(o *owned, now time.Time) {
	p.next, p.end = o.track.next.offset, max(p.end, o.end)
	switch {
	case len(o.backlog) > 0:
		p.since = o.backlog[0].Timestamp
	case p.end <= p.next:
		p.since = now
	case o.processed.After(p.since):
		p.since = o.processed
	}
}

func (s *shared) status() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *shared) setStatus(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = err
}

func (s *shared) lag() (lag int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		lag += max(0, p.end-p.next)
	}
	return lag
}

func (s *shared) waited(now time.Time) (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		if p.end > p.next {
			longest = max(longest, now.Sub(p.since))
		}
	}
	return longest
}

func (s *shared) saw(ends map[int32]kadm.ListedOffset) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range s.places {
		if end, ok := ends[id]; ok && end.Err == nil {
			p.end = max(p.end, end.Offset)
		}
	}
}
