package main_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/testenv"
)

const (
	// disturbed is how long services are killed under load.
	disturbed = 60 * time.Second
	// undisturbed is how long a service runs before the next one is killed.
	undisturbed = 3 * time.Second
	// drained bounds the wait for what was accepted to end.
	drained = 2 * time.Minute
	senders = 8
)

// TestKilledServicesLoseNothing kills each service in turn under load. Afterwards every accepted event has had exactly one
// effect, every delivery has ended, and the record agrees with what the merchants' servers saw.
func TestKilledServicesLoseNothing(t *testing.T) {
	s := startApart(t, map[string]string{"RETRY_SCHEDULE": strings.Repeat("200ms,", 19) + "200ms", "RETRY_JITTER": "0.2"})
	receiver := testenv.NewReceiver(t)
	receiver.Answer(flaky())
	orgs := make([]string, senders)
	for i := range orgs {
		orgs[i] = fmt.Sprintf("killed-%d-%x", i, time.Now().UnixNano())
		s.endpoint(t, orgs[i], receiver.URL, "subscription.updated")
	}

	load, stop := context.WithTimeout(t.Context(), disturbed)
	defer stop()
	accepted := make([]int, senders)
	var group errgroup.Group
	for i, org := range orgs {
		first := stripeEvent(t, "stripe-ruby-mock/customer.subscription.updated.json", "customer.subscription.updated", org, "cus_"+org, "sub_"+org, time.Now())
		group.Go(func() error {
			accepted[i] = send(t, load, s.client, first)
			return nil
		})
	}
	victims := []*testenv.Server{s.ingest, s.processor, s.deliverer}
	for kill := 0; load.Err() == nil; kill++ {
		select {
		case <-load.Done():
		case <-time.After(undisturbed):
			require.NoError(t, victims[kill%len(victims)].Restart(t.Context()))
		}
	}
	require.NoError(t, group.Wait())
	requireNothingLost(t, s, orgs, accepted, receiver)
	s.end(t)
}

// flaky fails one request in ten, so that retries run too.
func flaky() func(testenv.Received) int {
	var n int
	return func(testenv.Received) int {
		if n++; n%10 == 0 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	}
}

// send posts one event after the other until ctx ends, each again until it is answered 200, as Stripe does. It returns how
// many were accepted.
func send(t *testing.T, ctx context.Context, c client, e event) (accepted int) {
	base := time.Now().Add(-24 * time.Hour).Unix()
	id := e["id"].(string)
	for ; ctx.Err() == nil; accepted++ {
		e["id"], e["created"] = fmt.Sprintf("%s_%d", id, accepted), base+int64(accepted)
		body := e.body(t)
		for {
			status, err := c.do(t.Context(), http.MethodPost, "/webhooks/stripe", http.Header{"Stripe-Signature": {signBytes(body)}}, body, nil)
			if err == nil && status == http.StatusOK {
				break
			}
			time.Sleep(50 * time.Millisecond) // a platform's pause before it sends again
		}
		time.Sleep(20 * time.Millisecond) // the load: about 300 events a second in all
	}
	return accepted
}

// requireNothingLost waits until each accepted event is known to have been applied, or, overtaken by a later one while its
// customer was being learnt, to be stale; then everything that follows from it is there once.
func requireNothingLost(t *testing.T, s *apart, orgs []string, accepted []int, receiver *testenv.Receiver) {
	t.Helper()
	total, effects := 0, 0
	for i, org := range orgs {
		total += accepted[i]
		requireCount(t, s, accepted[i], "(SELECT uniqExact(source_event_id) FROM billing_audit WHERE organization_id = $1)", org)
		stale := count(t, s.rows, "(SELECT countIf(outcome = 'stale') FROM inbound_events WHERE organization_id = $1)", org)
		version := at(s.get(t, "/v1/orgs/"+org+"/entitlements"), "version")
		require.EqualValues(t, accepted[i]-stale, version, "one effect an event of %s, %d were stale", org, stale)
		effects += accepted[i] - stale
	}
	t.Logf("%d events were accepted, %d had an effect", total, effects)
	requireCount(t, s, total, "(SELECT count() FROM billing_audit)")
	requireCount(t, s, effects, "(SELECT count() FROM inbound_events WHERE outcome = 'processed')")
	requireCount(t, s, effects, "(SELECT uniqExact(event_id) FROM events)")
	requireCount(t, s, effects, "(SELECT count() FROM events)")
	requireCount(t, s, effects, "(SELECT count() FROM deliveries FINAL WHERE status = 'delivered')")
	requireCount(t, s, effects, "(SELECT count() FROM deliveries FINAL)")
	requireAttempts(t, s, receiver)
}

// requireCount waits for the record, which is a moment behind, and requires the number.
func requireCount(t *testing.T, s *apart, want int, query string, args ...any) {
	t.Helper()
	got := 0
	for ended := time.Now().Add(drained); ; time.Sleep(200 * time.Millisecond) {
		if got = count(t, s.rows, query, args...); got >= want || time.Now().After(ended) {
			break
		}
	}
	require.Equal(t, want, got, "%s %v", query, args)
}

// requireAttempts compares the rows with the requests that the merchants' server saw: the same attempts, one row each,
// and a request that was sent twice says so.
func requireAttempts(t *testing.T, s *apart, receiver *testenv.Receiver) {
	t.Helper()
	seen := map[string]int{}
	for _, got := range receiver.Received() {
		seen[got.Header.Get("x-betterdata-delivery")+"/"+got.Header.Get("x-betterdata-attempt")]++
	}
	testenv.Eventually(t, drained, func() bool { return count(t, s.rows, "(SELECT count() FROM delivery_attempts)") >= len(seen) }, "a row an attempt")
	require.Equal(t, count(t, s.rows, "(SELECT uniqExact(attempt_id) FROM delivery_attempts)"), count(t, s.rows, "(SELECT count() FROM delivery_attempts)"))
	require.Equal(t, len(seen), count(t, s.rows, "(SELECT count() FROM delivery_attempts)"), "rows, and requests that were seen")
	rows, err := s.rows.Query(t.Context(), "SELECT concat(delivery_id, '/', toString(number)), maybe_repeated FROM delivery_attempts")
	require.NoError(t, err)
	repeated := 0
	for rows.Next() {
		var attempt string
		var maybeRepeated uint8
		require.NoError(t, rows.Scan(&attempt, &maybeRepeated))
		if seen[attempt] > 1 {
			repeated++
			require.EqualValues(t, 1, maybeRepeated, "%s was sent %d times", attempt, seen[attempt])
		}
		delete(seen, attempt)
	}
	require.NoError(t, rows.Err())
	require.Empty(t, seen, "requests without a row")
	t.Logf("%d attempts were sent again after a kill", repeated)
}
