// Package api answers the processor's part of the API: an organization's entitlements, billing record and audit log,
// endpoints and connections.
//
// Everything but the audit log is read from this instance's copies of the public tables. A management read first waits
// until the copy holds all that was committed when the request came, so that a client sees its own writes through
// whichever instance; a read of entitlements does not, because it must answer at once and without Kafka: it says the
// copy's age, and is refused beyond Config.EntitlementsMaxAge. The audit log is read from ClickHouse, and is 503 without it. The package changes
// nothing: every write enters at ingest.
package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Scopes of the routes.
const (
	scopeBilling     = "billing:read"
	scopeEndpoints   = "endpoints:read"
	scopeConnections = "connections:read"
)

// barrierTimeout bounds how long a read waits for its copy.
const barrierTimeout = 5 * time.Second

// Table is a copy of a public table: table.Copy.
type Table interface {
	Get(key []byte) (value []byte, ok bool, err error)
	Scan(prefix []byte, fn func(key, value []byte) bool) error
	OnChange(fn func(key, value []byte))
	// Check is nil once the copy has been current; Age is for how long it may have missed changes since.
	Check(ctx context.Context) error
	Age() time.Duration
	// WaitCurrent waits for the partition of one routing key, WaitAllCurrent for every partition.
	WaitCurrent(ctx context.Context, routingKey string) error
	WaitAllCurrent(ctx context.Context) error
}

// Tables are the copies that are read.
type Tables struct {
	Billing, Entitlements, Endpoints, Connections Table
}

// Config is what the operator decides.
type Config struct {
	Plans *plans.Plans
	// EntitlementsMaxAge is how far behind entitlements may be that are answered; 0: however far.
	EntitlementsMaxAge time.Duration
}

// Reads answers requests.
type Reads struct {
	cfg         Config
	tables      Tables
	connections *connectionIndex
	audit       driver.Conn
	log         *slog.Logger
}

// New makes Reads. It must be called before the copies run. audit is ClickHouse.
func New(cfg Config, tables Tables, audit driver.Conn, log *slog.Logger) *Reads {
	r := &Reads{cfg: cfg, tables: tables, connections: newConnectionIndex(), audit: audit, log: log}
	tables.Connections.OnChange(r.connections.change)
	return r
}

// Routes adds the routes to a router.
func (r *Reads) Routes(to *httpapi.Router) {
	to.Handle(http.MethodGet, "/v1/orgs/{org}/entitlements", scopeBilling, r.entitlements)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/billing", scopeBilling, r.billing)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/billing/audit", scopeBilling, r.billingAudit)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/endpoints", scopeEndpoints, r.listEndpoints)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/endpoints/{id}", scopeEndpoints, r.getEndpoint)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/connections", scopeConnections, r.listConnections)
	to.Handle(http.MethodGet, "/v1/orgs/{org}/connections/{id}", scopeConnections, r.getConnection)
}

// entitlements answers for every organization: one of which nothing is known has the default plan.
// Before the copy has first been current nobody is answered: an organization not read yet would seem to have lost its
// plan.
func (r *Reads) entitlements(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	if err := r.barrier(ctx, r.tables.Entitlements.Check); err != nil {
		return err
	}
	age := r.tables.Entitlements.Age()
	if bound := r.cfg.EntitlementsMaxAge; bound > 0 && age > bound {
		return httpapi.Unavailable("entitlements_stale", "This instance has been cut off for %s; what it knows may be wrong by now.",
			age.Round(time.Second))
	}
	ctx.Response.Header.Set("Age", strconv.Itoa(int(age.Seconds()))) // RFC 9111 §5.1
	org := httpapi.Org(ctx)
	snapshot := &webhooksv1.TenantCapabilitySnapshot{}
	found, err := get(r.tables.Entitlements, org, snapshot)
	if err != nil {
		return err
	}
	if !found {
		snapshot = billing.None(org, r.cfg.Plans)
	}
	httpapi.SetETag(ctx, snapshot.Version)
	// A poller that has this version already is told so in a few bytes.
	if httpapi.HasVersion(ctx, snapshot.Version) {
		ctx.SetStatusCode(http.StatusNotModified)
		return nil
	}
	httpapi.WriteRaw(ctx, http.StatusOK, billing.AppendSnapshot(nil, snapshot))
	return nil
}

func (r *Reads) billing(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	org := httpapi.Org(ctx)
	if err := r.current(ctx, r.tables.Billing, org); err != nil {
		return err
	}
	record := &webhooksv1.BillingRecord{}
	found, err := get(r.tables.Billing, org, record)
	if err != nil {
		return err
	}
	if !found || !billing.Begun(record) {
		return httpapi.NotFound()
	}
	httpapi.WriteJSON(ctx, http.StatusOK, billing.ViewRecord(record))
	return nil
}

// get reads one record.
func get(t Table, key string, into proto.Message) (found bool, err error) {
	value, found, err := t.Get([]byte(key))
	if err != nil || !found {
		return false, err
	}
	if err := proto.Unmarshal(value, into); err != nil {
		return false, fmt.Errorf("decode %s of %s: %w", into.ProtoReflect().Descriptor().Name(), key, err)
	}
	return true, nil
}

// current waits until the copy holds what is committed in the partition of a routing key.
func (r *Reads) current(ctx *fasthttp.RequestCtx, t Table, routingKey string) error {
	return r.barrier(ctx, func(ctx context.Context) error { return t.WaitCurrent(ctx, routingKey) })
}

func (r *Reads) barrier(ctx *fasthttp.RequestCtx, wait func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	if err := wait(bounded); err != nil {
		r.log.Warn("read barrier failed", "request_id", httpapi.RequestID(ctx), "error", err)
		return httpapi.Unavailable("table_behind", "This instance cannot tell whether it is up to date; try again.")
	}
	return nil
}
