package billing

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/schemas/eventtypes"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestUpdateData(t *testing.T) {
	_, results := apply(t, parsedPlans(t), sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_starter", period1, period1, 0})
	require.JSONEq(t, `{"change":"created","previousPlan":"FREE","snapshot":{
		"organizationId":"org_1","version":1,"plan":"STARTER","planVersion":"test","tier":1,"status":"active",
		"capabilities":{"AGENTS":false,"ATP":false,"EXPIRY_TRACKING":false,"FORECASTING":false,"LOT_TRACKING":false,
			"MULTI_LOCATION":false,"PLANNING":false,"REPLENISHMENT":true},
		"limits":{"locations":2},"graceUntil":null,"periodEnd":"`+at(period1+30*day)+`","subscriptionIds":["sub_1"],"unmappedPrices":[],
		"computedAt":"`+at(period1)+`","cause":{"source":"stripe","eventId":"evt_1","type":"customer.subscription.created"}}}`,
		string(results[0].Updates[0].AppendData(nil)))
}

// What is sent out is what the catalogue of event types promises.
func TestUpdateDataHoldsItsSchema(t *testing.T) {
	catalogue, err := eventtypes.Load()
	require.NoError(t, err)
	s, results := apply(t, parsedPlans(t),
		sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_none", period1, period1, 0},
		sub{"evt_2", SubscriptionUpdated, "sub_1", pastDue, "price_starter", period1 + 1, period1, 0},
		sub{"evt_3", SubscriptionCreated, "sub_2", pastDue, "price_pro", period1 + 2, period1, 0},
	)
	results = append(results, Expire(s, s.Record.DueUnixMs, parsedPlans(t)))
	for _, r := range results {
		for _, u := range r.Updates {
			violations, err := catalogue.Validate("subscription.updated", u.AppendData(nil))
			require.NoError(t, err)
			require.Empty(t, violations)
		}
	}
}

func TestNone(t *testing.T) {
	require.JSONEq(t, `{"organizationId":"org_1","version":0,"plan":"FREE","planVersion":"test","tier":0,"status":"none",
		"capabilities":{"AGENTS":false,"ATP":false,"EXPIRY_TRACKING":false,"FORECASTING":false,"LOT_TRACKING":false,
			"MULTI_LOCATION":false,"PLANNING":false,"REPLENISHMENT":false},
		"limits":{},"graceUntil":null,"periodEnd":null,"subscriptionIds":[],"unmappedPrices":[],"computedAt":null,"cause":null}`,
		string(AppendSnapshot(nil, None(org, parsedPlans(t)))))
}

// Names come from outside: whatever is in them, the text stays JSON.
func TestSnapshotIsJSONWhateverIsInIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 10, -1)
		s := &webhooksv1.TenantCapabilitySnapshot{
			OrganizationId: text.Draw(t, "org"), Plan: text.Draw(t, "plan"), Status: text.Draw(t, "status"),
			Granted: []string{"A", "C"}, Withheld: []string{"B"}, Limits: map[string]int64{text.Draw(t, "limit"): 5, "b": -1},
			UnmappedPrices: []string{text.Draw(t, "price"), "p"}, Cause: &webhooksv1.Cause{EventId: text.Draw(t, "event")},
		}
		var got struct {
			OrganizationID string `json:"organizationId"`
			Plan           string
			Capabilities   map[string]bool
			Limits         map[string]int64
			UnmappedPrices []string
			Cause          struct{ EventID string }
		}
		require.NoError(t, json.Unmarshal(AppendSnapshot(nil, s), &got))
		require.Equal(t, s.OrganizationId, got.OrganizationID)
		require.Equal(t, s.Plan, got.Plan)
		require.Equal(t, map[string]bool{"A": true, "B": false, "C": true}, got.Capabilities)
		require.Equal(t, s.Limits, got.Limits)
		require.Equal(t, s.UnmappedPrices, got.UnmappedPrices)
		require.Equal(t, s.Cause.EventId, got.Cause.EventID)
	})
}

func TestViewRecord(t *testing.T) {
	s, _ := apply(t, parsedPlans(t),
		sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_starter", period1, period1, 0},
		inv{"evt_2", InvoicePaid, "in_1", 500, period1 + 1},
		inv{"evt_3", PaymentFailed, "in_2", 600, period2},
	)
	require.JSONEq(t, `{"organizationId":"org_1","status":"active","plan":"STARTER","customerIds":["cus_1"],
		"subscriptions":[{"id":"sub_1","customerId":"cus_1","status":"active",
			"items":[{"id":"si_1","priceId":"price_starter","productId":"prod_1","lookupKey":null,"quantity":1}],
			"currentPeriodStart":"`+at(period1)+`","currentPeriodEnd":"`+at(period1+30*day)+`",
			"cancelAt":null,"canceledAt":null,"endedAt":null,"trialEnd":null,"livemode":false}],
		"lastPayment":{"invoiceId":"in_1","amount":500,"currency":"usd","at":"`+at(period1+1)+`"},
		"lastFailure":{"invoiceId":"in_2","amount":600,"currency":"usd","at":"`+at(period2)+`","attemptCount":1,"nextAttemptAt":null},
		"createdAt":"`+at(period1)+`","updatedAt":"`+at(period2)+`"}`, asJSON(t, ViewRecord(s.Record)))
}

// Every documented field is there, null where it is unknown.
func TestViewRecordOfNothing(t *testing.T) {
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(asJSON(t, ViewRecord(&webhooksv1.BillingRecord{
		OrganizationId: org, Subscriptions: []*webhooksv1.Subscription{{Items: []*webhooksv1.SubscriptionItem{{}}}},
	}))), &fields))
	require.Len(t, fields, 9)
	require.Nil(t, fields["status"])
	subscription := fields["subscriptions"].([]any)[0].(map[string]any)
	require.Len(t, subscription, 11)
	require.Len(t, subscription["items"].([]any)[0], 5)
}
