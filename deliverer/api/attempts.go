package api

import (
	"context"
	"time"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// attempt is one HTTP request of a delivery, as the API shows it.
type attempt struct {
	ID              string         `json:"id"`
	DeliveryID      string         `json:"deliveryId"`
	Number          uint16         `json:"number"`
	Trigger         string         `json:"trigger"`
	StartedAt       string         `json:"startedAt"`
	DurationMS      uint32         `json:"durationMs"`
	Timings         attemptTimings `json:"timings"`
	Outcome         string         `json:"outcome"`
	StatusCode      *uint16        `json:"statusCode"`
	ErrorClass      *string        `json:"errorClass"`
	ResponseExcerpt string         `json:"responseExcerpt"`
	NextAttemptAt   *string        `json:"nextAttemptAt"`
	// MaybeRepeated says that the request may have gone out twice: a process died before it could know.
	MaybeRepeated bool `json:"maybeRepeated"`
}

type attemptTimings struct {
	QueueMS     uint32 `json:"queueMs"`
	DNSMS       uint32 `json:"dnsMs"`
	ConnectMS   uint32 `json:"connectMs"`
	TLSMS       uint32 `json:"tlsMs"`
	FirstByteMS uint32 `json:"firstByteMs"`
	BodyMS      uint32 `json:"bodyMs"`
}

const attemptsQuery = `SELECT attempt_id, delivery_id, number, trigger, started_at, duration_ms, queue_ms, dns_ms,
	connect_ms, tls_ms, first_byte_ms, body_ms, outcome, status_code, error_class, response_excerpt, next_attempt_at,
	maybe_repeated
	FROM delivery_attempts WHERE organization_id = ? AND delivery_id = ? ORDER BY number`

// attempts reads a delivery's attempts in the order they were made.
func (a *API) attempts(ctx context.Context, org, deliveryID string) ([]attempt, error) {
	rows, err := a.conn.Query(ctx, attemptsQuery, org, deliveryID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := []attempt{}
	for rows.Next() {
		var (
			at         attempt
			t          = &at.Timings
			started    time.Time
			next       *time.Time
			statusCode uint16
			errorClass string
			repeated   uint8
		)
		if err := rows.Scan(&at.ID, &at.DeliveryID, &at.Number, &at.Trigger, &started, &at.DurationMS, &t.QueueMS, &t.DNSMS,
			&t.ConnectMS, &t.TLSMS, &t.FirstByteMS, &t.BodyMS, &at.Outcome, &statusCode, &errorClass, &at.ResponseExcerpt, &next,
			&repeated); err != nil {
			return nil, err
		}
		if statusCode != 0 {
			at.StatusCode = &statusCode
		}
		at.StartedAt, at.NextAttemptAt = httpapi.FormatTime(started), timeOrNull(next)
		at.ErrorClass, at.MaybeRepeated = orNull(errorClass), repeated != 0
		found = append(found, at)
	}
	return found, rows.Err()
}
