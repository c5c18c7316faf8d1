// Package processor is the service that makes things happen: what events and commands do to an organization, where
// events of unknown accounts go, and which endpoints hear of what.
//
// It runs the task groups `inbound`, `router` (routing) and `fan-out`, the sinks of the tables whose rows it makes, the
// alerts of failed payments, and the reads of the processor's part of the API. Each of them works on its own: what they
// say to each other goes over Kafka, so any number of processes can share the work. The package decides nothing; it puts
// the parts together, starts them all at once and stops them in the order that events flow, so that what a part has taken
// reaches the next.
package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/processor/alerts"
	"github.com/betterdata/webhooks/processor/api"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/eventcatalogue"
	"github.com/betterdata/webhooks/processor/fanout"
	"github.com/betterdata/webhooks/processor/inbound"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/processor/routing"
	"github.com/betterdata/webhooks/processor/rows"
	"github.com/betterdata/webhooks/schemas"
	"github.com/betterdata/webhooks/schemas/eventtypes"
)

// Config is what the operator decides.
type Config struct {
	Kafka kafka.Config
	// StateDir is the process's folder of local state, a cache.
	StateDir string
	// Sessions is how many partitions' loops of each group run side by side; 1 when 0.
	Sessions int

	Plans *plans.Plans
	// DedupeRetention is how long an event is recognised when it is sent again; DedupeBySource replaces it for a source.
	DedupeRetention time.Duration
	DedupeBySource  map[string]time.Duration
	// EntitlementsMaxAge is how far behind entitlements may be that are answered while Kafka cannot be reached; 0:
	// however far.
	EntitlementsMaxAge time.Duration
	// EndpointsPerOrg bounds the endpoints of an organization; EndpointDefaults hold where one does not say otherwise.
	EndpointsPerOrg  int
	EndpointDefaults resource.Defaults
	// FlushInterval is the longest that a row waits to be inserted with others; 1 s when 0.
	FlushInterval time.Duration
	// Alerts says whom to tell of failed payments; nobody when it has no URLs.
	Alerts alerts.Config
}

// Tables are this process's copies of the public tables. They must not run before New has returned, since readers of
// their changes are registered there; whoever made them runs them.
type Tables struct {
	Billing, Entitlements, Endpoints, Connections *table.Copy
}

// Deps are what the processor needs of others.
type Deps struct {
	Tables Tables
	// Auth knows the bearer keys; Keys open and seal the values of endpoints' headers.
	Auth httpapi.Authenticator
	Keys commands.Sealer
	// ClickHouse has the rows; Migrate makes its tables and may be called again.
	ClickHouse driver.Conn
	Migrate    func(context.Context) error
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Processor is the running service.
type Processor struct {
	// groups in the order of the flow, then the sinks.
	groups  []part
	sinks   []part
	alerts  []part // none when nobody is to be told
	handler fasthttp.RequestHandler
}

// part is a group, a sink, or what sends the alerts.
type part struct {
	name string
	part interface {
		Run(ctx context.Context) error
		Check(ctx context.Context) error
	}
}

// New puts the parts together. It connects to nothing.
func New(cfg Config, deps Deps) (p *Processor, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("processor: %w", err)
		}
	}()
	p = &Processor{}
	if p.groups, err = newGroups(cfg, deps); err != nil {
		return nil, err
	}
	if p.sinks, err = newSinks(cfg, deps); err != nil {
		return nil, err
	}
	if p.alerts, err = newAlerts(cfg, deps); err != nil {
		return nil, err
	}
	router := httpapi.NewRouter(deps.Auth, deps.Log)
	tables := api.Tables{
		Billing: deps.Tables.Billing, Entitlements: deps.Tables.Entitlements,
		Endpoints: deps.Tables.Endpoints, Connections: deps.Tables.Connections,
	}
	api.New(api.Config{Plans: cfg.Plans, EntitlementsMaxAge: cfg.EntitlementsMaxAge}, tables, deps.ClickHouse, deps.Log).Routes(router)
	types, err := eventtypes.Load()
	if err != nil {
		return nil, err
	}
	eventcatalogue.Routes(router, types)
	p.handler = router.Handler()
	return p, nil
}

func newGroups(cfg Config, deps Deps) (groups []part, err error) {
	specs, err := newSpecs(cfg, deps)
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		group, err := stream.New(spec, stream.Config{Kafka: cfg.Kafka, StateDir: cfg.StateDir, Sessions: cfg.Sessions}, deps.Log, deps.Registerer)
		if err != nil {
			return nil, err
		}
		registerLag(deps.Registerer, spec.Group, group)
		groups = append(groups, part{"group " + spec.Group, group})
	}
	return groups, nil
}

func newSinks(cfg Config, deps Deps) (sinks []part, err error) {
	for _, t := range rows.Tables() {
		s, err := sink.New(t, sink.Config{
			Kafka: cfg.Kafka, ClickHouse: deps.ClickHouse, Prepare: deps.Migrate, FlushInterval: cfg.FlushInterval,
		}, deps.Log, deps.Registerer)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, part{"sink of " + t.Name, s})
	}
	return sinks, nil
}

func newAlerts(cfg Config, deps Deps) ([]part, error) {
	if len(cfg.Alerts.URLs) == 0 {
		deps.Log.Info("no alerts of failed payments are sent: ALERTMANAGER_URL is not set")
		return nil, nil
	}
	a, err := alerts.New(cfg.Alerts, deps.Tables.Billing, deps.Log, deps.Registerer)
	if err != nil {
		return nil, err
	}
	return []part{{"alerts", a}}, nil
}

// newSpecs makes the task groups, in the order that events flow.
func newSpecs(cfg Config, deps Deps) ([]stream.Spec, error) {
	router, err := routing.New(routing.Config{Handles: handles, Subscription: billing.SubscriptionOf, Settled: billing.SettledBy}, deps.Log, deps.Registerer)
	if err != nil {
		return nil, err
	}
	applier, err := commands.New(commands.Config{EndpointsPerOrg: cfg.EndpointsPerOrg, Defaults: cfg.EndpointDefaults}, deps.Keys)
	if err != nil {
		return nil, err
	}
	in, err := inbound.New(inbound.Config{
		Plans: cfg.Plans, DedupeRetention: cfg.DedupeRetention, DedupeBySource: cfg.DedupeBySource,
	}, applier, deps.Log, deps.Registerer)
	if err != nil {
		return nil, err
	}
	out, err := fanout.New(deps.Tables.Endpoints, deps.Log, deps.Registerer)
	if err != nil {
		return nil, err
	}
	return []stream.Spec{router.Spec(), in.Spec(), out.Spec()}, nil
}

// handles reports whether a source's event type has an effect.
func handles(source, eventType string) bool {
	return source == schemas.SourceStripe && billing.Handles(eventType)
}

// Handler answers the processor's part of the API.
func (p *Processor) Handler() fasthttp.RequestHandler { return p.handler }

// Check is nil while every group does its work. The sinks are not asked: without ClickHouse the record is late, and
// everything else goes on; CheckSinks tells about them.
func (p *Processor) Check(ctx context.Context) error { return checkAll(ctx, p.groups) }

// CheckSinks is nil while rows go through to ClickHouse.
func (p *Processor) CheckSinks(ctx context.Context) error { return checkAll(ctx, p.sinks) }

func checkAll(ctx context.Context, parts []part) error {
	var errs []error
	for _, part := range parts {
		errs = append(errs, part.part.Check(ctx))
	}
	return errors.Join(errs...)
}

// Run works until ctx ends or a part fails, then stops the parts in the order of the flow: each is done before the one
// it hands to is told to stop.
func (p *Processor) Run(ctx context.Context) error {
	parts := slices.Concat(p.groups, p.sinks, p.alerts)
	running := make([]*run, len(parts))
	failed := make(chan struct{}, len(parts))
	for i, part := range parts {
		running[i] = begin(ctx, part, failed)
	}
	select {
	case <-ctx.Done():
	case <-failed:
	}
	// Groups are links of a chain; those at its end have nothing to say to each other.
	var errs []error
	for _, r := range running[:len(p.groups)] {
		errs = append(errs, r.stop(context.Cause(ctx)))
	}
	for _, r := range running[len(p.groups):] {
		r.cancel(context.Cause(ctx))
	}
	for _, r := range running[len(p.groups):] {
		errs = append(errs, r.stop(context.Cause(ctx)))
	}
	return errors.Join(errs...)
}

// run is a part that runs.
type run struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error
}

// begin runs a part whose stop is its own: the end of ctx alone does not reach it. A part that ends before it is told
// to has failed.
func begin(ctx context.Context, p part, failed chan<- struct{}) *run {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &run{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		err := p.part.Run(own)
		if own.Err() == nil && err == nil {
			err = errors.New("ended by itself")
		}
		if err != nil {
			r.err = fmt.Errorf("%s: %w", p.name, err)
			failed <- struct{}{}
		}
	}()
	return r
}

// stop waits until the part has ended. The cause tells it how much time there is.
func (r *run) stop(cause error) error {
	r.cancel(cause)
	<-r.done
	return r.err
}
