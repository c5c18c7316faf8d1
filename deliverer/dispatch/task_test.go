package dispatch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestDelivered(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	out := w.settle(w.Process(w.event("e1", ep)))

	got := attempts(t, out)
	require.Len(t, got, 1)
	require.Equal(t, dlv("e1", ep), got[0].DeliveryId)
	require.Equal(t, id.Derive(id.Attempt, dlv("e1", ep), "1"), got[0].AttemptId)
	require.EqualValues(t, 1, got[0].Number)
	require.Equal(t, "success", got[0].Outcome)
	require.Equal(t, "delivered", got[0].DeliveryStatus)
	require.False(t, got[0].MaybeRepeated)

	row := deliveries(t, out)
	require.Len(t, row, 1)
	require.Equal(t, "delivered", row[0].Status)
	require.EqualValues(t, 2, row[0].Version, "fan-out wrote 1")
	require.EqualValues(t, 1, row[0].AttemptCount)
	require.NotZero(t, row[0].EndedUnixMs)
	require.NotZero(t, row[0].CreatedUnixMs)
	require.Empty(t, w.waiting())
	require.EqualValues(t, 1, w.Watermark(), "the happy path leaves nothing behind")
}

func TestRetriedThenDelivered(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	out := w.settle(w.Process(w.event("e1", ep)))
	require.Equal(t, "waiting", deliveries(t, out)[0].Status)
	require.EqualValues(t, w.Now.Add(5*time.Second).UnixMilli(), deliveries(t, out)[0].NextAttemptUnixMs)
	require.Equal(t, deliveries(t, out)[0].NextAttemptUnixMs, attempts(t, out)[0].NextAttemptUnixMs)
	require.Equal(t, "http_5xx", attempts(t, out)[0].ErrorClass)
	require.EqualValues(t, 1, w.Watermark(), "what waits is in the schedule, not on the input")
	state := w.waiting()[dlv("e1", ep)]
	require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_BACKOFF, state.Reason)
	require.False(t, state.Started)

	require.Empty(t, attempts(t, w.pass(4999*time.Millisecond)))
	w.receiver.answer(200)
	out = w.pass(time.Millisecond)
	require.EqualValues(t, 2, attempts(t, out)[0].Number)
	require.False(t, attempts(t, out)[0].MaybeRepeated)
	require.Equal(t, "delivered", deliveries(t, out)[0].Status)
	require.EqualValues(t, 3, deliveries(t, out)[0].Version)
	require.Empty(t, w.Keys(schemas.Retries), "both records are tombstoned")

	sent := w.receiver.sent()
	require.Len(t, sent, 2)
	require.Equal(t, sent[0].body, sent[1].body)
}

func TestExhausted(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(503)
	out := w.settle(w.Process(w.event("e1", ep)))
	out = append(out, w.pass(5*time.Second)...)
	out = append(out, w.pass(time.Minute)...)
	require.Len(t, attempts(t, out), 3, "two delays, so three attempts")
	last := deliveries(t, out)[2]
	require.Equal(t, "dead", last.Status)
	require.Equal(t, "exhausted", last.Reason)
	require.EqualValues(t, 3, last.AttemptCount)
	require.EqualValues(t, 4, last.Version)
	require.Equal(t, "dead", attempts(t, out)[2].DeliveryStatus)
	require.Empty(t, w.Keys(schemas.Retries))

	letters := dead(t, out)
	require.Len(t, letters, 1)
	require.Equal(t, "http_5xx", letters[0].ErrorClass)
	require.True(t, proto.Equal(last, letters[0].Delivery))

	events := out.Topic(schemas.Events)
	require.Len(t, events, 1)
	require.Equal(t, "delivery.exhausted", header(events[0], schemas.HeaderType))
	require.Equal(t, id.Derive(id.Event, "delivery.exhausted", org, dlv("e1", ep)), header(events[0], schemas.HeaderID))
	require.Empty(t, header(events[0], schemas.HeaderEndpointSet))
	var data map[string]any
	require.NoError(t, json.Unmarshal(events[0].Value, &data))
	require.Equal(t, map[string]any{
		"deliveryId": dlv("e1", ep), "endpointId": ep, "eventId": id.Derive(id.Event, "e1"), "eventType": "order.created",
		"attemptCount": 3.0, "errorClass": "http_5xx",
	}, data)
}

func TestOperationalEventsCauseNone(t *testing.T) {
	for _, kind := range []string{"delivery.exhausted", "endpoint.disabled"} {
		w := newWorld(t, nil)
		ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RetrySchedule = &webhooksv1.RetrySchedule{} })
		w.receiver.answer(500)
		out := w.settle(w.Process(w.eventOf(kind, "e1", ep)))
		require.Equal(t, "exhausted", deliveries(t, out)[0].Reason)
		require.Empty(t, out.Topic(schemas.Events))
	}
}

func TestGoneDisablesTheEndpoint(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Version = 7 })
	w.receiver.answer(410)
	out := w.settle(w.Process(w.event("e1", ep)))
	require.Equal(t, "gone", deliveries(t, out)[0].Reason)
	require.Len(t, dead(t, out), 1)
	require.Empty(t, out.Topic(schemas.Events))

	records := out.Topic(schemas.Inbound)
	require.Len(t, records, 1)
	require.Equal(t, schemas.TypeCommand, header(records[0], schemas.HeaderType))
	require.Equal(t, org, header(records[0], schemas.HeaderOrganization))
	var command webhooksv1.Command
	require.NoError(t, proto.Unmarshal(records[0].Value, &command))
	require.Equal(t, ep, command.GetDisableEndpoint().EndpointId)
	require.EqualValues(t, 7, command.GetDisableEndpoint().JudgedVersion)
	require.Equal(t, "gone", command.GetDisableEndpoint().Reason)
}

func TestRetryAfterWinsWhenItIsLater(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.all = func(*sender.Message) sender.Result {
		return sender.Result{StatusCode: 429, Class: sender.HTTP429, RetryAfter: w.Now.Add(42 * time.Second)}
	}
	out := w.settle(w.Process(w.event("e1", ep)))
	require.EqualValues(t, w.Now.Add(42*time.Second).UnixMilli(), deliveries(t, out)[0].NextAttemptUnixMs)
}

func TestEndpointThatTakesNothing(t *testing.T) {
	w := newWorld(t, nil)
	off := w.endpoint("off", func(ep *webhooksv1.Endpoint) { ep.Enabled = false })
	out := w.settle(w.Process(w.event("e1", off, endpointID("never"))))
	require.Empty(t, w.receiver.sent())
	require.Empty(t, attempts(t, out))
	got := map[string]string{}
	for _, row := range deliveries(t, out) {
		require.Equal(t, "dead", row.Status)
		require.Zero(t, row.AttemptCount)
		got[row.EndpointId] = row.Reason
	}
	require.Equal(t, map[string]string{off: "endpoint_disabled", endpointID("never"): "endpoint_deleted"}, got)
	require.Len(t, dead(t, out), 2)
	require.EqualValues(t, 1, w.Watermark())
}

func TestWaitingEndsAtItsDueTimeWhenTheEndpointIsGone(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	w.removeEndpoint(ep)
	require.Empty(t, deliveries(t, w.pass(time.Second)))
	out := w.pass(4 * time.Second)
	require.Equal(t, "endpoint_deleted", deliveries(t, out)[0].Reason)
	require.EqualValues(t, 1, deliveries(t, out)[0].AttemptCount)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestPausedWaitsAndAResumedOneDrains(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	var records []*kgo.Record
	for _, name := range names("e", 40) {
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	require.Empty(t, w.receiver.sent())
	require.Len(t, w.waiting(), 40)
	require.EqualValues(t, 40, w.Watermark())
	w.pass(time.Hour)
	require.Empty(t, w.receiver.sent())

	w.endpoint("a", nil)
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 40)
	require.Empty(t, w.Keys(schemas.Retries))
	first := map[string]bool{}
	for _, s := range w.receiver.sent()[:16] {
		first[s.body] = true
	}
	for _, name := range names("e", 16) {
		require.True(t, first[`{"id":"`+name+`"}`], "the oldest go first")
	}
}

func TestSaturatedEndpointStepsAside(t *testing.T) {
	w := newWorld(t, nil)
	slow := w.endpoint("slow", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 2 })
	quick := w.endpoint("quick", nil)
	var records []*kgo.Record
	for _, name := range names("s", 10) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, slow))
	}
	records = append(records, w.event("q", quick))
	out := w.settle(w.Process(records...))
	require.Len(t, attempts(t, out), 1, "the other endpoint is not held up")
	require.Len(t, w.receiver.sent(), 3, "no more at once than the endpoint allows")
	states := w.waiting()
	require.Len(t, states, 6, "two run, two are at hand, the rest has left memory")
	for _, s := range states {
		require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_SATURATED, s.Reason)
		require.Zero(t, s.Attempts)
	}
	w.receiver.releaseAll()
	out = w.settle(w.Commit())
	require.Len(t, attempts(t, out), 10)
	for _, row := range attempts(t, out) {
		require.EqualValues(t, 1, row.Number, "waiting for room is no attempt")
		require.False(t, row.MaybeRepeated)
	}
	require.Empty(t, w.Keys(schemas.Retries))
	require.EqualValues(t, 11, w.Watermark())
}

func TestBreakerOpensAndProbes(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.answer(500)
	for _, name := range names("e", 10) {
		w.settle(w.Process(w.event(name, ep)))
	}
	require.Len(t, w.receiver.sent(), 10)
	w.settle(w.Process(w.event("x", ep), w.event("y", ep)))
	require.Len(t, w.receiver.sent(), 10, "ten failures in a row open it")
	require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_BREAKER, w.waiting()[dlv("x", ep)].Reason)
	require.Zero(t, w.waiting()[dlv("x", ep)].Attempts)

	w.pass(999 * time.Millisecond)
	require.Len(t, w.receiver.sent(), 10)
	w.pass(time.Millisecond)
	require.Len(t, w.receiver.sent(), 11, "one probe after a second")
	w.pass(1999 * time.Millisecond)
	require.Len(t, w.receiver.sent(), 11, "the next after two")
	w.receiver.answer(200)
	w.pass(time.Millisecond)
	require.Len(t, w.receiver.sent(), 12, "the probe, and it closes; the others are not due yet")
	w.pass(10 * time.Second)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestRateLimit(t *testing.T) {
	w := newWorld(t, nil)
	rate := 20.0
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RateLimit = &rate })
	var records []*kgo.Record
	for _, name := range names("e", 60) {
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	for range 100 {
		w.pass(10 * time.Millisecond)
	}
	require.InDelta(t, 20, len(w.receiver.sent()), 4, "a second's worth in a second")
	for range 300 {
		w.pass(10 * time.Millisecond)
	}
	require.Len(t, w.receiver.sent(), 60)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestPartlyDoneRecord(t *testing.T) {
	w := newWorld(t, nil)
	a, b, c := w.endpoint("a", nil), w.endpoint("b", nil), w.endpoint("c", nil)
	w.receiver.holdBack("e2")
	w.settle(w.Process(w.event("e1", a, b, c), w.event("e2", a)))
	require.EqualValues(t, 1, w.Watermark(), "e2 is still under way")
	w.Crash()
	w.receiver.release("e2")
	out := w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 1)
	require.True(t, attempts(t, out)[0].MaybeRepeated, "nobody could know whether it went out")
	require.Len(t, w.receiver.sent(), 5)
}

func TestCrashBetweenTargets(t *testing.T) {
	w := newWorld(t, nil)
	a, b := w.endpoint("a", nil), w.endpoint("b", nil)
	w.receiver.all = func(m *sender.Message) sender.Result { return sender.Result{StatusCode: 200} }
	// b has no slot: its delivery stays in hand while a's ends.
	w.endpoint("b", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e0")
	w.settle(w.Process(w.event("e0", b)))
	w.settle(w.Process(w.event("e1", a, b)))
	require.Len(t, w.receiver.sent(), 2)
	w.Crash()
	w.receiver.release("e0")
	out := w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 2)
	numbers := map[string]int{}
	for _, s := range w.receiver.sent() {
		numbers[s.delivery]++
	}
	require.Equal(t, 1, numbers[dlv("e1", a)], "what is done is not sent again")
}

func TestAbortedTransactionChangesNothing(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.settle(w.Commit())
	record := w.event("e1", ep)
	w.Abort(record)
	w.quiet()
	require.Len(t, w.receiver.sent(), 1)
	require.Empty(t, attempts(t, w.Commit()), "the result waits for its record to be given again")
	out := w.settle(w.Redeliver())
	require.Len(t, w.receiver.sent(), 1, "in flight, recognised, not sent twice")
	require.Len(t, attempts(t, out), 1)
	require.False(t, attempts(t, out)[0].MaybeRepeated)
	require.EqualValues(t, 1, w.Watermark())
}

func TestAbortWhileResultsAreHandedOver(t *testing.T) {
	for _, status := range []int{200, 500} {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.receiver.answer(status)
		w.receiver.holdBack("e1")
		w.settle(w.Process(w.event("e1", ep)))
		w.receiver.release("e1")
		w.quiet()
		w.Abort()
		require.Empty(t, w.Keys(schemas.Retries))
		out := w.settle(w.Commit())
		require.Len(t, attempts(t, out), 1)
		require.Len(t, w.receiver.sent(), 1)
		require.EqualValues(t, 1, w.Watermark())

		// Again, with an attempt out of the schedule.
		if status != 500 {
			continue
		}
		w.Now = w.Now.Add(5 * time.Second)
		w.Commit() // marks
		w.receiver.holdBack("e1")
		w.Commit() // sends
		w.receiver.release("e1")
		w.quiet()
		w.Abort()
		out = w.settle(w.Commit())
		require.Len(t, attempts(t, out), 1)
		require.EqualValues(t, 2, attempts(t, out)[0].Number)
		require.Len(t, w.receiver.sent(), 2)
	}
}

func TestAbortedSpillIsDoneAgain(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	w.settle(w.Commit())
	w.Abort(w.event("e1", ep))
	require.Empty(t, w.Keys(schemas.Retries))
	w.settle(w.Redeliver())
	require.Len(t, w.waiting(), 1)
	require.EqualValues(t, 1, w.Watermark())
	w.endpoint("a", nil)
	require.Len(t, attempts(t, w.settle(w.Commit())), 1)
}

func TestAbortedMarkIsNotSent(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	w.Now = w.Now.Add(5 * time.Second)
	w.Abort()
	require.Len(t, w.receiver.sent(), 1)
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 1)
	require.False(t, attempts(t, out)[0].MaybeRepeated)
}

func TestDueTimesSurviveARestart(t *testing.T) {
	for _, clean := range []bool{true, false} {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.receiver.answer(500)
		w.settle(w.Process(w.event("e1", ep)))
		if clean {
			w.Stop()
		} else {
			w.Crash()
		}
		require.Empty(t, attempts(t, w.settle(w.Redeliver())))
		require.Empty(t, attempts(t, w.pass(4*time.Second)))
		out := w.pass(time.Second)
		require.Len(t, attempts(t, out), 1)
		require.EqualValues(t, 2, attempts(t, out)[0].Number)
		require.False(t, attempts(t, out)[0].MaybeRepeated, "it was known not to be under way")
	}
}

func TestCrashWhileARetryIsUnderWay(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep), w.event("e2", ep)))
	w.receiver.holdBack("e1")
	out := w.pass(5 * time.Second)
	require.Len(t, attempts(t, out), 1, "e2's second")
	require.True(t, w.waiting()[dlv("e1", ep)].Started)
	w.Crash()
	w.receiver.release("e1")
	out = w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 1)
	require.EqualValues(t, 2, attempts(t, out)[0].Number, "the same number again")
	require.True(t, attempts(t, out)[0].MaybeRepeated)
	require.False(t, w.waiting()[dlv("e1", ep)].Started)
}

func TestCleanStopHandsEverythingOver(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	for _, name := range names("e", 6) {
		w.settle(w.Process(w.event(name, ep)))
	}
	var records []*kgo.Record
	for _, name := range names("x", 6) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	time.AfterFunc(10*time.Millisecond, w.receiver.releaseAll)
	out := w.Stop()
	require.Len(t, attempts(t, out), 1, "what ran when the stop came")
	for _, s := range w.waiting() {
		require.False(t, s.Started)
	}
	out = w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 5)
	for _, row := range attempts(t, out) {
		require.False(t, row.MaybeRepeated)
	}
	require.Empty(t, w.Keys(schemas.Retries))
	require.Len(t, w.receiver.sent(), 12)
}

func TestStopThatRunsOutOfTimeMarksOnlyWhatRan(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 2 })
	var records []*kgo.Record
	for _, name := range names("e", 6) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	require.Len(t, w.receiver.sent(), 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Task().Drain(ctx)
	w.Commit()
	w.Crash()
	w.receiver.releaseAll()
	out := w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 6)
	marked := 0
	for _, row := range attempts(t, out) {
		if row.MaybeRepeated {
			marked++
		}
	}
	require.Equal(t, 2, marked)
}

func TestWaitsForTheCopyOfEndpoints(t *testing.T) {
	w := newWorld(t, nil)
	w.endpoints.put(org, &webhooksv1.EndpointSet{Version: 4})
	ep := endpointID("a")
	record := w.event("e1", ep)
	var d webhooksv1.Deliveries
	require.NoError(t, proto.Unmarshal(record.Value, &d))
	d.EndpointSetVersion = 5
	record.Value, _ = proto.Marshal(&d)

	w.Process(record)
	for range 5 {
		w.Advance(w.Now.Add(10 * time.Millisecond))
	}
	require.Empty(t, w.receiver.sent())
	require.EqualValues(t, 0, w.Watermark(), "held, not lost and not dead")

	w.endpoint("a", nil)
	w.endpoints.put(org, &webhooksv1.EndpointSet{Version: 5})
	require.Len(t, attempts(t, w.pass(10*time.Millisecond)), 1)
	require.EqualValues(t, 1, w.Watermark())
}

func TestFullPoolStopsPollingAndSpillsNothing(t *testing.T) {
	w := newWorld(t, func(c *dispatch.Config) { c.InFlight = 2 })
	var records []*kgo.Record
	for i, name := range names("e", 5) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, w.endpoint(fmt.Sprint("ep", i), nil)))
	}
	w.Process(records...)
	require.True(t, w.Full())
	require.Empty(t, w.Keys(schemas.Retries))
	w.receiver.releaseAll()
	require.Len(t, attempts(t, w.settle(w.Commit())), 5)
	require.False(t, w.Full())
}

func TestUnreadableRecordIsKept(t *testing.T) {
	w := newWorld(t, nil)
	out := w.settle(w.Process(&kgo.Record{Value: []byte("\xff\xff nonsense")}))
	require.Len(t, out.Topic(schemas.DeliveriesDead), 1)
	require.EqualValues(t, 1, w.Watermark())
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.settle(w.Process(w.event("e1", ep)))
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e2", ep)))
	got := w.gather()
	require.Equal(t, 1.0, got[`webhooks_attempts_total{error_class="",outcome="success"}`])
	require.Equal(t, 1.0, got[`webhooks_attempts_total{error_class="http_5xx",outcome="failure"}`])
	require.Equal(t, 1.0, got[`webhooks_deliveries_ended_total{status="delivered"}`])
	require.Equal(t, 1.0, got[`webhooks_retry_waiting{reason="backoff"}`])
	w.Crash()
	w.settle(w.Redeliver())
	require.Equal(t, 1.0, w.gather()[`webhooks_retry_waiting{reason="backoff"}`], "a new owner counts what it finds")
}

// gather reads counters and gauges by their text form.
func (w *world) gather() map[string]float64 {
	families, err := w.registry.Gather()
	require.NoError(w.t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := ""
			for _, l := range m.Label {
				if name != "" {
					name += ","
				}
				name += fmt.Sprintf("%s=%q", l.GetName(), l.GetValue())
			}
			out[fmt.Sprintf("%s{%s}", f.GetName(), name)] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}
