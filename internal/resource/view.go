package resource

import (
	"encoding/json"
	"math"
	"slices"
	"time"

	"github.com/betterdata/webhooks/internal/httpapi"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Endpoint is an endpoint as it is answered. Every member is always present; what is not known is null.
type Endpoint struct {
	ID              string            `json:"id"`
	OrganizationID  string            `json:"organizationId"`
	URL             string            `json:"url"`
	UID             *string           `json:"uid"`
	Description     *string           `json:"description"`
	Enabled         bool              `json:"enabled"`
	EventTypes      []string          `json:"eventTypes"`
	LoopIDs         []string          `json:"loopIds"`
	Filter          *string           `json:"filter"`
	Headers         map[string]string `json:"headers"`
	Metadata        json.RawMessage   `json:"metadata"`
	Paused          bool              `json:"paused"`
	RateLimit       *float64          `json:"rateLimit"`
	Concurrency     uint32            `json:"concurrency"`
	TimeoutMS       uint32            `json:"timeoutMs"`
	RetryScheduleMS []uint64          `json:"retryScheduleMs"`
	Ordering        *string           `json:"ordering"`
	Signatures      []string          `json:"signatures"`
	PublicKey       *string           `json:"publicKey"`
	Secret          *string           `json:"secret"`
	DisabledReason  *string           `json:"disabledReason"`
	DisabledAt      *string           `json:"disabledAt"`
	Version         uint64            `json:"version"`
	CreatedAt       *string           `json:"createdAt"`
	UpdatedAt       *string           `json:"updatedAt"`
}

// EndpointView shows an endpoint. Header values are masked and the secret is null.
func EndpointView(e *webhooksv1.Endpoint) Endpoint { return EndpointViewWithSecret(e, "") }

// EndpointViewWithSecret shows an endpoint with its signing secret in clear text, for the one answer that gives it out.
func EndpointViewWithSecret(e *webhooksv1.Endpoint, secret string) Endpoint {
	view := Endpoint{
		ID: e.Id, OrganizationID: e.OrganizationId, URL: e.Url, UID: e.Uid, Description: e.Description,
		Enabled: e.Enabled, EventTypes: orEmpty(e.EventTypes), LoopIDs: orEmpty(e.LoopIds), Filter: e.Filter,
		Headers: map[string]string{}, Metadata: json.RawMessage(`{}`), Paused: e.Paused, RateLimit: e.RateLimit,
		Concurrency: e.Concurrency, TimeoutMS: e.TimeoutMs, Ordering: e.Ordering, Signatures: orEmpty(e.Signatures),
		Secret: orNull(secret), DisabledReason: orNull(e.DisabledReason), DisabledAt: httpapi.Time(e.DisabledUnixMs),
		Version: e.Version, CreatedAt: httpapi.Time(e.CreatedUnixMs), UpdatedAt: httpapi.Time(e.UpdatedUnixMs),
	}
	for _, name := range e.HeaderNames {
		view.Headers[name] = Mask
	}
	if len(e.MetadataJson) > 0 {
		view.Metadata = e.MetadataJson
	}
	if e.RetrySchedule != nil {
		view.RetryScheduleMS = orEmpty(e.RetrySchedule.DelaysMs)
	}
	// The key pair is kept when v1a is turned off, so that turning it on again does not break who pinned the key.
	if slices.Contains(e.Signatures, SignatureV1a) {
		view.PublicKey = orNull(e.PublicKey)
	}
	return view
}

// Connection is a connection as it is answered.
type Connection struct {
	ID             string  `json:"id"`
	OrganizationID string  `json:"organizationId"`
	Source         string  `json:"source"`
	Account        string  `json:"account"`
	AccessToken    *string `json:"accessToken"`
	Status         string  `json:"status"`
	Learned        bool    `json:"learned"`
	CreatedAt      *string `json:"createdAt"`
}

// ConnectionView shows a connection. The access token is null whether there is one or not.
func ConnectionView(c *webhooksv1.Connection) Connection {
	return Connection{
		ID: c.Id, OrganizationID: c.OrganizationId, Source: c.Source, Account: c.Account,
		Status: c.Status, Learned: c.Learned, CreatedAt: httpapi.Time(c.CreatedUnixMs),
	}
}

// Delivery is one event for one endpoint, as it is answered.
type Delivery struct {
	ID             string  `json:"id"`
	OrganizationID string  `json:"organizationId"`
	EndpointID     string  `json:"endpointId"`
	EventID        string  `json:"eventId"`
	EventType      string  `json:"eventType"`
	Status         string  `json:"status"`
	Reason         *string `json:"reason"`
	AttemptCount   uint16  `json:"attemptCount"`
	NextAttemptAt  *string `json:"nextAttemptAt"`
	ReplayID       *string `json:"replayId"`
	Test           bool    `json:"test"`
	CreatedAt      string  `json:"createdAt"`
	EndedAt        *string `json:"endedAt"`
}

// DeliveryView shows a delivery.
func DeliveryView(d *webhooksv1.Delivery) Delivery {
	return Delivery{
		ID: d.Id, OrganizationID: d.OrganizationId, EndpointID: d.EndpointId, EventID: d.EventId, EventType: d.EventType,
		Status: d.Status, Reason: orNull(d.Reason), AttemptCount: uint16(min(d.AttemptCount, math.MaxUint16)),
		NextAttemptAt: httpapi.Time(d.NextAttemptUnixMs), ReplayID: orNull(d.ReplayId), Test: d.Test,
		CreatedAt: httpapi.FormatTime(time.UnixMilli(d.CreatedUnixMs)), EndedAt: httpapi.Time(d.EndedUnixMs),
	}
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
