package api

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
)

// event is one event of the public log and what became of it, as the API shows it.
type event struct {
	ID             string          `json:"id"`
	Type           string          `json:"type"`
	Timestamp      string          `json:"timestamp"`
	OrganizationID string          `json:"organizationId"`
	Source         string          `json:"source"`
	Subject        *string         `json:"subject"`
	CorrelationID  *string         `json:"correlationId"`
	CausationID    *string         `json:"causationId"`
	SchemaVersion  uint16          `json:"schemaVersion"`
	Data           json.RawMessage `json:"data"`
	AcceptedAt     string          `json:"acceptedAt"`
	Cause          cause           `json:"cause"`
	Status         string          `json:"status"`
	Deliveries     []delivery      `json:"deliveries"`

	acceptedMS int64
	matched    uint16
}

// cause is the source's event that led to this one; both null where none did.
type cause struct {
	Source  *string `json:"source"`
	EventID *string `json:"eventId"`
}

const eventColumns = "event_id, type, occurred_at, organization_id, source, subject, correlation_id, causation_id, " +
	"schema_version, data, accepted_at, cause_source, cause_event_id, matched"

// listEvents answers GET …/events; since and until bound acceptedAt, the order of the list.
func (a *API) listEvents(ctx context.Context, req *fasthttp.RequestCtx) (any, error) {
	params, err := httpapi.ParseList(req, []string{"eventType", "status", "since", "until"})
	if err != nil {
		return nil, err
	}
	isStatus := func(s string) bool { return isDeliveryStatus(s) || s == unmatched }
	if err := oneOf("status", params.Filters["status"], isStatus); err != nil {
		return nil, err
	}
	var w where
	w.add("organization_id = ?", httpapi.Org(req))
	w.among("type", params.Filters["eventType"])
	found, err := newest(params, "accepted_at", "event_id", func(bounds where, limit int) ([]event, error) {
		in := bounds.clone()
		in.and(w)
		if statuses := params.Filters["status"]; len(statuses) > 0 {
			filterByStatus(&in, httpapi.Org(req), bounds, statuses)
		}
		return a.events(ctx, in, " ORDER BY accepted_at DESC, event_id DESC LIMIT ?", limit)
	})
	if err != nil {
		return nil, err
	}
	answer := page(params, found, func(e event) position { return position{e.acceptedMS, e.ID} })
	return answer, a.addDeliveries(ctx, httpapi.Org(req), answer.Data)
}

// filterByStatus keeps events by what statusOf says of their deliveries, which the list's bounds hold for, too: they
// carry their event's id and acceptance.
func filterByStatus(w *where, org string, bounds where, statuses []string) {
	var d where
	d.add("organization_id = ?", org)
	d.add("replay_id = ''")
	d.add("test = 0")
	d.and(bounds)
	status := "multiIf(countIf(status = 'dead') > 0, 'dead', countIf(status = 'waiting') > 0, 'waiting', " +
		"countIf(status = 'delivered') > 0, 'delivered', 'unmatched')"
	w.add("event_id IN (SELECT event_id FROM deliveries FINAL WHERE "+d.sql()+" GROUP BY event_id HAVING "+status+" IN (?))",
		append(d.args, statuses)...)
}

// getEvent answers GET …/events/{id}.
func (a *API) getEvent(ctx context.Context, req *fasthttp.RequestCtx) (any, error) {
	eventID, err := objectID(req, id.Event)
	if err != nil {
		return nil, err
	}
	var w where
	w.add("organization_id = ?", httpapi.Org(req))
	w.add("event_id = ?", eventID)
	found, err := a.events(ctx, w, " LIMIT 1")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, httpapi.NotFound()
	}
	return &found[0], a.addDeliveries(ctx, httpapi.Org(req), found)
}

func (a *API) events(ctx context.Context, w where, tail string, args ...any) ([]event, error) {
	sql := "SELECT " + eventColumns + " FROM events WHERE " + w.sql() + tail
	return query(ctx, a.conn, scanEvent, sql, slices.Concat(w.args, args)...)
}

func scanEvent(rows driver.Rows) (e event, err error) {
	var (
		subject, correlation, causation, causeSource, causeEvent, data string
		occurred, accepted                                             time.Time
	)
	err = rows.Scan(&e.ID, &e.Type, &occurred, &e.OrganizationID, &e.Source, &subject, &correlation, &causation,
		&e.SchemaVersion, &data, &accepted, &causeSource, &causeEvent, &e.matched)
	e.Timestamp = httpapi.FormatTime(occurred)
	e.AcceptedAt, e.acceptedMS = httpapi.FormatTime(accepted), accepted.UnixMilli()
	e.Subject, e.CorrelationID, e.CausationID = orNull(subject), orNull(correlation), orNull(causation)
	e.Cause = cause{Source: orNull(causeSource), EventID: orNull(causeEvent)}
	e.Data = json.RawMessage("null")
	if json.Valid([]byte(data)) {
		e.Data = json.RawMessage(data)
	}
	return e, err
}

// addDeliveries fills in what became of the events.
func (a *API) addDeliveries(ctx context.Context, org string, events []event) error {
	if len(events) == 0 {
		return nil
	}
	ids := make([]string, len(events))
	oldest, newest := events[0].acceptedMS, events[0].acceptedMS
	for i, e := range events {
		ids[i] = e.ID
		oldest, newest = min(oldest, e.acceptedMS), max(newest, e.acceptedMS)
	}
	var w where
	w.add("organization_id = ?", org)
	// A delivery has its event's acceptedAt, which the table is sorted by.
	w.add("accepted_at BETWEEN fromUnixTimestamp64Milli(?, 'UTC') AND fromUnixTimestamp64Milli(?, 'UTC')", oldest, newest)
	w.add("event_id IN (?)", ids)
	w.add("status != ?", unmatched)
	found, err := a.deliveries(ctx, w, " ORDER BY created_at, delivery_id")
	if err != nil {
		return err
	}
	byEvent := make(map[string][]delivery, len(events))
	for _, d := range found {
		byEvent[d.EventID] = append(byEvent[d.EventID], d)
	}
	for i := range events {
		e := &events[i]
		e.Deliveries = byEvent[e.ID]
		if e.Deliveries == nil {
			e.Deliveries = []delivery{}
		}
		e.Status = statusOf(e)
	}
	return nil
}

// statusOf sums an event's deliveries up: dead if any is, else waiting, else delivered; unmatched where there is none.
// Replays and tests do not count. An event whose deliveries are not in the record yet is waiting.
func statusOf(e *event) string {
	counts := map[string]int{}
	for _, d := range e.Deliveries {
		if d.ReplayID == nil && !d.Test {
			counts[d.Status]++
		}
	}
	switch {
	case counts[dead] > 0:
		return dead
	case counts[waiting] > 0, len(counts) == 0 && e.matched > 0:
		return waiting
	case counts[delivered] > 0:
		return delivered
	default:
		return unmatched
	}
}
