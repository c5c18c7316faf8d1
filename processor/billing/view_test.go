package billing

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

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
		asJSON(t, results[0].Updates[0].Data()))
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
			violations, err := catalogue.Validate("subscription.updated", []byte(asJSON(t, u.Data())))
			require.NoError(t, err)
			require.Empty(t, violations)
		}
	}
}

func TestNone(t *testing.T) {
	view := ViewSnapshot(None(org, parsedPlans(t)))
	require.Equal(t, "FREE", view.Plan)
	require.Zero(t, view.Version)
	require.Equal(t, StatusNone, view.Status)
	require.Len(t, view.Capabilities, 8)
	require.Nil(t, view.Cause)
	require.Nil(t, view.ComputedAt)
	require.Contains(t, asJSON(t, view), `"limits":{},"graceUntil":null`)
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
