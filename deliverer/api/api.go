// Package api answers the reads of an organization's deliveries, events and ledger, from the record in ClickHouse: the
// record follows the deliveries by a second or two, and while ClickHouse is away the answer is 503. Its replays are read from
// this process's copy of their table, behind a barrier: what was answered before is seen.
//
// Every query names the organization of the path, which the router has checked against the key: another
// organization's id is not found.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
)

// queryTimeout bounds all queries of one request.
const queryTimeout = 10 * time.Second

// scopeRead is the scope that a key needs for all reads here.
const scopeRead = "deliveries:read"

// API reads the record.
type API struct {
	conn   driver.Conn
	tables Tables
	log    *slog.Logger
}

// Tables are this process's copies.
type Tables struct {
	Replays Replays
	// Endpoints and Health (`endpoint-health`) say what holds deliveries back.
	Endpoints, Health Table
}

// New makes the reads over a connection whose default database has the rows. The server may be away.
func New(conn driver.Conn, tables Tables, log *slog.Logger) *API {
	return &API{conn: conn, tables: tables, log: log}
}

// Register adds the routes.
func (a *API) Register(r *httpapi.Router) {
	r.Handle(http.MethodGet, "/v1/orgs/{org}/deliveries", scopeRead, a.read(a.listDeliveries))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/deliveries/{id}", scopeRead, a.read(a.getDelivery))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/events", scopeRead, a.read(a.listEvents))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/events/{id}", scopeRead, a.read(a.getEvent))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/ledger", scopeRead, a.read(a.listLedger))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/replays", scopeRead, a.listReplays)
	r.Handle(http.MethodGet, "/v1/orgs/{org}/replays/{id}", scopeRead, a.getReplay)
}

// read bounds a handler's queries, answers what it returns, and turns a failing ClickHouse into 503.
func (a *API) read(h func(ctx context.Context, req *fasthttp.RequestCtx) (any, error)) httpapi.Handler {
	return func(req *fasthttp.RequestCtx, _ httpapi.Principal) error {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		answer, err := h(ctx, req)
		var problem *httpapi.Problem
		switch {
		case err == nil:
			httpapi.WriteJSON(req, http.StatusOK, answer)
			return nil
		case errors.As(err, &problem):
			return err
		case clickhouse.Unavailable(err):
			a.log.Warn("ClickHouse cannot be read", "org", httpapi.Org(req), "request_id", httpapi.RequestID(req), "error", err)
			return httpapi.Unavailable("clickhouse_unavailable", "The record of events and deliveries cannot be read at the moment; try again.")
		default:
			return err
		}
	}
}

// objectID is the id in the path; one of another form names nothing.
func objectID(req *fasthttp.RequestCtx, prefix string) (string, error) {
	s := httpapi.Param(req, "id")
	if !id.Valid(prefix, s) {
		return "", httpapi.NotFound()
	}
	return s, nil
}

// where collects the conditions of a query.
type where struct {
	conditions []string
	args       []any
}

func (w *where) add(condition string, args ...any) {
	w.conditions = append(w.conditions, condition)
	w.args = append(w.args, args...)
}

// and adds the conditions of another.
func (w *where) and(other where) {
	w.conditions = append(w.conditions, other.conditions...)
	w.args = append(w.args, other.args...)
}

func (w where) clone() where { return where{slices.Clone(w.conditions), slices.Clone(w.args)} }

// among adds the alternatives of a filter that was given.
func (w *where) among(column string, values []string) {
	if len(values) > 0 {
		w.add(column+" IN (?)", values)
	}
}

// sql is the conditions after WHERE.
func (w *where) sql() string { return strings.Join(w.conditions, " AND ") }

// oneOf refuses values of a filter that it never has.
func oneOf(name string, values []string, known func(string) bool) error {
	for _, v := range values {
		if !known(v) {
			p := httpapi.NewProblem(http.StatusBadRequest, "invalid_parameter", "The parameter %s has a value that it cannot have.", name)
			p.Errors = []httpapi.FieldError{{Pointer: "?" + name, Detail: "is not a possible value"}}
			return p
		}
	}
	return nil
}

// orNull is null for what the record has as none.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func timeOrNull(t *time.Time) *string {
	if t == nil {
		return nil
	}
	s := httpapi.FormatTime(*t)
	return &s
}
