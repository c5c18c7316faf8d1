package rows_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/sink/sinktest"
	"github.com/betterdata/webhooks/processor/rows"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestEveryColumnIsFilledFromItsField(t *testing.T) {
	now := sinktest.Now()
	ip := netip.MustParseAddr("::ffff:203.0.113.9").As16()
	cases := map[string]sinktest.Case{
		"inbound_events": {Table: rows.InboundEvents(),
			Record: &webhooksv1.InboundRow{
				Source: "stripe", SourceEventId: "evt_foreign", EventId: "evt_1", OrganizationId: "org_1", Account: "cus_1",
				Type: "invoice.paid", Outcome: "processed", Reason: "r", ReceivedUnixMs: now,
			},
			Row: map[string]any{
				"source": "stripe", "source_event_id": "evt_foreign", "event_id": "evt_1", "organization_id": "org_1",
				"account": "cus_1", "type": "invoice.paid", "outcome": "processed", "reason": "r", "received_at": sinktest.Time(now),
				"src_part": sinktest.Partition, "src_offset": 0,
			}},
		"billing_audit": {Table: rows.BillingAudit(),
			Record: &webhooksv1.BillingAuditRow{
				EntryId: "aud_1", OrganizationId: "org_1", Action: "invoice.paid", SourceEventId: "evt_foreign", CustomerId: "cus_1",
				SubscriptionId: "sub_1", InvoiceId: "in_1", Amount: proto.Int64(-5), Currency: "eur", PlanBefore: "FREE",
				PlanAfter: "SCM_PRO", SnapshotVersion: 7, Livemode: true, OccurredUnixMs: now - 1, RecordedUnixMs: now,
			},
			Row: map[string]any{
				"entry_id": "aud_1", "organization_id": "org_1", "action": "invoice.paid", "source_event_id": "evt_foreign",
				"customer_id": "cus_1", "subscription_id": "sub_1", "invoice_id": "in_1", "amount": -5, "currency": "eur",
				"plan_before": "FREE", "plan_after": "SCM_PRO", "snapshot_version": 7, "livemode": 1,
				"occurred_at": sinktest.Time(now - 1), "recorded_at": sinktest.Time(now), "src_part": sinktest.Partition, "src_offset": 0,
			}},
		"billing_audit without an amount": {Table: rows.BillingAudit(),
			Record: &webhooksv1.BillingAuditRow{EntryId: "aud_2", RecordedUnixMs: now},
			Row: map[string]any{
				"entry_id": "aud_2", "organization_id": "", "action": "", "source_event_id": "", "customer_id": "",
				"subscription_id": "", "invoice_id": "", "amount": nil, "currency": "", "plan_before": "", "plan_after": "",
				"snapshot_version": 0, "livemode": 0, "occurred_at": sinktest.Time(0), "recorded_at": sinktest.Time(now),
				"src_part": sinktest.Partition, "src_offset": 0,
			}},
		"rejected_requests": {Table: rows.RejectedRequests(),
			Record: &webhooksv1.RejectionRow{
				RejectedUnixMs: now, Source: "stripe", Reason: "signature_invalid", Status: 400, RemoteIp: ip[:],
				UserAgent: "curl", ContentLength: 1 << 40, Weight: 3, Worker: "w1",
			},
			Row: map[string]any{
				"rejected_at": sinktest.Time(now), "source": "stripe", "reason": "signature_invalid", "status": 400,
				"remote_ip": "::ffff:203.0.113.9", "user_agent": "curl", "content_length": 1 << 40, "weight": 3, "worker": "w1",
				"src_part": sinktest.Partition, "src_offset": 0,
			}},
	}
	sinktest.RowsOf(t, rows.Tables(), cases)
}
