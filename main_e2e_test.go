package main_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestServicesApart runs ingest, processor and deliverer as separate processes of the built program on a real Kafka and a
// real ClickHouse. Events are signed by Stripe's own library, deliveries verified by the Standard Webhooks library, and the
// record read by SQL: nothing of ours judges ours.
func TestServicesApart(t *testing.T) {
	s := startApart(t, map[string]string{
		"PLANS_FILE": writePlans(t), "RETRY_SCHEDULE": "50ms,100ms,150ms", "RETRY_JITTER": "0",
		"ENDPOINT_DISABLE_AFTER": "5s",
	})
	sign := testenv.StripeSigner(t)
	t.Run("every Stripe event takes effect, in both shapes", func(t *testing.T) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) { testFamily(t, s, sign, f) })
		}
	})
	t.Run("an event of an unknown customer takes effect once the customer is connected", func(t *testing.T) { testUnrouted(t, s, sign) })
	t.Run("a failing receiver is tried again, then given up", func(t *testing.T) { testExhausted(t, s, sign) })
	t.Run("one that does nothing but fail is disabled, and another endpoint hears of it", func(t *testing.T) { testFailing(t, s, sign) })
	t.Run("what is held back says until when", func(t *testing.T) { testHeld(t, s, sign) })
	t.Run("a delivery that ended is retried by hand", func(t *testing.T) { testRetried(t, s, sign) })
	t.Run("an endpoint is tested", func(t *testing.T) { testTested(t, s) })
	t.Run("with an order, what comes later waits for what failed", func(t *testing.T) { testOrdered(t, s, sign) })
	t.Run("after a rotation both secrets sign", func(t *testing.T) { testRotated(t, s, sign) })
	t.Run("the ledger closes", func(t *testing.T) { testLedger(t, s, sign) })
	t.Run("what was missed or failed is replayed", func(t *testing.T) { testReplayed(t, s, sign) })
	t.Run("what is refused is counted by reason", func(t *testing.T) { testRefused(t, s, sign) })
	t.Run("a hostile body gets its answer or a dead letter", func(t *testing.T) { testHostile(t, s, sign) })
	s.end(t)
}

// family is the life of one subscription told by fixtures of one shape.
type family struct {
	name  string
	steps []step
}

type step struct {
	fixture, eventType string
	change             func(object map[string]any)
}

func active(object map[string]any) {
	object["status"] = "active"
	object["canceled_at"], object["ended_at"] = nil, nil
}

var families = []family{
	{"top-level periods, API 2020-08-27", []step{
		{"stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", nil},
		{"stripe-ruby-mock/invoice.paid.json", "invoice.paid", nil},
		{"stripe-ruby-mock/customer.subscription.updated.json", "customer.subscription.updated", nil},
		{"stripe-ruby-mock/invoice.payment_failed.json", "invoice.payment_failed", nil},
		{"stripe-ruby-mock/customer.subscription.deleted.json", "customer.subscription.deleted", nil},
	}},
	{"top-level periods, two items, API 2020-03-02", []step{
		{"stripe-sync-engine/subscription_created.json", "customer.subscription.created", nil},
		{"stripe-sync-engine/invoice_paid.json", "invoice.paid", nil},
		{"stripe-sync-engine/subscription_updated.json", "customer.subscription.updated", nil},
		{"stripe-ruby-mock/invoice.payment_failed.json", "invoice.payment_failed", nil},
		{"stripe-sync-engine/subscription_deleted.json", "customer.subscription.deleted", nil},
	}},
	{"periods on items, parent.subscription_details", []step{
		{"pay/subscription.updated.object-only.json", "customer.subscription.created", active},
		{"pay/invoice.object-only.json", "invoice.paid", nil},
		{"pay/subscription.updated.object-only.json", "customer.subscription.updated", active},
		{"pay/invoice.payment_failed.object-only.json", "invoice.payment_failed", nil},
		{"pay/subscription.updated.object-only.json", "customer.subscription.deleted", nil},
	}},
}

func testFamily(t *testing.T, s *apart, sign func([]byte, string) string, f family) {
	org := fmt.Sprintf("family-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	endpoint, secret := s.endpoint(t, org, receiver.URL, "subscription.updated")
	events := make([]event, len(f.steps))
	for i, step := range f.steps {
		created := time.Now().Add(time.Duration(i-len(f.steps)) * time.Second)
		events[i] = stripeEvent(t, step.fixture, step.eventType, org, "cus_"+org, "sub_"+org, created)
		if step.change != nil {
			step.change(events[i].object())
		}
		body := events[i].body(t)
		status, id := s.stripe(t, body, sign(body, stripeSecret))
		require.Equal(t, http.StatusOK, status)
		require.Regexp(t, `^evt_[0-9a-hjkmnp-tv-z]{26}$`, id)
		requireEffect(t, s, org, events[i])
		again, same := s.stripe(t, body, sign(body, stripeSecret))
		require.Equal(t, http.StatusOK, again)
		require.Equal(t, id, same, "a repeat is answered alike")
	}
	requireDelivered(t, s, org, endpoint, secret, receiver)
	requireRows(t, s, org, events)
}

// requireEffect waits for what an event does, as the management API shows it.
func requireEffect(t *testing.T, s *apart, org string, e event) {
	t.Helper()
	entitlements, billing := "/v1/orgs/"+org+"/entitlements", "/v1/orgs/"+org+"/billing"
	is := func(path, field string, want any) func() bool {
		return func() bool {
			status, answer := s.call(t, http.MethodGet, path, nil)
			return status == http.StatusOK && fmt.Sprint(at(answer, field)) == fmt.Sprint(want)
		}
	}
	switch e["type"] {
	case "customer.subscription.created":
		testenv.Eventually(t, soon, is(entitlements, "version", 1), "entitlements of the first version")
		got := s.get(t, entitlements)
		require.Equal(t, []any{"SCM_PRO", "active", true}, []any{got["plan"], got["status"], at(got, "capabilities.FORECASTING")})
		require.Equal(t, "active", s.get(t, billing)["status"])
	case "customer.subscription.updated":
		testenv.Eventually(t, soon, is(entitlements, "version", 2), "entitlements of the second version")
	case "customer.subscription.deleted":
		testenv.Eventually(t, soon, is(entitlements, "version", 3), "entitlements of the third version")
		got := s.get(t, entitlements)
		require.Equal(t, []any{"FREE", "none", false}, []any{got["plan"], got["status"], at(got, "capabilities.FORECASTING")})
	case "invoice.paid":
		testenv.Eventually(t, soon, is(billing, "lastPayment.invoiceId", e.object()["id"]), "the payment")
		require.EqualValues(t, fmt.Sprint(e.object()["amount_paid"]), fmt.Sprint(at(s.get(t, billing), "lastPayment.amount")))
	case "invoice.payment_failed":
		testenv.Eventually(t, soon, is(billing, "lastFailure.invoiceId", e.object()["id"]), "the failure")
		require.EqualValues(t, fmt.Sprint(e.object()["attempt_count"]), fmt.Sprint(at(s.get(t, billing), "lastFailure.attemptCount")))
	}
}

// requireDelivered checks the merchant's side: one verified request a change, and what the API says of it.
func requireDelivered(t *testing.T, s *apart, org, endpoint, secret string, receiver *testenv.Receiver) {
	t.Helper()
	var changes []string
	for _, got := range receiver.Wait(t, soon, 3) {
		got.Verify(t, secret)
		body := got.Event(t)
		require.Equal(t, "subscription.updated", body["type"])
		require.Equal(t, org, body["organizationId"])
		require.Equal(t, body["id"], got.Header.Get("webhook-id"))
		require.Equal(t, "1", got.Header.Get("x-betterdata-attempt"))
		require.Regexp(t, `^t=\d+,v1=[0-9a-f]{64}$`, got.Header.Get("x-betterdata-signature"))
		changes = append(changes, at(body, "data.change").(string))
	}
	sort.Strings(changes)
	require.Equal(t, []string{"created", "deleted", "updated"}, changes)

	path := "/v1/orgs/" + org + "/deliveries?endpointId=" + endpoint + "&status=delivered"
	testenv.Eventually(t, soon, func() bool { return len(s.list(t, path)) == 3 }, "three deliveries")
	for _, delivery := range s.list(t, path) {
		one := s.get(t, "/v1/orgs/"+org+"/deliveries/"+at(delivery, "id").(string))
		require.Equal(t, "success", at(one, "attempts.0.outcome"), "%v", one)
		require.EqualValues(t, 200, at(one, "attempts.0.statusCode"))
	}
	require.Len(t, receiver.Received(), 3, "each once")
	require.Len(t, s.list(t, "/v1/orgs/"+org+"/events?eventType=subscription.updated"), 3)
	testenv.Eventually(t, soon, func() bool { return len(s.list(t, "/v1/orgs/"+org+"/billing/audit")) == 5 }, "the audit log")
}

// requireRows checks the record in ClickHouse: each thing once, although every event was sent twice.
func requireRows(t *testing.T, s *apart, org string, events []event) {
	t.Helper()
	for _, want := range []struct {
		what, query string
		n           int
	}{
		{"attempts", "(SELECT count() FROM delivery_attempts WHERE organization_id = $1 AND outcome = 'success')", 3},
		{"distinct attempts", "(SELECT uniqExact(attempt_id) FROM delivery_attempts WHERE organization_id = $1)", 3},
		{"deliveries", "(SELECT count() FROM deliveries FINAL WHERE organization_id = $1 AND status = 'delivered')", 3},
		{"events", "(SELECT count() FROM events WHERE organization_id = $1)", 3},
		{"events with their delivery", "(SELECT countIf(matched = 1) FROM events WHERE organization_id = $1)", 3},
		{"audited events", "(SELECT count() FROM billing_audit WHERE organization_id = $1)", 5},
		{"inbound events that took effect", "(SELECT count() FROM inbound_events WHERE organization_id = $1 AND outcome = 'processed')", 5},
	} {
		testenv.Eventually(t, soon, func() bool { return count(t, s.rows, want.query, org) == want.n }, want.what, " of ", org)
	}
	for _, e := range events {
		require.Equal(t, 1, count(t, s.rows, "(SELECT count() FROM billing_audit WHERE organization_id = $1 AND action = $2 AND source_event_id = $3)",
			org, e["type"], e["id"]), "%s has one entry in the audit log", e["type"])
	}
}

func testUnrouted(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("unrouted-%x", time.Now().UnixNano())
	customer := "cus_" + org
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", "", customer, "sub_"+org, time.Now()).body(t)
	status, _ := s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM inbound_events WHERE account = $1 AND outcome = 'unrouted')", customer) == 1
	}, "the event is known to wait")
	require.EqualValues(t, 0, s.get(t, "/v1/orgs/"+org+"/entitlements")["version"])

	status, connection := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/connections", map[string]any{"source": "stripe", "account": customer})
	require.Equal(t, http.StatusCreated, status, "%v", connection)
	testenv.Eventually(t, soon, func() bool {
		return fmt.Sprint(s.get(t, "/v1/orgs/"+org+"/entitlements")["version"]) == "1"
	}, "what waited took effect")
	require.Equal(t, "SCM_PRO", s.get(t, "/v1/orgs/"+org+"/entitlements")["plan"])

	status, refused := s.call(t, http.MethodPost, "/v1/orgs/another-org/connections", map[string]any{"source": "stripe", "account": customer})
	require.Equal(t, http.StatusConflict, status, "%v", refused)
}

func testExhausted(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("exhausted-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(testenv.Received) int { return http.StatusInternalServerError })
	_, secret := s.endpoint(t, org, receiver.URL, "*")
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	status, _ := s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)

	got := receiver.Wait(t, soon, 4)
	for i, request := range got {
		request.Verify(t, secret)
		require.Equal(t, fmt.Sprint(i+1), request.Header.Get("x-betterdata-attempt"))
		require.Equal(t, string(got[0].Body), string(request.Body), "the same bytes on every attempt")
	}
	delivery := got[0].Header.Get("x-betterdata-delivery")
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM deliveries FINAL WHERE delivery_id = $1 AND status = 'dead' AND reason = 'exhausted' AND attempt_count = 4)", delivery) == 1
	}, "the dead delivery")
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT uniqExact(number) FROM delivery_attempts WHERE delivery_id = $1 AND error_class = 'http_5xx')", delivery) == 4
	}, "a row an attempt")
	require.Equal(t, 4, count(t, s.rows, "(SELECT count() FROM delivery_attempts WHERE delivery_id = $1)", delivery))
	require.Equal(t, "dead", s.get(t, "/v1/orgs/"+org+"/deliveries/"+delivery)["status"])
	require.Len(t, receiver.Received(), 4)
	requireRecord(t, s, schemas.DeliveriesDead, func(r *kgo.Record) bool { return strings.Contains(string(r.Key)+string(r.Value), delivery) })
}

func testFailing(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("failing-%x", time.Now().UnixNano())
	fails, hears := testenv.NewReceiver(t), testenv.NewReceiver(t)
	fails.Answer(func(testenv.Received) int { return http.StatusInternalServerError })
	_, secret := s.endpoint(t, org, hears.URL, "endpoint.disabled")
	delays := slices.Repeat([]int{600}, 20)
	status, failing := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", map[string]any{
		"url": fails.URL, "eventTypes": []string{"subscription.updated", "endpoint.*"}, "retryScheduleMs": delays,
	})
	require.Equal(t, http.StatusCreated, status, "%v", failing)
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	status, _ = s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)

	told := hears.Wait(t, soon, 1)[0]
	told.Verify(t, secret)
	event := told.Event(t)
	path := "/v1/orgs/" + org + "/endpoints/" + failing["id"].(string)
	got := s.get(t, path)
	require.Equal(t, []any{false, "failing", 2.0}, []any{got["enabled"], got["disabledReason"], got["version"]})
	require.Equal(t, "endpoint.disabled", event["type"])
	require.Equal(t, map[string]any{"endpointId": got["id"], "reason": "failing", "disabledAt": got["disabledAt"]}, event["data"])
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM deliveries FINAL WHERE endpoint_id = $1 AND status = 'dead' AND reason = 'endpoint_disabled')", got["id"]) == 1
	}, "what waited is dead when it is due")
	require.Len(t, hears.Received(), 1)

	fails.Answer(func(testenv.Received) int { return http.StatusOK })
	attempts := len(fails.Received())
	status, _ = s.call(t, http.MethodPost, path+"/enable", nil)
	require.Equal(t, http.StatusOK, status)
	body = stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.updated", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	status, _ = s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "subscription.updated", fails.Wait(t, soon, attempts+1)[attempts].Event(t)["type"])
}

// testHeld has a delivery held back by an open breaker.
func testHeld(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("held-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(testenv.Received) int { return http.StatusInternalServerError })
	status, answer := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", map[string]any{
		"url": receiver.URL, "eventTypes": []string{"*"}, "retryScheduleMs": slices.Repeat([]int{20}, 20),
	})
	require.Equal(t, http.StatusCreated, status, "%v", answer)
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	status, _ = s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)
	path := "/v1/orgs/" + org + "/deliveries/" + receiver.Wait(t, soon, 10)[0].Header.Get("x-betterdata-delivery")

	testenv.Eventually(t, soon, func() bool {
		asked := time.Now().Truncate(time.Millisecond)
		got := s.get(t, path)
		shown, _ := got["nextAttemptAt"].(string)
		next, err := time.Parse(time.RFC3339, shown)
		return err == nil && !next.Before(asked)
	}, "it waits for the breaker's next probe")
}

func testOrdered(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("ordered-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(r testenv.Received) int {
		if at(r.Event(t), "data.change") == "created" && r.Header.Get("x-betterdata-attempt") != "3" {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	status, endpoint := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", map[string]any{
		"url": receiver.URL, "eventTypes": []string{"*"}, "ordering": "organization", "retryScheduleMs": []int{500, 500},
	})
	require.Equal(t, http.StatusCreated, status, "%v", endpoint)
	require.Equal(t, "organization", endpoint["ordering"])
	for i, change := range []string{"created", "updated", "deleted"} {
		body := stripeEvent(t, "stripe-ruby-mock/customer.subscription."+change+".json", "customer.subscription."+change, org, "cus_"+org, "sub_"+org,
			time.Now().Add(time.Duration(i)*time.Second)).body(t)
		status, _ := s.stripe(t, body, sign(body, stripeSecret))
		require.Equal(t, http.StatusOK, status)
	}
	var changes []any
	for _, got := range receiver.Wait(t, soon, 5) {
		changes = append(changes, at(got.Event(t), "data.change"))
	}
	require.Equal(t, []any{"created", "created", "created", "updated", "deleted"}, changes)
}

func testRotated(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("rotated-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	endpoint, first := s.endpoint(t, org, receiver.URL, "*")
	status, rotated := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints/"+endpoint+"/rotate-secret", map[string]any{"overlapMs": 60_000})
	require.Equal(t, http.StatusOK, status, "%v", rotated)
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	status, _ = s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, status)
	got := receiver.Wait(t, soon, 1)[0]
	got.Verify(t, first)
	got.Verify(t, rotated["secret"].(string))
}

// testLedger has one event for each fate: of the first nobody wants to know, the second goes to an endpoint that takes it, one
// that fails, one that is paused and one that is disabled, and the failure makes the third, which nobody wants either.
func testLedger(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("ledger-%x", time.Now().UnixNano())
	change := func(eventType string) {
		body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", eventType, org, "cus_"+org, "sub_"+org, time.Now()).body(t)
		status, _ := s.stripe(t, body, sign(body, stripeSecret))
		require.Equal(t, http.StatusOK, status)
	}
	closes := func(want map[string]float64) bool {
		sums := map[string]float64{}
		for _, minute := range s.list(t, "/v1/orgs/"+org+"/ledger") {
			for name := range want {
				sums[name] += minute.(map[string]any)[name].(float64)
			}
			require.Equal(t, at(minute, "accepted"),
				at(minute, "delivered").(float64)+at(minute, "waiting").(float64)+at(minute, "dead").(float64)+at(minute, "unmatched").(float64))
		}
		return fmt.Sprint(sums) == fmt.Sprint(want)
	}
	change("customer.subscription.created")
	testenv.Eventually(t, soon, func() bool {
		return closes(map[string]float64{"accepted": 1, "delivered": 0, "waiting": 0, "dead": 0, "unmatched": 1})
	}, "the event that nobody wants")

	takes, fails := testenv.NewReceiver(t), testenv.NewReceiver(t)
	fails.Answer(func(testenv.Received) int { return http.StatusInternalServerError })
	for url, member := range map[string]map[string]any{
		takes.URL: {}, fails.URL: {}, takes.URL + "/paused": {"paused": true}, takes.URL + "/disabled": {"enabled": false},
	} {
		member["url"], member["eventTypes"] = url, []string{"subscription.updated"}
		status, answer := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", member)
		require.Equal(t, http.StatusCreated, status, "%v", answer)
	}
	change("customer.subscription.updated")
	testenv.Eventually(t, soon, func() bool {
		return closes(map[string]float64{"accepted": 6, "delivered": 1, "waiting": 1, "dead": 1, "unmatched": 3})
	}, "every fate, each once")
	require.Len(t, takes.Received(), 1)
	require.Len(t, fails.Received(), 4)
	require.Len(t, s.list(t, "/v1/orgs/"+org+"/events?status=unmatched"), 2)
}

// testReplayed has one event that came before there was an endpoint, and one whose delivery died; then both are replayed.
func testReplayed(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("replayed-%x", time.Now().UnixNano())
	since := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	change := func(eventType string) {
		body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", eventType, org, "cus_"+org, "sub_"+org, time.Now()).body(t)
		status, _ := s.stripe(t, body, sign(body, stripeSecret))
		require.Equal(t, http.StatusOK, status)
	}
	unmatched := func(n int) func() bool {
		return func() bool { return len(s.list(t, "/v1/orgs/"+org+"/events?status=unmatched")) == n }
	}
	change("customer.subscription.created")
	testenv.Eventually(t, soon, unmatched(1), "the event that nobody wants")
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(testenv.Received) int { return http.StatusInternalServerError })
	endpoint, secret := s.endpoint(t, org, receiver.URL, "subscription.updated")
	change("customer.subscription.updated")
	failed := receiver.Wait(t, soon, 4)[3]
	testenv.Eventually(t, soon, unmatched(2), "the last attempt has failed, and nobody wants to know")
	receiver.Answer(func(testenv.Received) int { return http.StatusOK })

	replay := func(only string) map[string]any {
		status, begun := s.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints/"+endpoint+"/replay", map[string]any{"since": since, "only": only})
		require.Equal(t, http.StatusAccepted, status, "%v", begun)
		require.Equal(t, "running", begun["status"])
		path := "/v1/orgs/" + org + "/replays/" + begun["id"].(string)
		testenv.Eventually(t, soon, func() bool { return s.get(t, path)["status"] == "done" }, "the replay is done")
		return s.get(t, path)
	}
	first := replay("undelivered")
	require.EqualValues(t, []any{2.0, 2.0}, []any{first["total"], first["done"]})
	got := receiver.Wait(t, soon, 6)[4:]
	again := map[any]testenv.Received{}
	for _, request := range got {
		again[at(request.Event(t), "data.change")] = request
		request.Verify(t, secret)
		require.Equal(t, first["id"], request.Header.Get("x-betterdata-replay"))
		require.Equal(t, "1", request.Header.Get("x-betterdata-attempt"))
	}
	require.Contains(t, again, "created", "what nobody wanted when it came")
	updated := again["updated"]
	require.Equal(t, string(failed.Body), string(updated.Body), "the same bytes")
	require.Equal(t, failed.Header.Get("webhook-id"), updated.Header.Get("webhook-id"))
	require.NotEqual(t, failed.Header.Get("x-betterdata-delivery"), updated.Header.Get("x-betterdata-delivery"))

	require.EqualValues(t, 0, replay("undelivered")["done"], "there is nothing left")
	require.EqualValues(t, 2, replay("all")["done"])
	require.Len(t, receiver.Wait(t, soon, 8), 8)
	require.Len(t, s.list(t, "/v1/orgs/"+org+"/replays"), 3)
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM delivery_attempts WHERE organization_id = $1 AND trigger = 'replay' AND outcome = 'success')", org) == 4
	}, "a row for each attempt")
	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM deliveries FINAL WHERE organization_id = $1 AND replay_id != '' AND status = 'delivered')", org) == 4
	}, "each delivery has ended")
	require.Equal(t, 3, count(t, s.rows, "(SELECT toUInt64(sum(accepted)) FROM ledger WHERE organization_id = $1)", org), "replays are not in the ledger")
	require.Equal(t, 1, count(t, s.rows, "(SELECT toUInt64(sum(dead)) FROM ledger WHERE organization_id = $1)", org))
}

func testRefused(t *testing.T, s *apart, sign func([]byte, string) string) {
	body := []byte(`{"id":"evt_1","type":"invoice.paid","data":{"object":{}}}`)
	for _, tc := range []struct{ reason, signature string }{
		{"signature_missing", ""},
		{"signature_invalid", sign(body, "whsec_of_somebody_else")},
	} {
		status, _ := s.stripe(t, body, tc.signature)
		require.Equal(t, http.StatusBadRequest, status)
		testenv.Eventually(t, soon, func() bool {
			return count(t, s.rows, "(SELECT sum(weight) FROM rejected_requests WHERE source = 'stripe' AND reason = $1 AND status = 400)", tc.reason) == 1
		}, tc.reason, " is recorded")
	}
}

// testHostile sends bodies with a valid signature that no Stripe would send.
func testHostile(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("hostile-%x", time.Now().UnixNano())
	object := func(fields string) string {
		return `{"id":"sub_h","object":"subscription","metadata":{"organizationId":"` + org + `"}` + fields + `}`
	}
	of := func(id, rest string) string {
		return `{"id":"` + id + `","type":"customer.subscription.created"` + rest + `}`
	}
	for _, tc := range []struct {
		name, body string
		status     int
		dead       bool
	}{
		{"not JSON", "hello", 400, false},
		{"an array", "[]", 400, false},
		{"no id", `{"type":"invoice.paid","data":{"object":{}}}`, 400, false},
		{"no type", `{"id":"evt_h0","data":{"object":{}}}`, 400, false},
		{"not UTF-8", "{\"id\":\"evt_\xff\",\"type\":\"invoice.paid\"}", 400, false},
		{"deeper than 64", of("evt_h1", `,"data":`+strings.Repeat("[", 70)+strings.Repeat("]", 70)), 400, false},
		{"2 MiB", of("evt_h2", `,"pad":"`+strings.Repeat("x", 2<<20)+`"`), 413, false},
		{"no data", of("evt_h3", ""), 200, true},
		{"null object", of("evt_h4", `,"data":{"object":null}`), 200, true},
		{"customer of a wrong type", of("evt_h5", `,"created":1700000000,"data":{"object":`+object(`,"customer":7,"status":[]`)+`}`), 200, true},
		{"items of a wrong type", of("evt_h6", `,"created":1700000000,"data":{"object":`+object(`,"customer":"cus_h","status":"active","items":{"data":[7]}`)+`}`), 200, true},
		{"an unknown type", `{"id":"evt_h7","type":"customer.exploded","created":1700000000,"data":{"object":` + object("") + `}}`, 200, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			signature := sign([]byte(tc.body), stripeSecret)
			if tc.name == "not UTF-8" { // no string of Node.js holds it
				signature = signBytes([]byte(tc.body))
			}
			status, _ := s.stripe(t, []byte(tc.body), signature)
			require.Equal(t, tc.status, status)
			if tc.dead {
				requireRecord(t, s, schemas.InboundDead, func(r *kgo.Record) bool {
					var letter webhooksv1.DeadInbound
					require.NoError(t, proto.Unmarshal(r.Value, &letter))
					return string(letter.Body) == tc.body && letter.GetEvent().GetReason() != "" && letter.Topic != "" &&
						kafka.ReadHeader(deadletters.Original(&letter).Headers, schemas.HeaderEventID) == letter.Event.EventId
				})
			}
		})
	}
	last := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_h", "sub_h", time.Now()).body(t)
	status, _ := s.stripe(t, last, sign(last, stripeSecret))
	require.Equal(t, http.StatusOK, status)
	testenv.Eventually(t, soon, func() bool { return s.get(t, "/v1/orgs/"+org+"/entitlements")["plan"] == "SCM_PRO" }, "the next event takes effect")
}

// requireRecord waits until a topic holds a record.
func requireRecord(t *testing.T, s *apart, topic string, is func(*kgo.Record) bool) {
	t.Helper()
	reader, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.Brokers...), kgo.ConsumeTopics(s.kafka.Topic(topic)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	require.NoError(t, err)
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for found := false; !found; {
		fetches := reader.PollRecords(ctx, 100)
		require.NoError(t, ctx.Err(), "no such record on %s", topic)
		fetches.EachRecord(func(r *kgo.Record) { found = found || is(r) })
	}
}
