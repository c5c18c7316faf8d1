// Package api answers the reads of an organization's deliveries and events, from the record in ClickHouse: the record
// follows the deliveries by a second or two, and while ClickHouse is away the answer is 503.
//
// Every query names the organization of the path, which the router has checked against the key: another
// organization's id is not found.
package api

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
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
	conn driver.Conn
	log  *slog.Logger
}

// New makes the reads over a connection whose default database has the tables. The server may be away.
func New(conn driver.Conn, log *slog.Logger) *API { return &API{conn: conn, log: log} }

// Register adds the routes.
func (a *API) Register(r *httpapi.Router) {
	r.Handle(http.MethodGet, "/v1/orgs/{org}/deliveries", scopeRead, a.read(a.listDeliveries))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/deliveries/{id}", scopeRead, a.read(a.getDelivery))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/events", scopeRead, a.read(a.listEvents))
	r.Handle(http.MethodGet, "/v1/orgs/{org}/events/{id}", scopeRead, a.read(a.getEvent))
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

// among adds the alternatives of a filter that was given.
func (w *where) among(column string, values []string) {
	if len(values) > 0 {
		w.add(column+" IN (?)", values)
	}
}

// between adds a list's bounds on a time. Bounds finer than the table's milliseconds are rounded up, which keeps since
// inclusive and until exclusive.
func (w *where) between(column string, p httpapi.ListParams) {
	if !p.Since.IsZero() {
		w.add(column+" >= fromUnixTimestamp64Milli(?, 'UTC')", ceilMS(p.Since))
	}
	if !p.Until.IsZero() {
		w.add(column+" < fromUnixTimestamp64Milli(?, 'UTC')", ceilMS(p.Until))
	}
}

// sql is the conditions after WHERE.
func (w *where) sql() string { return strings.Join(w.conditions, " AND ") }

func ceilMS(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// position is where a page ended: a list is ordered by time, then id, newest first.
type position struct {
	unixMS int64
	id     string
}

func (p position) encode() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(p.unixMS)), p.id...)
}

// after adds the condition of the pages after the cursor, which the router's hash has kept to this list.
func (w *where) after(timeColumn, idColumn string, cursor []byte) error {
	if cursor == nil {
		return nil
	}
	if len(cursor) < 8 {
		return httpapi.NewProblem(http.StatusBadRequest, "invalid_parameter", "The parameter cursor is not a nextCursor of this list.")
	}
	// The first condition follows from the second, and is the one that ClickHouse prunes by.
	unixMS := int64(binary.BigEndian.Uint64(cursor))
	w.add(timeColumn+" <= fromUnixTimestamp64Milli(?, 'UTC')", unixMS)
	w.add("("+timeColumn+", "+idColumn+") < (fromUnixTimestamp64Milli(?, 'UTC'), ?)", unixMS, string(cursor[8:]))
	return nil
}

// page cuts what a query found, one more than the limit if there is more, to a page.
func page[T any](p httpapi.ListParams, found []T, at func(T) position) httpapi.Page[T] {
	if len(found) <= p.Limit {
		return httpapi.NewPage(found, nil)
	}
	found = found[:p.Limit]
	return httpapi.NewPage(found, httpapi.NextCursor(p, at(found[p.Limit-1]).encode()))
}

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
