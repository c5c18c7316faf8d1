package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/testenv"
)

// auditLog is a ClickHouse with five entries of org_1, a minute apart, and one of another organization.
func auditLog(t *testing.T) driver.Conn {
	url := testenv.ClickHouse(t)
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO billing_audit ("+auditColumns+", src_part, src_offset)")
	require.NoError(t, err)
	amount := int64(500)
	for i, entry := range []struct {
		org, action, invoice string
		amount               *int64
	}{
		{org, "customer.subscription.created", "", nil},
		{org, "invoice.paid", "in_1", &amount},
		{"org_2", "invoice.paid", "in_2", &amount},
		{org, "customer.subscription.updated", "", nil},
		{org, "invoice.paid", "in_3", &amount},
		{org, "customer.subscription.deleted", "", nil},
	} {
		at := auditStart.Add(time.Duration(i) * time.Minute)
		require.NoError(t, batch.Append(fmt.Sprint("aud_", i), entry.org, entry.action, fmt.Sprint("evt_", i), "cus_1", "", entry.invoice,
			entry.amount, "", "FREE", "SCM_PRO", uint64(i), uint8(1), at.Add(-time.Second), at, int32(0), int64(i)))
	}
	require.NoError(t, batch.Send())
	return conn
}

var auditStart = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestBillingAudit(t *testing.T) {
	r := newRig(t, auditLog(t))
	const path = "/v1/orgs/org_1/billing/audit"

	all := []string{"aud_5", "aud_4", "aud_3", "aud_1", "aud_0"}
	require.Equal(t, all, idsOf(r.getJSON(path)), "newest first")
	require.Equal(t, map[string]any{
		"id": "aud_1", "organizationId": org, "action": "invoice.paid", "sourceEventId": "evt_1", "customerId": "cus_1",
		"subscriptionId": nil, "invoiceId": "in_1", "amount": float64(500), "currency": nil, "planBefore": "FREE", "planAfter": "SCM_PRO",
		"snapshotVersion": float64(1), "livemode": true, "occurredAt": "2026-11-23T12:00:59.000Z", "recordedAt": "2026-11-23T12:01:00.000Z",
	}, r.getJSON(path)["data"].([]any)[3])

	for query, want := range map[string][]string{
		"?action=invoice.paid": {"aud_4", "aud_1"},
		"?action=invoice.paid&action=customer.subscription.created":      {"aud_4", "aud_1", "aud_0"},
		"?since=2026-11-23T12:01:00.000Z&until=2026-11-23T12:04:00.000Z": {"aud_3", "aud_1"},
		"?action=%27)%20OR%201=1":                                        nil,
	} {
		require.Equal(t, want, idsOf(r.getJSON(path+query)), query)
	}

	var paged []string
	for next := path + "?limit=2"; next != ""; {
		body := r.getJSON(next)
		paged = append(paged, idsOf(body)...)
		next = ""
		if cursor, more := body["nextCursor"].(string); more {
			next = path + "?limit=2&cursor=" + cursor
		}
	}
	require.Equal(t, all, paged)
	require.Equal(t, http.StatusBadRequest, r.get(path+"?plan=x").Response.StatusCode())
}

func TestBillingAuditIs503WithoutClickHouse(t *testing.T) {
	conn, err := clickhouse.Open(t.Context(), "clickhouse://127.0.0.1:1/webhooks")
	require.NoError(t, err)
	ctx := newRig(t, conn).get("/v1/orgs/org_1/billing/audit")
	require.Equal(t, http.StatusServiceUnavailable, ctx.Response.StatusCode())
}
