package rows_test

import (
	"testing"

	"github.com/betterdata/webhooks/deliverer/rows"
	"github.com/betterdata/webhooks/internal/sink/sinktest"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestEveryColumnIsFilledFromItsField(t *testing.T) {
	now := sinktest.Now()
	cases := map[string]sinktest.Case{
		"delivery_attempts": {Table: rows.Attempts(),
			Record: &webhooksv1.AttemptRow{
				AttemptId: "att_1", DeliveryId: "dlv_1", EventId: "evt_1", EndpointId: "ep_1", OrganizationId: "org_1",
				EventType: "loop.completed", Number: 70_000, Trigger: "schedule", StartedUnixMs: now, DurationMs: 1, QueueMs: 2,
				DnsMs: 3, ConnectMs: 4, TlsMs: 5, FirstByteMs: 6, BodyMs: 7, Outcome: "failure", StatusCode: 503,
				ErrorClass: "http_5xx", ResponseExcerpt: []byte("busy"), ResponseBytes: 8, RequestBytes: 9,
				NextAttemptUnixMs: now + 5, DeliveryStatus: "waiting", ReplayId: "rpl_1", Test: true, MaybeRepeated: true, Worker: "w1",
			},
			Row: map[string]any{
				"attempt_id": "att_1", "delivery_id": "dlv_1", "event_id": "evt_1", "endpoint_id": "ep_1", "organization_id": "org_1",
				"event_type": "loop.completed", "number": 65_535, "trigger": "schedule", "started_at": sinktest.Time(now),
				"duration_ms": 1, "queue_ms": 2, "dns_ms": 3, "connect_ms": 4, "tls_ms": 5, "first_byte_ms": 6, "body_ms": 7,
				"outcome": "failure", "status_code": 503, "error_class": "http_5xx", "response_excerpt": "busy", "response_bytes": 8,
				"request_bytes": 9, "next_attempt_at": sinktest.Time(now + 5), "delivery_status": "waiting", "replay_id": "rpl_1",
				"test": 1, "maybe_repeated": 1, "worker": "w1", "src_part": sinktest.Partition, "src_offset": 0,
			}},
		"deliveries": {Table: rows.Deliveries(),
			Record: &webhooksv1.DeliveryRow{
				DeliveryId: "dlv_1", OrganizationId: "org_1", EndpointId: "ep_1", EventId: "evt_1", EventType: "loop.completed",
				Status: "dead", Reason: "exhausted", AcceptedUnixMs: now, NextAttemptUnixMs: 0, EndedUnixMs: now + 7,
				AttemptCount: 10, ReplayId: "rpl_1", Test: true, Version: 1 << 40, CreatedUnixMs: now + 1,
			},
			Row: map[string]any{
				"delivery_id": "dlv_1", "organization_id": "org_1", "endpoint_id": "ep_1", "event_id": "evt_1",
				"event_type": "loop.completed", "status": "dead", "reason": "exhausted", "accepted_at": sinktest.Time(now),
				"next_attempt_at": nil, "ended_at": sinktest.Time(now + 7), "attempt_count": 10, "replay_id": "rpl_1", "test": 1,
				"version": 1 << 40, "created_at": sinktest.Time(now + 1),
			}},
		"events": {Table: rows.Events(),
			Record: &webhooksv1.EventRow{
				EventId: "evt_1", OrganizationId: "org_1", Type: "loop.completed", Source: "stripe", Subject: "sub_1",
				OccurredUnixMs: now - 5, AcceptedUnixMs: now, CauseSource: "shopify", CauseEventId: "w-1", CorrelationId: "c",
				CausationId: "evt_0", SchemaVersion: 1, Matched: 3, Data: []byte(`{"a":"ü"}`),
			},
			Row: map[string]any{
				"event_id": "evt_1", "organization_id": "org_1", "type": "loop.completed", "source": "stripe", "subject": "sub_1",
				"occurred_at": sinktest.Time(now - 5), "accepted_at": sinktest.Time(now), "cause_source": "shopify",
				"cause_event_id": "w-1", "correlation_id": "c", "causation_id": "evt_0", "schema_version": 1, "matched": 3,
				"data": `{"a":"ü"}`, "src_part": sinktest.Partition, "src_offset": 0,
			}},
	}
	sinktest.RowsOf(t, rows.Tables(), cases)
}
