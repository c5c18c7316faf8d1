// Package rows says how the processor's row topics become ClickHouse tables: inbound events, the billing audit log,
// refused requests. The tables are schemas/clickhouse; internal/sink fills them.
package rows

import (
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Tables are all tables that the processor fills.
func Tables() []sink.Table {
	return []sink.Table{InboundEvents(), BillingAudit(), RejectedRequests()}
}

// InboundEvents fills inbound_events: what became of each event of a source.
func InboundEvents() sink.Table {
	type row = *webhooksv1.InboundRow
	return sink.Plain(schemas.InboundRows, "inbound_events",
		func() row { return &webhooksv1.InboundRow{} },
		func(r row) int64 { return sink.Week(r.GetReceivedUnixMs()) },
		sink.String("source", row.GetSource),
		sink.String("source_event_id", row.GetSourceEventId),
		sink.String("event_id", row.GetEventId),
		sink.String("organization_id", row.GetOrganizationId),
		sink.String("account", row.GetAccount),
		sink.String("type", row.GetType),
		sink.String("outcome", row.GetOutcome),
		sink.String("reason", row.GetReason),
		sink.Time("received_at", row.GetReceivedUnixMs),
	)
}

// BillingAudit fills billing_audit: one entry for each of the five Stripe events that was applied or found stale.
func BillingAudit() sink.Table {
	type row = *webhooksv1.BillingAuditRow
	return sink.Plain(schemas.BillingAudit, "billing_audit",
		func() row { return &webhooksv1.BillingAuditRow{} },
		func(r row) int64 { return sink.Month(r.GetRecordedUnixMs()) },
		sink.String("entry_id", row.GetEntryId),
		sink.String("organization_id", row.GetOrganizationId),
		sink.String("action", row.GetAction),
		sink.String("source_event_id", row.GetSourceEventId),
		sink.String("customer_id", row.GetCustomerId),
		sink.String("subscription_id", row.GetSubscriptionId),
		sink.String("invoice_id", row.GetInvoiceId),
		sink.NullInt64("amount", func(r row) *int64 { return r.Amount }),
		sink.String("currency", row.GetCurrency),
		sink.String("plan_before", row.GetPlanBefore),
		sink.String("plan_after", row.GetPlanAfter),
		sink.UInt64("snapshot_version", row.GetSnapshotVersion),
		sink.Bool("livemode", row.GetLivemode),
		sink.Time("occurred_at", row.GetOccurredUnixMs),
		sink.Time("recorded_at", row.GetRecordedUnixMs),
	)
}

// RejectedRequests fills rejected_requests: who was refused at the edge and why, never what they sent.
func RejectedRequests() sink.Table {
	type row = *webhooksv1.RejectionRow
	return sink.Plain(schemas.Rejections, "rejected_requests",
		func() row { return &webhooksv1.RejectionRow{} },
		func(r row) int64 { return sink.Week(r.GetRejectedUnixMs()) },
		sink.Time("rejected_at", row.GetRejectedUnixMs),
		sink.String("source", row.GetSource),
		sink.String("reason", row.GetReason),
		sink.UInt16("status", row.GetStatus),
		sink.IPv6("remote_ip", row.GetRemoteIp),
		sink.String("user_agent", row.GetUserAgent),
		sink.UInt64("content_length", row.GetContentLength),
		sink.UInt32("weight", row.GetWeight),
		sink.String("worker", row.GetWorker),
	)
}
