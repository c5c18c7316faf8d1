// Package dispatch decides what is sent when: the task of group `deliverer`.
//
// Records of `deliveries` come in; each target is sent at once where its endpoint has room, or written to `retries`
// (package schedule) where it must wait: failed before, endpoint saturated, breaker open, paused, or another comes first
// in strict order. What waits is pulled per endpoint as it is due and as room comes, the oldest first. Attempts run in a
// pool of goroutines that all partitions share; their results queue in memory and enter a transaction in Advance: one row
// of `attempts`, one of `delivery-rows`, and the change of the schedule, all together or not at all.
//
// A record may be a command of the management API instead: a retry, a test, a cancellation. What it changes and its answer
// are of one transaction. One that has to wait is kept in the schedule, so that none holds up its partition.
//
// A replay (package replay) has events of the record delivered again, as an endpoint has slots to spare.
//
// A partition's owner holds its endpoints whole: all control of an endpoint is in the task of its partition. The pool and
// the copy of `endpoints` are what tasks share.
//
// It promises (DESIGN §2, promises 3 to 5): every delivery ends or waits with a due time in the schedule; each attempt is
// one row, and a number that had to be sent again says so; an endpoint that is slow, dead or hostile holds only its own
// slots, and what it cannot take leaves memory. It must not wait within a call, nor keep what it can find again.
package dispatch

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/deliverer/replay"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// window bounds the deliveries of a partition that may be unfinished beyond its watermark.
const window = 8192

// Sender makes one attempt; *sender.Sender is one.
type Sender interface {
	Send(d *sender.Destination, m *sender.Message) sender.Result
}

// Endpoints is the local copy of the table `endpoints`; *table.Copy is one.
type Endpoints interface {
	Get(key []byte) (value []byte, ok bool, err error)
}

// Archive is the record in ClickHouse: deliveries that ended, and the events that replays read; *archive.Archive is one. Its
// calls wait for the network.
type Archive interface {
	Find(ctx context.Context, partition int32, organization, delivery string) (*archive.Delivery, error)
	// Recorded begins to find out whether all that has been accepted until now is in the record, as far as an endpoint of
	// the organization is concerned. What it returns is asked until it says so.
	Recorded(organization, endpoint string) func(context.Context) (bool, error)
	// Count is how many events a range has; known is false where only reading them all could tell.
	Count(ctx context.Context, r archive.Range) (n uint64, known bool, err error)
	// Page reads on in a range.
	Page(ctx context.Context, r archive.Range, after archive.Position) (archive.Page, error)
	// Events reads those events that the record still has.
	Events(ctx context.Context, organization string, wanted []*webhooksv1.TakenEvent) ([]*webhooksv1.OutboundEvent, error)
}

// Config is what an operator chooses. The zero value of a field takes its default.
type Config struct {
	// Retries is the schedule of endpoints that have none of their own; schedule.Default.
	Retries schedule.Policy
	// Timeout, Concurrency and Rate (requests a second, 0 = no limit) of endpoints that set none; 15 s, 16, 0.
	Timeout     time.Duration
	Concurrency int
	Rate        float64
	// DisableAfter is how long an endpoint may do nothing but fail before it is disabled; 0 = for ever.
	DisableAfter time.Duration
	// Worker names this process in rows; "deliverer".
	Worker string
}

func (c Config) withDefaults() Config {
	if c.Retries.Delays == nil {
		jitter := c.Retries.Jitter
		c.Retries = schedule.Default()
		if jitter > 0 {
			c.Retries.Jitter = jitter
		}
	}
	if c.Timeout <= 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Concurrency <= 0 {
		c.Concurrency = 16
	}
	if c.Worker == "" {
		c.Worker = schemas.GroupDeliverer
	}
	return c
}

// Deps is what dispatch works with.
type Deps struct {
	Sender    Sender
	Guard     sender.Guard
	Secrets   sender.Opener
	Endpoints Endpoints
	Archive   Archive
	Log       *slog.Logger
	Registry  prometheus.Registerer
}

// Dispatcher is what the tasks of a process share.
type Dispatcher struct {
	cfg     Config
	deps    Deps
	pool    *pool
	metrics *metrics
	changes changes
	sets    setVersions
	room    room
	// searches are those of the tasks in the archive.
	searches sync.WaitGroup
	// reads bounds those of replays.
	reads *semaphore.Weighted

	mu    sync.Mutex
	tasks map[*task]struct{}
}

// New makes a Dispatcher. EndpointChanged must be registered with the copy of `endpoints` before it runs.
func New(cfg Config, deps Deps) (*Dispatcher, error) { return newBounded(cfg, defaultBounds, deps) }

func newBounded(cfg Config, b bounds, deps Deps) (*Dispatcher, error) {
	if err := cfg.Retries.Check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	d := &Dispatcher{cfg: cfg, deps: deps, pool: newPool(b.attempts), reads: semaphore.NewWeighted(readsAtOnce), tasks: map[*task]struct{}{}}
	d.room.bounds = b
	d.changes.seed = maphash.MakeSeed()
	d.metrics = newMetrics(deps.Registry, d)
	return d, nil
}

// Spec is the task group to run.
func (d *Dispatcher) Spec() stream.Spec {
	return stream.Spec{
		Group:   schemas.GroupDeliverer,
		Input:   schemas.Deliveries,
		Stores:  []stream.StoreSpec{schedule.Store(), healthStore(), replay.Store()},
		NewTask: d.newTask,
		Window:  window,
	}
}

// EndpointChanged is the watcher of the copy of `endpoints`: an endpoint resumed drains at once, and one changed is
// read again.
func (d *Dispatcher) EndpointChanged(key, _ []byte) {
	_, endpoint, ok := strings.Cut(string(key), "/")
	if !ok {
		return // the organization's set
	}
	d.changes.bump(endpoint)
	d.mu.Lock()
	defer d.mu.Unlock()
	for t := range d.tasks {
		if t.part.PartitionOf(endpoint) == t.part.ID() {
			t.endpointChanged(endpoint)
		}
	}
}

// Close waits for the attempts that still run, at most until ctx ends: then they end by themselves, by their time-outs.
// No task may be left.
func (d *Dispatcher) Close(ctx context.Context) {
	d.pool.close(ctx)
	d.searches.Wait() // they end with their partitions
}

func (d *Dispatcher) newTask(p *stream.Partition) (stream.Task, error) {
	t := newTask(d, p)
	d.mu.Lock()
	d.tasks[t] = struct{}{}
	d.mu.Unlock()
	p.Wake() // the first Advance finds what waits
	return t, nil
}

func (d *Dispatcher) forget(t *task) {
	d.mu.Lock()
	delete(d.tasks, t)
	d.mu.Unlock()
}

func (d *Dispatcher) eachTask(fn func(*task)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for t := range d.tasks {
		fn(t)
	}
}

// limits of an endpoint, defaults filled in.
func (d *Dispatcher) limits(concurrency uint32, rate *float64) control.Limits {
	l := control.Limits{Concurrency: int(concurrency), Rate: d.cfg.Rate}
	if l.Concurrency == 0 {
		l.Concurrency = d.cfg.Concurrency
	}
	if rate != nil {
		l.Rate = *rate
	}
	return l
}

// changes counts the changes of endpoints, in slots that several share: a reader who finds the count it saw before it
// read knows that what it holds is current.
type changes struct {
	seed  maphash.Seed
	slots [1024]atomic.Uint64
}

func (c *changes) slot(endpoint string) *atomic.Uint64 {
	return &c.slots[maphash.String(c.seed, endpoint)%uint64(len(c.slots))]
}

func (c *changes) bump(endpoint string)         { c.slot(endpoint).Add(1) }
func (c *changes) count(endpoint string) uint64 { return c.slot(endpoint).Load() }

// setVersions remembers which version of an organization's endpoint set the copy is known to hold at least.
type setVersions struct {
	mu   sync.Mutex
	seen map[string]uint64
}

// maxSets bounds what is remembered; beyond it everything is asked for anew.
const maxSets = 100_000

// holds reports whether the copy has seen a version of the organization's set.
func (s *setVersions) holds(from Endpoints, org string, version uint64) (bool, error) {
	if version == 0 {
		return true, nil
	}
	s.mu.Lock()
	known := s.seen[org]
	s.mu.Unlock()
	if known >= version {
		return true, nil
	}
	known, err := readSetVersion(from, org)
	if err != nil {
		return false, fmt.Errorf("read the endpoint set of %s: %w", org, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxSets {
		s.seen = make(map[string]uint64)
	}
	s.seen[org] = max(s.seen[org], known)
	return known >= version, nil
}
