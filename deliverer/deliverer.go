// Package deliverer is the service that sends events to merchants' endpoints and records what came of it.
//
// It runs the task group `deliverer` (package dispatch), which decides what is sent when, over package sender, which makes
// the attempts, and package archive, which finds deliveries that ended; the sinks of the tables whose rows the path makes
// (package rows); and the reads of deliveries, events and attempts (package api). Any number of processes share the work:
// the partitions of `deliveries` are the endpoints', and each endpoint has one owner. The package decides nothing; it puts
// the parts together and stops them in the order of the flow: first what delivers, then what records it.
package deliverer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/deliverer/api"
	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/rows"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/table"
)

// Config is what the operator decides.
type Config struct {
	Kafka kafka.Config
	// StateDir is the process's folder of local state, a cache.
	StateDir string
	// Dispatch has the retry schedule and the defaults of endpoints.
	Dispatch dispatch.Config
	// FlushInterval is the longest that a row waits to be inserted with others; 1 s when 0.
	FlushInterval time.Duration
}

// Deps are what the deliverer needs of others.
type Deps struct {
	// Auth knows the bearer keys.
	Auth httpapi.Authenticator
	// Endpoints is this process's copy of the table. It must not run before New has returned, since the reader of its
	// changes is registered there; whoever made it runs it.
	Endpoints *table.Copy
	// Replays and Health (`endpoint-health`) are this process's copies of those tables.
	Replays, Health *table.Copy
	// Guard says which addresses may be dialled; Keys open the secrets of endpoints.
	Guard *netguard.Guard
	Keys  sender.Opener
	// ClickHouse has the rows; Migrate makes its tables and may be called again.
	ClickHouse driver.Conn
	Migrate    func(context.Context) error
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Deliverer is the running service.
type Deliverer struct {
	sender *sender.Sender
	// dispatcher has the attempts that run.
	dispatcher *dispatch.Dispatcher
	group      *stream.Group
	archive    *archive.Archive
	sinks      []*sink.Sink
	handler    fasthttp.RequestHandler
}

// New puts the parts together. It connects to nothing.
func New(cfg Config, deps Deps) (*Deliverer, error) {
	d := &Deliverer{sender: sender.New(sender.Config{Guard: deps.Guard})}
	if err := d.newGroup(cfg, deps); err != nil {
		return nil, fmt.Errorf("deliverer: %w", err)
	}
	for _, t := range rows.Tables() {
		s, err := sink.New(t, sink.Config{
			Kafka: cfg.Kafka, ClickHouse: deps.ClickHouse, Prepare: deps.Migrate, FlushInterval: cfg.FlushInterval,
		}, deps.Log, deps.Registerer)
		if err != nil {
			return nil, fmt.Errorf("deliverer: %w", err)
		}
		d.sinks = append(d.sinks, s)
	}
	router := httpapi.NewRouter(deps.Auth, deps.Log)
	api.New(deps.ClickHouse, api.Tables{Replays: deps.Replays, Endpoints: deps.Endpoints, Health: deps.Health}, deps.Log).Register(router)
	d.handler = router.Handler()
	return d, nil
}

func (d *Deliverer) newGroup(cfg Config, deps Deps) (err error) {
	if d.archive, err = archive.New(cfg.Kafka, deps.ClickHouse, deps.Log); err != nil {
		return err
	}
	dispatcher, err := dispatch.New(cfg.Dispatch, dispatch.Deps{
		Sender: d.sender, Guard: deps.Guard, Secrets: deps.Keys, Endpoints: deps.Endpoints, Archive: d.archive,
		Log: deps.Log, Registry: deps.Registerer,
	})
	if err != nil {
		return err
	}
	d.dispatcher = dispatcher
	deps.Endpoints.OnChange(dispatcher.EndpointChanged)
	d.group, err = stream.New(dispatcher.Spec(), stream.Config{
		Kafka: cfg.Kafka, StateDir: cfg.StateDir,
	}, deps.Log, deps.Registerer)
	if err != nil {
		return err
	}
	deps.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "webhooks_deliverer_lag_records",
		Help: "Records of deliveries that wait, over the partitions owned by this process.",
	}, func() float64 { return float64(d.group.Lag()) }))
	return nil
}

// Handler answers the deliverer's part of the API.
func (d *Deliverer) Handler() fasthttp.RequestHandler { return d.handler }

// Check is nil while deliveries are made. The sinks are not asked: without ClickHouse the record is late, and everything
// else goes on; CheckSinks tells about them.
func (d *Deliverer) Check(ctx context.Context) error { return d.group.Check(ctx) }

// CheckSinks is nil while rows go through to ClickHouse.
func (d *Deliverer) CheckSinks(ctx context.Context) error {
	var errs []error
	for _, s := range d.sinks {
		errs = append(errs, s.Check(ctx))
	}
	return errors.Join(errs...)
}

// Run works until ctx ends or a part fails. Then it lets what is under way end, hands over the rest, and records what
// there is: the sinks stop last.
func (d *Deliverer) Run(ctx context.Context) error {
	delivering, stop := context.WithCancel(ctx)
	defer stop()
	recording, stopSinks := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSinks()
	var sinks errgroup.Group
	for _, s := range d.sinks {
		sinks.Go(func() error {
			defer stop() // one that ends early has failed
			return s.Run(recording)
		})
	}
	err := d.group.Run(delivering)
	d.endAttempts()
	stopSinks()
	return errors.Join(err, sinks.Wait())
}

// lastAttempts is how long Run waits for attempts whose partitions are gone. Their results are nobody's any more: a new
// owner sends their numbers again.
const lastAttempts = time.Second

func (d *Deliverer) endAttempts() {
	ctx, cancel := context.WithTimeout(context.Background(), lastAttempts)
	defer cancel()
	d.dispatcher.Close(ctx)
	d.archive.Close()
	d.sender.Close()
}
