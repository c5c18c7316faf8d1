package api

import (
	"context"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/schemas"
)

// delivery is one event for one endpoint, as the API shows it.
type delivery struct {
	resource.Delivery
	createdMS int64
	// next is when the next attempt was due as of the row; zero where there is none.
	next time.Time
}

type deliveryWithAttempts struct {
	delivery
	Attempts []attempt `json:"attempts"`
}

// A row of what matched no endpoint, or a disabled one, is in the ledger and is no delivery.
const (
	waiting   = schemas.DeliveryWaiting
	delivered = schemas.DeliveryDelivered
	dead      = schemas.DeliveryDead
	unmatched = schemas.DeliveryUnmatched
)

func isDeliveryStatus(s string) bool { return s == waiting || s == delivered || s == dead }

const deliveryColumns = "delivery_id, organization_id, endpoint_id, event_id, event_type, status, reason, attempt_count, " +
	"next_attempt_at, replay_id, test, created_at, ended_at"

// listDeliveries answers GET …/deliveries.
func (a *API) listDeliveries(ctx context.Context, req *fasthttp.RequestCtx) (any, error) {
	params, err := httpapi.ParseList(req, []string{"endpointId", "eventId", "eventType", "status", "since", "until"})
	if err != nil {
		return nil, err
	}
	var w where
	w.add("organization_id = ?", httpapi.Org(req))
	w.add("status != ?", unmatched)
	if err := oneOf("status", params.Filters["status"], isDeliveryStatus); err != nil {
		return nil, err
	}
	isEndpoint := func(s string) bool { return id.Valid(id.Endpoint, s) }
	if err := oneOf("endpointId", params.Filters["endpointId"], isEndpoint); err != nil {
		return nil, err
	}
	isEvent := func(s string) bool { return id.Valid(id.Event, s) }
	if err := oneOf("eventId", params.Filters["eventId"], isEvent); err != nil {
		return nil, err
	}
	w.among("status", params.Filters["status"])
	w.among("endpoint_id", params.Filters["endpointId"])
	w.among("event_id", params.Filters["eventId"])
	w.among("event_type", params.Filters["eventType"])
	found, err := newest(params, "created_at", "delivery_id", func(bounds where, limit int) ([]delivery, error) {
		bounds.and(w)
		return a.deliveries(ctx, bounds, " ORDER BY created_at DESC, delivery_id DESC LIMIT ?", limit)
	})
	if err != nil {
		return nil, err
	}
	return page(params, found, func(d delivery) position { return position{d.createdMS, d.ID} }), nil
}

// getDelivery answers GET …/deliveries/{id}.
func (a *API) getDelivery(ctx context.Context, req *fasthttp.RequestCtx) (any, error) {
	deliveryID, err := objectID(req, id.Delivery)
	if err != nil {
		return nil, err
	}
	return agreed(ctx, func() (*deliveryWithAttempts, bool, error) {
		found, err := a.delivery(ctx, httpapi.Org(req), deliveryID)
		if err != nil {
			return nil, false, err
		}
		// Who has just read "delivered" wants to see the attempt that did it.
		return found, len(found.Attempts) == int(found.AttemptCount), nil
	})
}

// delivery reads one delivery with its attempts, which may be a flush ahead of it or behind.
func (a *API) delivery(ctx context.Context, org, deliveryID string) (*deliveryWithAttempts, error) {
	var w where
	w.add("organization_id = ?", org)
	w.add("delivery_id = ?", deliveryID)
	w.add("status != ?", unmatched)
	found, err := a.deliveries(ctx, w, " LIMIT 1")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, httpapi.NotFound()
	}
	attempts, err := a.attempts(ctx, org, deliveryID)
	if err != nil {
		return nil, err
	}
	return &deliveryWithAttempts{found[0], attempts}, nil
}

// deliveries reads the newest version of each delivery that meets the conditions.
func (a *API) deliveries(ctx context.Context, w where, tail string, args ...any) ([]delivery, error) {
	sql := "SELECT " + deliveryColumns + " FROM deliveries FINAL WHERE " + w.sql() + tail
	found, err := query(ctx, a.conn, scanDelivery, sql, slices.Concat(w.args, args)...)
	if err != nil {
		return nil, err
	}
	return found, a.showWaiting(found, time.Now())
}

func scanDelivery(rows driver.Rows) (d delivery, err error) {
	var (
		reason, replayID string
		test             uint8
		next, ended      *time.Time
		created          time.Time
	)
	err = rows.Scan(&d.ID, &d.OrganizationID, &d.EndpointID, &d.EventID, &d.EventType, &d.Status, &reason, &d.AttemptCount,
		&next, &replayID, &test, &created, &ended)
	d.Reason, d.ReplayID, d.Test = orNull(reason), orNull(replayID), test != 0
	if next != nil {
		d.next = *next
	}
	d.EndedAt = timeOrNull(ended)
	d.CreatedAt, d.createdMS = httpapi.FormatTime(created), created.UnixMilli()
	return d, err
}
