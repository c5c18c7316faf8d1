package billing

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCapturedEventsTakeEffect applies each captured body to an organization of which nothing is known.
func TestCapturedEventsTakeEffect(t *testing.T) {
	const (
		zeroed = "price_000000000000000000000000"
		synced = "price_1IDQm5JDPojXS6LNM31hxKzp"
		own    = "FFBEGINNER_00000000000000"
	)
	type want struct {
		eventType string
		status    string
		customer  string
		unmapped  []string
		invoice   string
	}
	for file, want := range map[string]want{
		"stripe-ruby-mock/customer.subscription.created.json": {SubscriptionCreated, "active", "cus_00000000000000", []string{zeroed}, ""},
		"stripe-ruby-mock/customer.subscription.updated.json": {SubscriptionUpdated, "active", "cus_00000000000000", []string{zeroed}, ""},
		"stripe-ruby-mock/customer.subscription.deleted.json": {SubscriptionDeleted, "canceled", "cus_00000000000000", nil, ""},
		"stripe-ruby-mock/invoice.paid.json":                  {InvoicePaid, "", "cus_00000000000000", nil, "in_000000000000000000000000"},
		"stripe-ruby-mock/invoice.payment_failed.json":        {PaymentFailed, "", "cus_00000000000000", nil, "in_000000000000000000000000"},
		"stripe-sync-engine/subscription_created.json":        {SubscriptionCreated, "active", "cus_IhGfebO16cMIGN", []string{synced}, ""},
		"stripe-sync-engine/subscription_updated.json":        {SubscriptionUpdated, "active", "cus_IhGfebO16cMIGN", []string{synced}, ""},
		"stripe-sync-engine/subscription_deleted.json":        {SubscriptionDeleted, "canceled", "cus_IhGfebO16cMIGN", nil, ""},
		"stripe-sync-engine/invoice_paid.json":                {InvoicePaid, "", "cus_JsuO3bmrj0QlAw", nil, "in_1KJqKBJDPojXS6LNJbvLUgEy"},
		"pay/subscription.updated.object-only.json":           {SubscriptionUpdated, "canceled", "cus_00000000000000", nil, ""},
		"pay/subscription.deleted.object-only.json":           {SubscriptionDeleted, "canceled", "cus_00000000000000", nil, ""},
		"pay/invoice.payment_failed.object-only.json":         {PaymentFailed, "", "cus_1234", nil, "in_1234"},
		"pay/invoice.object-only.json":                        {InvoicePaid, "", "cus_S9YwWMaQEgeJYO", nil, "in_1RFFohKXBGcbgpbZk9MxzDMc"},
	} {
		t.Run(file, func(t *testing.T) {
			e := &Event{Organization: org, ID: "evt_1", EventID: "evt_ours", Type: want.eventType}
			require.Equal(t, Usable, Decode(eventOf(t, "stripe/"+file, want.eventType), e))
			r := Apply(State{}, e, parsedPlans(t))
			require.False(t, r.Stale)
			require.Equal(t, want.status, r.State.Record.Status)
			require.Equal(t, []string{want.customer}, r.State.Record.CustomerIds)
			require.Equal(t, want.eventType, r.Audit.Action)
			require.Equal(t, want.invoice, r.Audit.InvoiceId)
			if want.invoice != "" {
				require.Nil(t, r.State.Snapshot)
				return
			}
			require.Equal(t, want.unmapped, r.State.Snapshot.UnmappedPrices)
			require.Equal(t, "FREE", r.State.Snapshot.Plan)
			require.Len(t, r.Updates, 1)
		})
	}
}
