// Package rows says how the deliverer's row topics become ClickHouse tables: attempts, deliveries, events. The
// tables are schemas/clickhouse; internal/sink fills them.
package rows

import (
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Tables are all tables that the deliverer fills.
func Tables() []sink.Table { return []sink.Table{Attempts(), Deliveries(), Events()} }

// Attempts fills delivery_attempts: every attempt is exactly one row.
func Attempts() sink.Table {
	type row = *webhooksv1.AttemptRow
	return sink.Plain(schemas.Attempts, "delivery_attempts",
		func() row { return &webhooksv1.AttemptRow{} },
		func(r row) int64 { return sink.Week(r.GetStartedUnixMs()) },
		sink.String("attempt_id", row.GetAttemptId),
		sink.String("delivery_id", row.GetDeliveryId),
		sink.String("event_id", row.GetEventId),
		sink.String("endpoint_id", row.GetEndpointId),
		sink.String("organization_id", row.GetOrganizationId),
		sink.String("event_type", row.GetEventType),
		sink.UInt16("number", row.GetNumber),
		sink.String("trigger", row.GetTrigger),
		sink.Time("started_at", row.GetStartedUnixMs),
		sink.UInt32("duration_ms", row.GetDurationMs),
		sink.UInt32("queue_ms", row.GetQueueMs),
		sink.UInt32("dns_ms", row.GetDnsMs),
		sink.UInt32("connect_ms", row.GetConnectMs),
		sink.UInt32("tls_ms", row.GetTlsMs),
		sink.UInt32("first_byte_ms", row.GetFirstByteMs),
		sink.UInt32("body_ms", row.GetBodyMs),
		sink.String("outcome", row.GetOutcome),
		sink.UInt16("status_code", row.GetStatusCode),
		sink.String("error_class", row.GetErrorClass),
		sink.Bytes("response_excerpt", row.GetResponseExcerpt),
		sink.UInt32("response_bytes", row.GetResponseBytes),
		sink.UInt32("request_bytes", row.GetRequestBytes),
		sink.NullTime("next_attempt_at", row.GetNextAttemptUnixMs),
		sink.String("delivery_status", row.GetDeliveryStatus),
		sink.String("replay_id", row.GetReplayId),
		sink.Bool("test", row.GetTest),
		sink.Bool("maybe_repeated", row.GetMaybeRepeated),
		sink.String("worker", row.GetWorker),
	)
}

// Deliveries fills deliveries: the row with the highest version holds.
func Deliveries() sink.Table {
	type row = *webhooksv1.DeliveryRow
	return sink.Replacing(schemas.DeliveryRows, "deliveries",
		func() row { return &webhooksv1.DeliveryRow{} },
		sink.String("delivery_id", row.GetDeliveryId),
		sink.String("organization_id", row.GetOrganizationId),
		sink.String("endpoint_id", row.GetEndpointId),
		sink.String("event_id", row.GetEventId),
		sink.String("event_type", row.GetEventType),
		sink.String("status", row.GetStatus),
		sink.String("reason", row.GetReason),
		sink.Time("accepted_at", row.GetAcceptedUnixMs),
		sink.NullTime("next_attempt_at", row.GetNextAttemptUnixMs),
		sink.NullTime("ended_at", row.GetEndedUnixMs),
		sink.UInt16("attempt_count", row.GetAttemptCount),
		sink.String("replay_id", row.GetReplayId),
		sink.Bool("test", row.GetTest),
		sink.UInt64("version", row.GetVersion),
		sink.Time("created_at", row.GetCreatedUnixMs),
	)
}

// Events fills events: the canonical public log as merchants and analysts see it.
func Events() sink.Table {
	type row = *webhooksv1.EventRow
	return sink.Plain(schemas.EventRows, "events",
		func() row { return &webhooksv1.EventRow{} },
		func(r row) int64 { return sink.Week(r.GetAcceptedUnixMs()) },
		sink.String("event_id", row.GetEventId),
		sink.String("organization_id", row.GetOrganizationId),
		sink.String("type", row.GetType),
		sink.String("source", row.GetSource),
		sink.String("subject", row.GetSubject),
		sink.Time("occurred_at", row.GetOccurredUnixMs),
		sink.Time("accepted_at", row.GetAcceptedUnixMs),
		sink.String("cause_source", row.GetCauseSource),
		sink.String("cause_event_id", row.GetCauseEventId),
		sink.String("correlation_id", row.GetCorrelationId),
		sink.String("causation_id", row.GetCausationId),
		sink.UInt16("schema_version", row.GetSchemaVersion),
		sink.UInt16("matched", row.GetMatched),
		sink.Bytes("data", row.GetData),
	)
}
