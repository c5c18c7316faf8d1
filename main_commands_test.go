package main_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
)

// testRetried retries by hand a delivery that has just died, while the record does not know of it yet, then one that was
// delivered. In the record numbers go on without a gap or a repeat, and say what made each attempt.
func testRetried(t *testing.T, s *apart, sign func([]byte, string) string) {
	org := fmt.Sprintf("retried-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	var status atomic.Int64
	status.Store(http.StatusInternalServerError)
	receiver.Answer(func(testenv.Received) int { return int(status.Load()) })
	_, secret := s.endpoint(t, org, receiver.URL, "subscription.updated")
	body := stripeEvent(t, "stripe-ruby-mock/customer.subscription.created.json", "customer.subscription.created", org, "cus_"+org, "sub_"+org, time.Now()).body(t)
	accepted, _ := s.stripe(t, body, sign(body, stripeSecret))
	require.Equal(t, http.StatusOK, accepted)

	first := receiver.Wait(t, soon, 4)[0]
	status.Store(http.StatusOK)
	path := "/v1/orgs/" + org + "/deliveries/" + first.Header.Get("x-betterdata-delivery")
	var retried map[string]any
	testenv.Eventually(t, soon, func() bool {
		var code int
		code, retried = s.call(t, http.MethodPost, path+"/retry", nil)
		return code == http.StatusAccepted
	}, "the delivery can be retried once the record knows that there is one")
	require.Equal(t, "waiting", retried["status"], "%v", retried)
	require.EqualValues(t, 4, retried["attemptCount"], "however old what the record says")

	last := receiver.Wait(t, soon, 5)[4]
	last.Verify(t, secret)
	require.Equal(t, "5", last.Header.Get("x-betterdata-attempt"))
	require.Equal(t, string(first.Body), string(last.Body), "the same bytes, made from the event's row")
	requireTriggers(t, s, path, "delivered", "schedule schedule schedule schedule manual")

	status.Store(http.StatusInternalServerError)
	code, again := s.call(t, http.MethodPost, path+"/retry", nil)
	require.Equal(t, http.StatusAccepted, code, "%v", again)
	require.Equal(t, "delivered", again["status"])
	requireTriggers(t, s, path, "delivered", "schedule schedule schedule schedule manual manual schedule schedule schedule")
	require.Len(t, receiver.Received(), 9)
	code, refused := s.call(t, http.MethodPost, path+"/cancel", nil)
	require.Equal(t, http.StatusConflict, code, "%v", refused)
	require.Equal(t, "delivery_ended", refused["code"])
}

// requireTriggers waits until a delivery has these attempts, by their triggers, in the API and in ClickHouse.
func requireTriggers(t *testing.T, s *apart, path, status, triggers string) {
	t.Helper()
	want := strings.Fields(triggers)
	var one map[string]any
	testenv.Eventually(t, soon, func() bool {
		one = s.get(t, path)
		return one["attemptCount"] == float64(len(want)) && one["nextAttemptAt"] == nil && len(one["attempts"].([]any)) == len(want)
	}, len(want), " attempts")
	require.Equal(t, status, one["status"])
	for i, trigger := range want {
		require.EqualValues(t, i+1, at(one, fmt.Sprintf("attempts.%d.number", i)))
		require.Equal(t, trigger, at(one, fmt.Sprintf("attempts.%d.trigger", i)))
	}
	require.Equal(t, len(want), count(t, s.rows, "(SELECT count() FROM delivery_attempts WHERE delivery_id = $1)", one["id"]), "no number twice")
	require.Equal(t, 1, count(t, s.rows, "(SELECT count() FROM deliveries FINAL WHERE delivery_id = $1)", one["id"]))
}

// testTested tests an endpoint as it is created, paused and disabled.
func testTested(t *testing.T, s *apart) {
	org := fmt.Sprintf("tested-%x", time.Now().UnixNano())
	receiver := testenv.NewReceiver(t)
	endpoint, secret := s.endpoint(t, org, receiver.URL, "*")
	path := "/v1/orgs/" + org + "/endpoints/" + endpoint
	code, tested := s.call(t, http.MethodPost, path+"/test", map[string]any{"eventType": "loop.started"})
	require.Equal(t, http.StatusOK, code, "%v", tested)
	require.Equal(t, []any{"delivered", true, "loop.started", 1.0}, []any{tested["status"], tested["test"], tested["eventType"], tested["attemptCount"]})
	got := receiver.Wait(t, soon, 1)[0]
	got.Verify(t, secret)
	require.Equal(t, "loop.started", got.Event(t)["type"])
	require.NotEmpty(t, at(got.Event(t), "data.loopId"))

	code, _ = s.call(t, http.MethodPatch, path, map[string]any{"paused": true})
	require.Equal(t, http.StatusOK, code)
	receiver.Answer(func(testenv.Received) int { return http.StatusTeapot })
	code, tested = s.call(t, http.MethodPost, path+"/test", nil)
	require.Equal(t, http.StatusOK, code, "%v", tested)
	require.Equal(t, []any{"dead", "exhausted", "endpoint.test"}, []any{tested["status"], tested["reason"], tested["eventType"]})

	code, _ = s.call(t, http.MethodPost, path+"/disable", nil)
	require.Equal(t, http.StatusOK, code)
	code, tested = s.call(t, http.MethodPost, path+"/test", nil)
	require.Equal(t, http.StatusOK, code, "%v", tested)
	require.Equal(t, []any{"dead", "endpoint_disabled"}, []any{tested["status"], tested["reason"]})
	require.Len(t, receiver.Received(), 2)

	testenv.Eventually(t, soon, func() bool {
		return count(t, s.rows, "(SELECT count() FROM deliveries FINAL WHERE organization_id = $1 AND test = 1)", org) == 3 &&
			count(t, s.rows, "(SELECT count() FROM delivery_attempts WHERE organization_id = $1 AND test = 1 AND trigger = 'test')", org) == 2
	}, "the rows of three tests")
	require.Empty(t, s.list(t, "/v1/orgs/"+org+"/ledger"), "they are not in the ledger")
}
