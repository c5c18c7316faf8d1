// Package commands carries out management writes: it validates a request, makes ids, seals secrets, produces a Command
// to its owner's topic and answers when the owner's outcome is committed.
//
// A write is answered only once it is durable and done: its outcome is a record of the same transaction as the change, so
// a read that begins after the answer and passes its read barrier shows it. When no outcome comes in time the answer is
// 202: the command is durable, and will be carried out. Commands on endpoints go to the organization's owner (topic
// `inbound`), those on connections to the account's (`inbound.unrouted`), those on deliveries, and tests, to the endpoint's
// (`deliveries`). The owner also judges If-Match and
// Idempotency-Key: only there is it known which version a change meets, and whether it was made before.
//
// Secrets leave this package sealed, or in the one answer that gives them out; they are never logged.
package commands

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	"github.com/betterdata/webhooks/schemas/eventtypes"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Scopes of the writes.
const (
	scopeEndpoints   = "endpoints:write"
	scopeConnections = "connections:write"
	scopeDeliveries  = "deliveries:write"
)

const defaultWait = 10 * time.Second

// Config is how commands are sent.
type Config struct {
	Kafka kafka.Config
	// Wait is how long an outcome is awaited before the answer is 202; default 10 s. A test has its endpoint's time-out besides,
	// and Drain ends both.
	Wait time.Duration
}

// Sender makes a record durable (ingest/produce).
type Sender interface {
	Send(produce.Record) error
}

// Deps are what commands need of others.
type Deps struct {
	Sender  Sender
	Auth    httpapi.Authenticator
	Keyring *seal.Keyring
	Rules   *resource.Rules
	// AdminKey is what the rooms are asked with.
	AdminKey string
	// Processor answers the reads of the same paths, and which account a connection is of; Deliverer, whose a delivery is.
	Processor, Deliverer fasthttp.RequestHandler
	Log                  *slog.Logger
}

// Commands serves the writes. Run must run for outcomes to be seen.
type Commands struct {
	cfg      Config
	deps     Deps
	outcomes *outcomes
	types    *eventtypes.Catalogue
	router   *httpapi.Router
	// drained ends the waits that are left when the edge stops.
	drained context.Context
	drain   context.CancelFunc
}

// New prepares the writes.
func New(cfg Config, deps Deps) (*Commands, error) {
	if deps.Keyring == nil || deps.Auth == nil || deps.Rules == nil || deps.AdminKey == "" || deps.Processor == nil || deps.Deliverer == nil {
		return nil, errors.New("commands: Keyring, Auth, Rules, AdminKey, Processor and Deliverer are required")
	}
	if cfg.Wait <= 0 {
		cfg.Wait = defaultWait
	}
	types, err := eventtypes.Load()
	if err != nil {
		return nil, err
	}
	outcomes, err := newOutcomes(cfg.Kafka, deps.Log)
	if err != nil {
		return nil, err
	}
	c := &Commands{cfg: cfg, deps: deps, outcomes: outcomes, types: types, router: httpapi.NewRouter(deps.Auth, deps.Log)}
	c.drained, c.drain = context.WithCancel(context.Background())
	c.routes()
	return c, nil
}

func (c *Commands) routes() {
	const (
		endpoints   = "/v1/orgs/{org}/endpoints"
		endpoint    = endpoints + "/{id}"
		enable      = endpoint + "/enable"
		disable     = endpoint + "/disable"
		rotate      = endpoint + "/rotate-secret"
		test        = endpoint + "/test"
		replay      = endpoint + "/replay"
		replays     = "/v1/orgs/{org}/replays/{id}"
		connections = "/v1/orgs/{org}/connections"
		connection  = connections + "/{id}"
		delivery    = "/v1/orgs/{org}/deliveries/{id}"
	)
	c.router.Handle(http.MethodPost, endpoints, scopeEndpoints, c.createEndpoint)
	c.router.Handle(http.MethodPatch, endpoint, scopeEndpoints, c.patchEndpoint)
	c.router.Handle(http.MethodDelete, endpoint, scopeEndpoints, c.deleteEndpoint)
	c.router.Handle(http.MethodPost, enable, scopeEndpoints, c.setEnabled(`{"enabled":true}`))
	c.router.Handle(http.MethodPost, disable, scopeEndpoints, c.setEnabled(`{"enabled":false}`))
	c.router.Handle(http.MethodPost, rotate, scopeEndpoints, c.rotateSecret)
	c.router.Handle(http.MethodPost, test, scopeEndpoints, c.testEndpoint)
	c.router.Handle(http.MethodPost, replay, scopeDeliveries, c.startReplay)
	c.router.Handle(http.MethodPost, replays+"/pause", scopeDeliveries, c.changeReplay(schemas.ReplayPaused))
	c.router.Handle(http.MethodPost, replays+"/resume", scopeDeliveries, c.changeReplay(schemas.ReplayRunning))
	c.router.Handle(http.MethodPost, replays+"/cancel", scopeDeliveries, c.changeReplay(schemas.ReplayCanceled))
	c.router.Handle(http.MethodPost, delivery+"/retry", scopeDeliveries, c.retryDelivery)
	c.router.Handle(http.MethodPost, delivery+"/cancel", scopeDeliveries, c.cancelDelivery)
	c.router.Handle(http.MethodPost, connections, scopeConnections, c.createConnection)
	c.router.Handle(http.MethodDelete, connection, scopeConnections, c.deleteConnection)
	for _, path := range []string{endpoints, endpoint, connections, connection} {
		c.router.HandleRaw(http.MethodGet, path, c.deps.Processor)
	}
}

// Handler answers the writes, and hands the reads of the same paths to the processor, so that Allow names both.
func (c *Commands) Handler() fasthttp.RequestHandler { return c.router.Handler() }

// Run reads outcomes until ctx ends.
func (c *Commands) Run(ctx context.Context) error { return c.outcomes.run(ctx) }

// Drain lets the writes that are open, and those that still come, wait for their outcomes until ctx ends. Then they are answered
// 202: a test may wait for longer than the edge does.
func (c *Commands) Drain(ctx context.Context) { context.AfterFunc(ctx, c.drain) }

// Check is nil once no outcome of a command sent from now on can be missed.
func (c *Commands) Check(context.Context) error {
	if !c.outcomes.tailing.Load() {
		return errors.New("command outcomes are not read yet")
	}
	return nil
}

// owner is where a command goes.
type owner struct{ topic, routingKey string }

func ofOrganization(org string) owner { return owner{schemas.Inbound, org} }

func ofAccount(source, account string) owner {
	return owner{schemas.InboundUnrouted, schemas.AccountKey(source, account)}
}

func ofEndpoint(endpoint string) owner { return owner{schemas.Deliveries, endpoint} }

// command is a command of the request's principal, with its id and what the headers ask: If-Match of a change to what is
// there, Idempotency-Key of a POST.
func command(ctx *fasthttp.RequestCtx, p httpapi.Principal) (cmd *webhooksv1.Command, problem *httpapi.Problem) {
	cmd = &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: httpapi.Org(ctx), KeyId: p.KeyID, IssuedUnixMs: time.Now().UnixMilli(),
	}
	if ctx.IsPost() {
		cmd.IdempotencyKey, problem = idempotencyKey(ctx)
	} else {
		cmd.Precondition, problem = ifMatch(ctx)
	}
	return cmd, problem
}

// ifMatch is what the request asks of the version that it changes. Its owner judges it: here another change may be on its
// way already.
func ifMatch(ctx *fasthttp.RequestCtx) (*webhooksv1.Precondition, *httpapi.Problem) {
	asked, problem := httpapi.ReadIfMatch(ctx)
	if asked == nil {
		return nil, problem
	}
	return &webhooksv1.Precondition{Any: asked.Any, Versions: asked.Versions}, nil
}

// errPending says that the command is durable and its outcome not known yet.
var errPending = errors.New("no outcome in time")

// carryOut sends a command and waits for its outcome. A refusal comes back as a *httpapi.Problem. One with an
// Idempotency-Key goes to the organization's owner, who hands it on to whoever has to carry it out; the answer says so
// when it is an earlier command's.
func (c *Commands) carryOut(ctx *fasthttp.RequestCtx, to owner, cmd *webhooksv1.Command) (*webhooksv1.CommandOutcome, error) {
	return c.carryOutWithin(ctx, c.cfg.Wait, to, cmd)
}

func (c *Commands) carryOutWithin(ctx *fasthttp.RequestCtx, wait time.Duration, to owner, cmd *webhooksv1.Command) (*webhooksv1.CommandOutcome, error) {
	if err := c.Check(context.Background()); err != nil {
		return nil, httpapi.Unavailable("unavailable", "The service is starting. Send the request again.")
	}
	if cmd.IdempotencyKey != nil {
		to = ofOrganization(cmd.OrganizationId)
	}
	record, err := cloudevent.Command(cmd)
	if err != nil {
		return nil, err
	}
	outcome, forget := c.outcomes.expect(cmd.Id)
	defer forget()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	if err := c.deps.Sender.Send(produce.Record{
		Topic: to.topic, RoutingKey: to.routingKey, Value: record.Value, Headers: record.Headers,
	}); err != nil {
		c.deps.Log.Warn("command not stored", "org", cmd.OrganizationId, "topic", to.topic, "error", err)
		return nil, httpapi.Unavailable("unavailable", "The change could not be stored in time. Look whether it was made, or send it again.")
	}
	select {
	case o := <-outcome:
		if o.Replayed {
			ctx.Response.Header.Set(replayedHeader, "true")
		}
		if refusal := o.GetRefusal(); refusal != nil {
			return nil, resource.Problem(refusal)
		}
		return o, nil
	case <-timer.C:
		return nil, errPending
	case <-c.drained.Done():
		return nil, errPending
	}
}

// accepted answers 202: what the command changes is at location once it is done.
func accepted(ctx *fasthttp.RequestCtx, location string, body any) {
	ctx.Response.Header.Set(fasthttp.HeaderLocation, location)
	httpapi.WriteJSON(ctx, http.StatusAccepted, body)
}
