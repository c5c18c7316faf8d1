package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/deliverer"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/deploy/local/takeover"
	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/settings"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/processor"
	"github.com/betterdata/webhooks/processor/alerts"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
)

// service is one process being put together: what its rooms share, and the stages it will run, in order of dependency.
type service struct {
	process settings.Process
	log     *slog.Logger
	reg     *prometheus.Registry
	kafka   kafka.Config
	http    net.Listener
	admin   *admin
	// own are the addresses that this process and its children listen on.
	own     []string
	topics  chan struct{} // closed once they are there
	tables  map[string]*table.Copy
	rows    *rows
	stages  []lifecycle.Stage
	closers []func() error
}

// newService takes the listeners, so that a port that is taken is told before anything else begins, and answers on the
// admin address from then on.
func newService(ctx context.Context, p settings.Process, h settings.HTTP, stderr io.Writer) (s *service, err error) {
	s = &service{
		process: p, log: newLogger(p, stderr), reg: prometheus.NewRegistry(),
		tables: map[string]*table.Copy{}, topics: make(chan struct{}),
	}
	s.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector())
	if s.http, err = takeover.Listen(ctx, string(h.HTTPAddr), "HTTP_ADDR"); err != nil {
		return nil, err
	}
	ln, err := takeover.Listen(ctx, string(p.AdminAddr), "ADMIN_ADDR")
	if err != nil {
		return nil, errors.Join(err, s.http.Close())
	}
	s.admin = startAdmin(ln, s.reg)
	s.own = []string{s.http.Addr().String(), ln.Addr().String()}
	lifecycle.RegisterMetrics(s.reg, s.admin.status, p.DataDir)
	s.log.Info("listening", "http", s.http.Addr().String(), "admin", ln.Addr().String())
	return s, nil
}

// admin is the server on ADMIN_ADDR. It runs before the process has stages, while an engine is fetched, and is a stage
// later, so that its failure is one.
type admin struct {
	addr    net.Addr
	process atomic.Pointer[lifecycle.Process]
	cancel  context.CancelFunc
	ended   chan error
}

func startAdmin(ln net.Listener, metrics prometheus.Gatherer) *admin {
	ctx, cancel := context.WithCancel(context.Background())
	a := &admin{addr: ln.Addr(), cancel: cancel, ended: make(chan error, 1)}
	server := lifecycle.NewAdmin(ln, metrics, a.status)
	go func() { a.ended <- server.Run(ctx) }()
	return a
}

func (a *admin) status(ctx context.Context) (map[string]error, bool) {
	if p := a.process.Load(); p != nil {
		return p.Status(ctx)
	}
	return map[string]error{"start": errors.New("being put together")}, false
}

func (a *admin) run(ctx context.Context) error {
	select {
	case err := <-a.ended:
		return err
	case <-ctx.Done():
		a.cancel()
		return <-a.ended
	}
}

// run starts the stages and blocks until the process is told to stop and has drained.
func (s *service) run(ctx context.Context) error {
	stages := append([]lifecycle.Stage{{Name: "admin", Run: s.admin.run}}, s.stages...)
	process := lifecycle.New(s.log, time.Duration(s.process.ShutdownTimeout), stages...)
	s.admin.process.Store(process)
	return errors.Join(process.Run(ctx), s.close())
}

// close gives back what outlives the stages, last first. It may be called twice.
func (s *service) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// add appends a stage.
func (s *service) add(name string, run, check func(context.Context) error) {
	s.stages = append(s.stages, lifecycle.Stage{Name: name, Run: run, Check: check})
}

// addEager appends a stage that need not wait for the ones before it.
func (s *service) addEager(name string, run, check func(context.Context) error) {
	s.stages = append(s.stages, lifecycle.Stage{Name: name, Run: run, Check: check, Eager: true})
}

func (s *service) stateDir() string { return filepath.Join(s.process.DataDir, "state") }

// addTopics makes sure of the topics before anything touches them.
func (s *service) addTopics() {
	s.add("topics", func(ctx context.Context) error {
		if err := kafka.EnsureTopics(ctx, s.kafka, s.log); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		close(s.topics)
		<-ctx.Done()
		return nil
	}, func(context.Context) error {
		select {
		case <-s.topics:
			return nil
		default:
			return errors.New("the topics are not there yet")
		}
	})
}

// addTables opens the copies of tables that this process reads, one of each, and runs them. They close with their stage,
// while the broker that they read from is still there.
func (s *service) addTables(topics ...string) error {
	var runs []func(context.Context) error
	for _, topic := range topics {
		c, err := table.New(table.Config{Kafka: s.kafka, StateDir: s.stateDir(), Topic: topic}, s.log, s.reg)
		if err != nil {
			return err
		}
		closing := sync.OnceValue(c.Close)
		s.closers = append(s.closers, closing)
		s.tables[topic] = c
		runs = append(runs, func(ctx context.Context) error { return errors.Join(c.Run(ctx), closing()) })
	}
	s.addEager("tables", func(ctx context.Context) error {
		select {
		case <-s.topics:
		case <-ctx.Done():
		}
		group, ctx := errgroup.WithContext(ctx)
		for _, run := range runs {
			group.Go(func() error { return run(ctx) })
		}
		return group.Wait()
	}, func(ctx context.Context) error {
		var errs []error
		for _, topic := range topics {
			errs = append(errs, s.tables[topic].Check(ctx))
		}
		return errors.Join(errs...)
	})
	return nil
}

// addHTTP serves a room's reads to the edge, when the services run apart.
func (s *service) addHTTP(handler fasthttp.RequestHandler) {
	s.add("http", func(ctx context.Context) error { return httpapi.Serve(ctx, s.http, handler) }, nil)
}

// rows is the connection to ClickHouse and the making of its tables, which happens once whoever asks first.
type rows struct {
	conn    driver.Conn
	migrate func(context.Context) error
}

// openRows opens the connections of this process to ClickHouse, and adds the stage that closes them. Nothing connects yet: without ClickHouse the record is late and everything else goes on.
func (s *service) openRows(ctx context.Context, c settings.ClickHouse, url string) error {
	conn, err := clickhouse.Open(ctx, url)
	if err != nil {
		return err
	}
	closing := sync.OnceValue(conn.Close)
	s.closers = append(s.closers, closing)
	// A server that stops waits for its connections to be closed.
	s.add("rows", func(ctx context.Context) error {
		<-ctx.Done()
		return closing()
	}, nil)
	var mu sync.Mutex
	made := false
	s.rows = &rows{conn: conn, migrate: func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if made {
			return nil
		}
		if err := clickhouse.Migrate(ctx, url, s.log); err != nil {
			return err
		}
		if err := clickhouse.SetRetention(ctx, conn, time.Duration(c.Retention)); err != nil {
			return err
		}
		made = true
		return nil
	}}
	return nil
}

// guard knows our own listeners: a delivery to ourselves could loop, and the engine's have no password.
func (s *service) guard(g settings.Guard) (*netguard.Guard, error) {
	policy := netguard.Policy{AllowCIDRs: g.DeliveryAllowCIDRs, AllowHTTP: g.DeliveryAllowHTTP, AllowPorts: g.DeliveryAllowPorts}
	for _, addr := range s.own {
		own, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, fmt.Errorf("own listener: %w", err)
		}
		policy.OwnListeners = append(policy.OwnListeners, own)
	}
	if len(policy.AllowCIDRs) > 0 || policy.AllowHTTP {
		s.log.Warn("deliveries may reach private addresses", "cidrs", fmt.Sprint(policy.AllowCIDRs), "http", policy.AllowHTTP)
	}
	return netguard.New(policy), nil
}

func endpointDefaults(d settings.EndpointDefaults) resource.Defaults {
	return resource.Defaults{
		Concurrency: d.EndpointConcurrency, RateLimit: float64(d.EndpointRateLimit),
		TimeoutMS: uint32(time.Duration(d.DeliveryTimeout).Milliseconds()),
	}
}

func (s *service) newIngest(c settings.Ingest, guard *netguard.Guard, processorReads, delivererReads fasthttp.RequestHandler) (*ingest.Edge, error) {
	keyring, err := seal.NewKeyring(string(c.SecretsKey))
	if err != nil {
		return nil, err
	}
	filters, err := eventfilter.NewCompiler()
	if err != nil {
		return nil, err
	}
	return ingest.New(ingest.Config{
		Kafka: s.kafka, MaxBodyBytes: c.MaxBodyBytes,
		Stripe: stripe.Config{Secrets: c.StripeWebhookSecret.List(), Livemode: stripe.Livemode(c.StripeLivemode)},
	}, ingest.Deps{
		Listener: s.http, Routes: s.tables[schemas.Routes],
		Auth: httpapi.AdminKey(string(c.AdminAPIKey)), AdminKey: string(c.AdminAPIKey), Keyring: keyring,
		Rules:     resource.NewRules(resource.Config{Defaults: endpointDefaults(c.EndpointDefaults), Guard: guard, Filters: filters}),
		Processor: processorReads, Deliverer: delivererReads, Log: s.log, Registerer: s.reg,
	})
}

// loadPlans reads the plans. It is called before anything is begun, too, so that a broken file is all there is to tell.
func loadPlans(c settings.Plans) (*plans.Plans, error) {
	set, err := plans.Load(c.PlansFile)
	if err != nil {
		return nil, fmt.Errorf("PLANS_FILE: %w", err)
	}
	return set, nil
}

func (s *service) newProcessor(c settings.Processor) (*processor.Processor, error) {
	set, err := loadPlans(c.Plans)
	if err != nil {
		return nil, err
	}
	keyring, err := seal.NewKeyring(string(c.SecretsKey))
	if err != nil {
		return nil, err
	}
	return processor.New(processor.Config{
		Kafka: s.kafka, StateDir: s.stateDir(), Sessions: sessions(c.ProcessorSessions), Plans: set,
		DedupeRetention: c.DedupeRetention.Default, DedupeBySource: c.DedupeRetention.BySource,
		EndpointsPerOrg: c.EndpointsPerOrg, EndpointDefaults: endpointDefaults(c.EndpointDefaults),
		EntitlementsMaxAge: time.Duration(c.EntitlementsMaxAge), FlushInterval: time.Duration(c.ClickHouseFlushInterval),
		Alerts: alerts.Config{URLs: c.AlertmanagerURL.List(), Interval: time.Duration(c.AlertInterval)},
	}, processor.Deps{
		Tables: processor.Tables{
			Billing: s.tables[schemas.Billing], Entitlements: s.tables[schemas.Entitlements],
			Endpoints: s.tables[schemas.Endpoints], Connections: s.tables[schemas.Connections],
		},
		Auth: httpapi.AdminKey(string(c.AdminAPIKey)), Keys: keyring,
		ClickHouse: s.rows.conn, Migrate: s.rows.migrate, Log: s.log, Registerer: s.reg,
	})
}

// maxSessions is what a processor runs of itself at most: each has clients and memory of its own.
const maxSessions = 4

// sessions is how many a processor runs of each group: one a processor of the machine, when nobody says.
func sessions(set *int32) int {
	if set != nil {
		return int(*set)
	}
	return min(runtime.GOMAXPROCS(0), maxSessions)
}

func (s *service) newDeliverer(c settings.Deliverer, guard *netguard.Guard) (*deliverer.Deliverer, error) {
	keyring, err := seal.NewKeyring(string(c.SecretsKey))
	if err != nil {
		return nil, err
	}
	return deliverer.New(deliverer.Config{
		Kafka: s.kafka, StateDir: s.stateDir(),
		Dispatch: dispatch.Config{
			Retries: schedule.Policy{Delays: c.RetrySchedule, Jitter: float64(c.RetryJitter)},
			Timeout: time.Duration(c.DeliveryTimeout), Concurrency: int(c.EndpointConcurrency), Rate: float64(c.EndpointRateLimit),
			DisableAfter: time.Duration(c.EndpointDisableAfter),
			Worker:       worker(),
		},
		FlushInterval: time.Duration(c.ClickHouseFlushInterval),
	}, deliverer.Deps{
		Auth: httpapi.AdminKey(string(c.AdminAPIKey)), Endpoints: s.tables[schemas.Endpoints], Replays: s.tables[schemas.Replays],
		Health: s.tables[schemas.EndpointHealth], Guard: guard, Keys: keyring,
		ClickHouse: s.rows.conn, Migrate: s.rows.migrate, Log: s.log, Registerer: s.reg,
	})
}

// worker names this process in rows.
func worker() string {
	name, err := os.Hostname()
	if err != nil {
		return "webhooks"
	}
	return name
}
