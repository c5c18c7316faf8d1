package archive

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

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
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read the row of %s: %w", delivery, err)
	}
	r.AttemptCount, r.Test = uint32(attempts), test != 0
	return r, nil
}

// event makes a delivery's event as it was sent.
func (a *Archive) event(ctx context.Context, row *webhooksv1.DeliveryRow) (*webhooksv1.OutboundEvent, error) {
	// A delivery has its event's accepted_at.
	wanted := &webhooksv1.TakenEvent{EventId: row.GetEventId(), AcceptedUnixMs: row.GetAcceptedUnixMs()}
	found, err := a.Events(ctx, row.GetOrganizationId(), []*webhooksv1.TakenEvent{wanted})
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read event %s: %w", row.GetEventId(), err)
	}
	return found[0], nil
}
