package dispatch_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

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
	require.Equal(t, id.Derive(id.Event, "delivery.exhausted", org, dlv("e1", ep), "3"), header(events[0], schemas.HeaderID))
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

func TestUnreadableRecordIsKeptOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.receiver.holdBack("e1")
	out := w.settle(w.Process(w.event("e1", w.endpoint("a", nil)), &kgo.Record{Value: []byte("\xff\xff nonsense")}))
	require.Len(t, out.Topic(schemas.DeliveriesDead), 1)
	w.Crash()
	w.receiver.releaseAll()
	require.Empty(t, w.settle(w.Redeliver()).Topic(schemas.DeliveriesDead))
	require.EqualValues(t, 2, w.Watermark())
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
