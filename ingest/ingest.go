// Package ingest is the edge: the only public address, where every webhook and every write enters.
//
// A webhook's way: the headers are judged, the body is read once into memory of its own, the source's package verifies
// and reads it (ingest/source, ingest/stripe), the account's organization is looked up in a copy of the table `routes`,
// the record is produced (ingest/produce), and only when all in-sync replicas have it is the request answered 200. A
// management write becomes a command on the same log and is answered when its owner has carried it out
// (ingest/commands). Everything else is forwarded to the processor or the deliverer.
//
// What it promises: a 2xx is durable; when Kafka is slow or down the answer is 503 with Retry-After, and memory stays
// bounded; a refusal is counted and recorded (ingest/rejections), never the body of the refused request.
//
// What it must not do: decide what an event means, keep state that a crash could lose, or let anything from outside
// become a metric label or a log line unchecked.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/betterdata/webhooks/ingest/commands"
	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/ingest/rejections"
	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
)

// Config is what the operator decides. Zero values take the defaults.
type Config struct {
	// HTTPAddr is the public address; port 0 picks one. It is not used when Deps has a Listener.
	HTTPAddr string
	Kafka    kafka.Config
	Stripe   stripe.Config
	// MaxBodyBytes bounds a webhook's body; default 1 MiB, at most schemas.MaxInboundBody.
	MaxBodyBytes int
	// HeldBytes bounds the bodies in memory; default 256 MiB. Beyond it requests are answered 503.
	HeldBytes int64
	// AckTimeout is how long a request waits for Kafka before it is answered 503; default 5 s.
	AckTimeout time.Duration
	// Linger is how long a record may wait for others to share its batch; default 2 ms.
	Linger time.Duration
	// OutcomeTimeout is how long a management write waits to be carried out before it is answered 202; default 10 s.
	OutcomeTimeout time.Duration
	// ReadTimeout bounds a request's arrival, headers and body together; default 10 s, 1 MiB at 100 kB a second.
	ReadTimeout time.Duration
	// DrainTimeout bounds the wait for open requests when the edge stops; default 15 s.
	DrainTimeout time.Duration
	// Worker names this process in rejected_requests; default the host's name.
	Worker string
}

// Routes is the copy of the table `routes` (internal/table).
type Routes interface {
	// OnChange is called once, before the copy runs.
	OnChange(fn func(key, value []byte))
	// Check is nil once the copy is current.
	Check(ctx context.Context) error
	// Age is for how long changes may have been missed.
	Age() time.Duration
}

// Deps are what the edge needs of others.
type Deps struct {
	// Listener is where the edge serves, and Run closes it; nil: Listen takes HTTPAddr.
	Listener net.Listener
	Routes   Routes
	// Auth knows the bearer keys, Keyring seals secrets, Rules judge what is asked for.
	Auth    httpapi.Authenticator
	Keyring *seal.Keyring
	Rules   *resource.Rules
	// AdminKey is what Processor and Deliverer are asked with on the edge's own behalf.
	AdminKey string
	// Processor and Deliverer answer what the edge does not: the room's handler, or httpapi.Proxy to it.
	Processor, Deliverer fasthttp.RequestHandler
	Log                  *slog.Logger
	Registerer           prometheus.Registerer
}

const (
	defaultMaxBody      = 1 << 20
	defaultDrainTimeout = 15 * time.Second
	// restTimeout bounds, after that, what is left for Kafka.
	restTimeout = 3 * time.Second
	// openEvery is how often a starting edge looks whether it can begin.
	openEvery = 20 * time.Millisecond
)

// Edge is the running service.
type Edge struct {
	cfg        Config
	deps       Deps
	log        *slog.Logger
	producer   *produce.Producer
	commands   *commands.Commands
	rejections *rejections.Recorder
	replicas   *replicas
	webhooks   *webhooks
	server     *fasthttp.Server
	ready      readiness
	listener   net.Listener
}

// New checks the configuration and prepares the edge; nothing runs or listens yet.
func New(cfg Config, deps Deps) (*Edge, error) {
	if cfg.MaxBodyBytes <= 0 {
		cfg.MaxBodyBytes = defaultMaxBody
	}
	if cfg.DrainTimeout <= 0 {
		cfg.DrainTimeout = defaultDrainTimeout
	}
	if cfg.MaxBodyBytes > schemas.MaxInboundBody {
		return nil, fmt.Errorf("ingest: MAX_BODY_BYTES is %d, at most %d can be stored", cfg.MaxBodyBytes, schemas.MaxInboundBody)
	}
	cfg.Worker = orHostname(cfg.Worker)
	sources, names, err := configured(cfg)
	if err != nil {
		return nil, err
	}
	producer, err := produce.New(produce.Config{Kafka: cfg.Kafka, Timeout: cfg.AckTimeout, Linger: cfg.Linger, MaxBytes: cfg.HeldBytes}, deps.Log)
	if err != nil {
		return nil, err
	}
	writes, err := commands.New(commands.Config{Kafka: cfg.Kafka, Wait: cfg.OutcomeTimeout}, commands.Deps{
		Sender: producer, Auth: deps.Auth, Keyring: deps.Keyring, Rules: deps.Rules, AdminKey: deps.AdminKey,
		Processor: deps.Processor, Deliverer: deps.Deliverer, Log: deps.Log,
	})
	if err != nil {
		return nil, err
	}
	e := &Edge{cfg: cfg, deps: deps, log: deps.Log, producer: producer, commands: writes, listener: deps.Listener}
	e.replicas = newReplicas(cfg.Kafka, kadm.NewClient(producer.Client()))
	e.rejections = rejections.New(rejections.Config{Sources: names, Worker: cfg.Worker}, rejectionSender(cfg.Kafka, producer), deps.Log)
	routes := newRoutes(deps.Log, deps.Routes.Age)
	deps.Routes.OnChange(routes.changed)
	metrics := newMetrics(deps.Registerer, names, func() float64 { return float64(producer.Budget.Used()) })
	e.webhooks = &webhooks{
		sources: sources, maxBody: cfg.MaxBodyBytes, producer: producer, routes: routes, rejections: e.rejections,
		metrics: metrics, scratch: sync.Pool{New: func() any { return new(scratch) }}, log: deps.Log,
		unstored: rate.Sometimes{Interval: time.Second}, open: e.ready.opened,
	}
	e.server = e.newServer(metrics)
	return e, nil
}

// configured makes the sources that have a secret.
func configured(cfg Config) (map[string]source.Source, []string, error) {
	s, err := stripe.New(cfg.Stripe)
	if err != nil {
		return nil, nil, err
	}
	return map[string]source.Source{s.Name(): s}, []string{s.Name()}, nil
}

// rejectionSender spreads rows over the partitions of their topic.
func rejectionSender(cfg kafka.Config, producer *produce.Producer) rejections.Send {
	var next uint32
	return func(row []byte, done func(error)) {
		// The recorder calls it under its lock.
		next++
		producer.TrySend(produce.Record{Topic: schemas.Rejections, Value: row}, int32(next%uint32(max(cfg.Partitions, 1))), done)
	}
}

// Listen takes the public address. Run does it when it was not called before.
func (e *Edge) Listen() (net.Addr, error) {
	if e.listener != nil {
		return e.listener.Addr(), nil
	}
	listener, err := net.Listen("tcp", e.cfg.HTTPAddr)
	if err != nil {
		return nil, fmt.Errorf("listen on HTTP_ADDR %s: %w", e.cfg.HTTPAddr, err)
	}
	e.listener = listener
	return listener.Addr(), nil
}

// Addr is the address it listens on, nil before Listen.
func (e *Edge) Addr() net.Addr {
	if e.listener == nil {
		return nil
	}
	return e.listener.Addr()
}

// Run serves until ctx ends; then it stops accepting, answers what is open, hands over what is recorded and returns nil.
func (e *Edge) Run(ctx context.Context) error {
	if _, err := e.Listen(); err != nil {
		return err
	}
	// What serves requests outlives ctx until the last one is answered.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(background)
	group.Go(func() error { return e.commands.Run(background) })
	group.Go(func() error { e.rejections.Run(background); return nil })
	group.Go(func() error { e.replicas.run(background); return nil })
	group.Go(func() error { e.ready.open(background, e.deps.Routes.Check, e.commands.Check); return nil })
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(newGentleListener(e.listener)) }()

	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serve on %s: %w", e.listener.Addr(), err)
	case <-failed.Done():
	}
	err = errors.Join(err, e.drain(context.WithoutCancel(ctx)))
	stop()
	return errors.Join(err, group.Wait())
}

// drain finishes what is open, in the order of the flow. Whatever Kafka does, it ends: what it could not hand over is
// rows of refusals, and records whose senders were answered 503.
func (e *Edge) drain(ctx context.Context) error {
	// A third is left to answer writes that no outcome has come for.
	outcomes, cancel := context.WithTimeout(ctx, e.cfg.DrainTimeout*2/3)
	defer cancel()
	e.commands.Drain(outcomes)
	open, cancel := context.WithTimeout(ctx, e.cfg.DrainTimeout)
	defer cancel()
	err := e.server.ShutdownWithContext(open)
	if err != nil {
		err = fmt.Errorf("answer the open requests: %w", err)
	}
	rest, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	e.rejections.Drain(rest)
	if unsent := e.producer.Close(rest); unsent > 0 {
		e.log.Warn("stopped before Kafka had acknowledged everything; nothing of it was answered 200", "records", unsent)
	}
	return err
}

// Check is nil while a webhook that arrives would be made durable and find its way: Kafka has enough replicas in sync,
// the routes are current and no outcome of a command can be missed.
func (e *Edge) Check(ctx context.Context) error {
	if err := e.deps.Routes.Check(ctx); err != nil {
		return err
	}
	if err := e.commands.Check(ctx); err != nil {
		return err
	}
	return e.replicas.check()
}
