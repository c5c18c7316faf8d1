package siege

import (
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// What is compared is compared as text, byte for byte, but for these times, which say when something was done and not
// what:
//
//	billing-audit     recorded_unix_ms
//	command-outcomes  created_unix_ms, updated_unix_ms, disabled_unix_ms of an endpoint, created_unix_ms of a connection
//	endpoints         the same
//	connections       the same
//	deliveries        created_unix_ms
//	delivery-rows     created_unix_ms, next_attempt_unix_ms
//	inbound.dead      buried_unix_ms
//
// The times of a snapshot, of a billing record and of what a timer causes are compared: they are those that the committed
// states name.

// canonical is a message as text, without those times.
func canonical(m proto.Message) string {
	m = proto.Clone(m)
	switch m := m.(type) {
	case *webhooksv1.BillingAuditRow:
		m.RecordedUnixMs = 0
	case *webhooksv1.CommandOutcome:
		withoutTimes(m.GetEndpoint(), m.GetConnection())
	case *webhooksv1.Endpoint:
		withoutTimes(m, nil)
	case *webhooksv1.Connection:
		withoutTimes(nil, m)
	case *webhooksv1.Deliveries:
		m.CreatedUnixMs = 0
	case *webhooksv1.DeliveryRow:
		m.CreatedUnixMs, m.NextAttemptUnixMs = 0, 0
	case *webhooksv1.DeadInbound:
		m.BuriedUnixMs = 0
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "cannot be encoded: " + err.Error()
	}
	return string(b)
}

func withoutTimes(e *webhooksv1.Endpoint, c *webhooksv1.Connection) {
	if e != nil {
		e.CreatedUnixMs, e.UpdatedUnixMs, e.DisabledUnixMs = 0, 0, 0
	}
	if c != nil {
		c.CreatedUnixMs = 0
	}
}

// messageOf is an empty message of a topic's records; nil where they are none.
func messageOf(topic string) proto.Message {
	switch topic {
	case schemas.InboundRows:
		return &webhooksv1.InboundRow{}
	case schemas.InboundDead:
		return &webhooksv1.DeadInbound{}
	case schemas.BillingAudit:
		return &webhooksv1.BillingAuditRow{}
	case schemas.Entitlements:
		return &webhooksv1.TenantCapabilitySnapshot{}
	case schemas.CommandOutcomes:
		return &webhooksv1.CommandOutcome{}
	case schemas.Connections:
		return &webhooksv1.Connection{}
	case schemas.Deliveries:
		return &webhooksv1.Deliveries{}
	case schemas.DeliveryRows:
		return &webhooksv1.DeliveryRow{}
	case schemas.EventRows:
		return &webhooksv1.EventRow{}
	}
	return nil
}

// text is a record of a topic as it is compared.
func text(topic string, r *kgo.Record) string {
	m := messageOf(topic)
	if m == nil {
		return textOf(r)
	}
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return fmt.Sprintf("offset %d cannot be decoded: %v", r.Offset, err)
	}
	return canonical(m)
}

// textOf is a record with its headers.
func textOf(r *kgo.Record) string {
	var b strings.Builder
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
	}
	b.Write(r.Value)
	return b.String()
}

// show is a text as somebody can read it.
func show(topic, text string) string {
	m := messageOf(topic)
	if m == nil || proto.Unmarshal([]byte(text), m) != nil {
		return text
	}
	return protojson.Format(m)
}
