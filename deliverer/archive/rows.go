package archive

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/outbound"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const rowQuery = `SELECT endpoint_id, event_id, event_type, status, reason, toUnixTimestamp64Milli(accepted_at),
	ifNull(toUnixTimestamp64Milli(next_attempt_at), 0), ifNull(toUnixTimestamp64Milli(ended_at), 0),
	attempt_count, replay_id, test, version, toUnixTimestamp64Milli(created_at)
	FROM deliveries FINAL WHERE organization_id = ? AND delivery_id = ? LIMIT 1`

// row reads the newest row of a delivery.
func (a *Archive) row(ctx context.Context, organization, delivery string) (*webhooksv1.DeliveryRow, error) {
	r := &webhooksv1.DeliveryRow{DeliveryId: delivery, OrganizationId: organization}
	var (
		attempts uint16
		test     uint8
	)
	err := a.conn.QueryRow(ctx, rowQuery, organization, delivery).Scan(&r.EndpointId, &r.EventId, &r.EventType, &r.Status, &r.Reason,
		&r.AcceptedUnixMs, &r.NextAttemptUnixMs, &r.EndedUnixMs, &attempts, &r.ReplayId, &test, &r.Version, &r.CreatedUnixMs)
	if err != nil {
		return nil, fmt.Errorf("read the row of %s: %w", delivery, notFound(err))
	}
	r.AttemptCount, r.Test = uint32(attempts), test != 0
	return r, nil
}

// A delivery has its event's accepted_at, which the table is sorted by.
const eventQuery = `SELECT type, source, subject, toUnixTimestamp64Milli(occurred_at), correlation_id, causation_id, schema_version, data
	FROM events WHERE organization_id = ? AND accepted_at = fromUnixTimestamp64Milli(?, 'UTC') AND event_id = ? LIMIT 1`

// event makes a delivery's event as it was sent: the row has all that the body is made of.
func (a *Archive) event(ctx context.Context, row *webhooksv1.DeliveryRow) (*webhooksv1.OutboundEvent, error) {
	e := cloudevent.Event{ID: row.GetEventId(), Organization: row.GetOrganizationId()}
	var (
		version uint16
		data    string
	)
	err := a.conn.QueryRow(ctx, eventQuery, row.GetOrganizationId(), row.GetAcceptedUnixMs(), row.GetEventId()).Scan(
		&e.Type, &e.Source, &e.Subject, &e.OccurredUnixMS, &e.CorrelationID, &e.CausationID, &version, &data)
	if err != nil {
		return nil, fmt.Errorf("read event %s: %w", row.GetEventId(), notFound(err))
	}
	e.Data = []byte(data)
	return &webhooksv1.OutboundEvent{
		Id: e.ID, OrganizationId: e.Organization, Type: e.Type, AcceptedUnixMs: row.GetAcceptedUnixMs(),
		Body: outbound.Body(&e, int(version)),
	}, nil
}

// notFound tells a question without an answer from one that could not be asked.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
