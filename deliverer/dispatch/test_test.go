package dispatch_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// try is a test of an endpoint.
func (w *world) try(name, ep string, change ...func(*webhooksv1.TestEndpoint)) *kgo.Record {
	w.t.Helper()
	test := &webhooksv1.TestEndpoint{
		DeliveryId: id.Derive(id.Delivery, "test", name), EndpointId: ep, EndpointVersion: 1, EventType: "loop.started", Data: []byte(`{"n":1}`),
	}
	for _, fn := range change {
		fn(test)
	}
	return w.asked(func(cmd *webhooksv1.Command) { cmd.Action = &webhooksv1.Command_TestEndpoint{TestEndpoint: test} })
}

func TestATestIsOneAttemptOutsideOfTheLedger(t *testing.T) {
	for name, c := range map[string]struct {
		answer         int
		status, reason string
	}{
		"delivered": {200, "delivered", ""},
		"failed":    {500, "dead", "exhausted"},
		"gone":      {410, "dead", "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.answer(c.answer)
			asked := w.Now
			out := w.settle(w.Process(w.try("t1", ep)))
			d := answered(t, out)
			require.Equal(t, c.status, d.Status)
			require.Equal(t, c.reason, d.Reason)
			require.True(t, d.Test)
			require.Equal(t, id.Derive(id.Delivery, "test", "t1"), d.Id)
			require.Equal(t, "loop.started", d.EventType)
			require.EqualValues(t, 1, d.AttemptCount)
			require.EqualValues(t, asked.UnixMilli(), d.CreatedUnixMs)
			require.NotZero(t, d.EndedUnixMs)

			require.Equal(t, []string{"1 test"}, triggers(t, out))
			require.True(t, attempts(t, out)[0].Test)
			require.False(t, attempts(t, out)[0].MaybeRepeated)
			require.Equal(t, c.status, attempts(t, out)[0].DeliveryStatus)
			rows := deliveries(t, out)
			require.Len(t, rows, 1)
			require.True(t, rows[0].Test)
			require.EqualValues(t, 1, rows[0].Version)
			require.Empty(t, dead(t, out))
			require.Empty(t, out.Topic(schemas.Events))
			require.Equal(t, c.answer == 410, len(out.Topic(schemas.Inbound)) == 1, "who says that it is gone is believed")
			require.Empty(t, w.Keys(schemas.Retries))
			require.EqualValues(t, 1, w.Watermark())
			require.Equal(t, `{"id":"`+d.EventId+`","type":"loop.started","timestamp":"2026-01-01T00:00:00.000Z","organizationId":"org_1",`+
				`"source":"/deliverer","subject":"`+ep+`","correlationId":null,"causationId":null,"schemaVersion":1,"data":{"n":1}}`,
				w.receiver.sent()[0].body)
			require.Zero(t, w.metric("webhooks_deliveries_ended_total"))
			require.Empty(t, attempts(t, w.pass(time.Hour)))
		})
	}
}

func TestATestAndItsEndpoint(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*webhooksv1.Endpoint)
		// refused is the code of the refusal; else status and reason are the delivery's.
		refused, status, reason string
		sent                    int
	}{
		"paused":   {func(ep *webhooksv1.Endpoint) { ep.Paused = true }, "", "delivered", "", 1},
		"disabled": {func(ep *webhooksv1.Endpoint) { ep.Enabled = false }, "", "dead", "endpoint_disabled", 0},
		"its secrets do not open": {func(ep *webhooksv1.Endpoint) {
			ep.Secrets = []*webhooksv1.SigningSecret{{SealedSecret: []byte("?")}}
		}, "secrets_unreadable", "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", c.change)
			out := w.settle(w.Process(w.try("t1", ep)))
			if c.refused != "" {
				require.Equal(t, c.refused, refusal(t, out))
				require.Empty(t, deliveries(t, out))
			} else {
				require.Equal(t, c.status, answered(t, out).Status)
				require.Equal(t, c.reason, answered(t, out).Reason)
				require.Len(t, deliveries(t, out), 1)
			}
			require.Len(t, w.receiver.sent(), c.sent)
			require.Empty(t, w.Keys(schemas.Retries))
			require.Empty(t, dead(t, out))
		})
	}
}

// moments lets time pass by small steps.
func (w *world) moments(d time.Duration) (out streamtest.Outputs) {
	w.t.Helper()
	for end := w.Now.Add(d); w.Now.Before(end); {
		out = append(out, w.pass(50*time.Millisecond)...)
	}
	return out
}

func TestATestWaitsForTheCopyOfEndpoints(t *testing.T) {
	w := newWorld(t, nil)
	ep := endpointID("a")
	out := w.settle(w.Process(w.try("t1", ep)))
	require.Empty(t, outcomes(t, append(out, w.moments(time.Second)...)))
	w.endpoint("a", nil)
	require.Equal(t, "delivered", answered(t, w.moments(time.Second)).Status)

	w.removeEndpoint(ep)
	out = w.settle(w.Process(w.try("t2", ep)))
	out = append(out, w.moments(6*time.Second)...)
	require.Equal(t, "not_found", refusal(t, out))
	require.Empty(t, w.Keys(schemas.Retries))
	require.Len(t, w.receiver.sent(), 1)
}

func TestATestWaitsForASlotAWhile(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep), w.event("e2", ep)))
	w.settle(w.Process(w.try("t1", ep)))
	require.Len(t, w.receiver.sent(), 1)
	out := w.moments(6 * time.Second)
	require.Equal(t, "endpoint_busy", refusal(t, out))
	require.Empty(t, w.waiting()[id.Derive(id.Delivery, "test", "t1")])

	out = w.settle(w.Process(w.try("t2", ep)))
	w.receiver.release("e1")
	out = w.settle(out)
	require.Equal(t, "delivered", answered(t, out).Status)
	require.Equal(t, id.Derive(id.Delivery, "test", "t2"), w.receiver.sent()[1].delivery, "ahead of the queue")
	require.Len(t, attempts(t, out), 3)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestTooManyTests(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	for _, name := range names("t", 16) {
		require.Empty(t, outcomes(t, w.settle(w.Process(w.try(name, ep)))))
	}
	require.Equal(t, "too_many_tests", refusal(t, w.settle(w.Process(w.try("t", ep)))))
	w.receiver.release("e1")
	require.Len(t, outcomes(t, w.settle(w.Commit())), 16)
}

func TestTooManyTestsAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	ep, other := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 }), w.endpoint("b", nil)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	asked := []*kgo.Record{w.try("other", other)}
	for _, name := range names("t", 20) {
		asked = append(asked, w.try(name, ep))
	}
	w.Abort(asked...)
	out := outcomes(t, w.settle(w.Redeliver()))
	require.Len(t, out, 5)
	for _, o := range out[:4] {
		require.Equal(t, "too_many_tests", o.GetRefusal().GetCode())
	}
	require.Equal(t, "delivered", out[4].GetDelivery().GetStatus(), "another endpoint's")
	w.receiver.release("e1")
	require.Len(t, outcomes(t, w.settle(w.Commit())), 16)
	require.Len(t, w.receiver.sent(), 18)
}

func TestATestProbesAnOpenBreaker(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	for _, name := range names("e", 10) {
		w.settle(w.Process(w.event(name, ep)))
	}
	sent := len(w.receiver.sent())
	out := w.settle(w.Process(w.event("e", ep), w.try("t1", ep)))
	require.Equal(t, []string{"1 test"}, triggers(t, out), "what is not asked for waits")
	require.Len(t, w.receiver.sent(), sent+1)

	w.receiver.answer(200)
	out = w.settle(w.Process(w.try("t2", ep)))
	require.Equal(t, "delivered", answered(t, out).Status)
	require.Equal(t, []string{"1 test", "1 schedule"}, triggers(t, out), "the endpoint answers again")
}

func TestATestThatBreaksOff(t *testing.T) {
	started := func(w *world, r *kgo.Record) {
		w.receiver.answer(200)
		w.receiver.holdAll()
		w.settle(w.Process(r))
	}
	for name, c := range map[string]struct {
		begin func(w *world, r *kgo.Record)
		sent  int
		maybe bool
	}{
		"nothing":                     {func(w *world, r *kgo.Record) { w.Process(r) }, 1, false},
		"abort":                       {func(w *world, r *kgo.Record) { w.Abort(r); w.Redeliver() }, 1, false},
		"abort and crash":             {func(w *world, r *kgo.Record) { w.Abort(r); w.Crash(); w.Redeliver() }, 1, false},
		"crash when it may be on way": {func(w *world, r *kgo.Record) { started(w, r); w.Crash(); w.receiver.letAllGo(); w.Redeliver() }, 2, true},
		"crash after more than a minute": {func(w *world, r *kgo.Record) {
			started(w, r)
			w.Crash()
			w.Now = w.Now.Add(time.Hour)
			w.receiver.letAllGo()
			w.Redeliver()
		}, 2, true},
		"abort as it ends": {func(w *world, r *kgo.Record) {
			started(w, r)
			w.receiver.letAllGo()
			w.quiet()
			w.Abort()
		}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.settle(w.Commit())
			c.begin(w, w.try("t1", ep))
			w.settle(w.Commit())
			require.Len(t, w.receiver.sent(), c.sent)
			require.Equal(t, "delivered", w.archive.rows[id.Derive(id.Delivery, "test", "t1")].GetStatus())
			require.Empty(t, w.Keys(schemas.Retries))
			require.EqualValues(t, 1, w.metric("webhooks_delivery_commands_total", "test", "done"))
		})
	}
}

// One that may have gone out has its row, whatever its endpoint has become.
func TestATestThatBreaksOffAndItsEndpoint(t *testing.T) {
	for name, c := range map[string]struct {
		close  func(w *world, ep string)
		reason string
	}{
		"disabled": {func(w *world, _ string) { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Enabled = false }) }, "endpoint_disabled"},
		"deleted":  {func(w *world, ep string) { w.removeEndpoint(ep) }, "endpoint_deleted"},
		"its secrets do not open": {func(w *world, _ string) {
			w.endpoint("a", func(ep *webhooksv1.Endpoint) {
				ep.Secrets = []*webhooksv1.SigningSecret{{SealedSecret: []byte("?")}}
			})
		}, "exhausted"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.holdAll()
			w.settle(w.Process(w.try("t1", ep)))
			require.Len(t, w.receiver.sent(), 1)
			w.Crash()
			w.receiver.letAllGo()
			c.close(w, ep)
			w.Abort()
			out := w.settle(w.Redeliver())
			out = append(out, w.moments(6*time.Second)...) // the copy could be behind
			d := answered(t, out)
			require.Equal(t, []any{"dead", c.reason, uint32(1), true}, []any{d.Status, d.Reason, d.AttemptCount, d.Test})
			require.Len(t, attempts(t, out), 1)
			a := attempts(t, out)[0]
			require.Equal(t, []any{uint32(1), "reset", "dead", true, true}, []any{a.Number, a.ErrorClass, a.DeliveryStatus, a.Test, a.MaybeRepeated})
			require.Len(t, deliveries(t, out), 1)
			require.EqualValues(t, 1, deliveries(t, out)[0].AttemptCount)
			require.Empty(t, dead(t, out))
			require.Len(t, w.receiver.sent(), 1)
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

// What ended it is taken back, and nothing else looks after its endpoint.
func TestATestIsLookedAfterWhenItsEndWasAborted(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	w.settle(w.Process(w.try("t1", ep)))
	w.Now = w.Now.Add(6 * time.Second)
	w.Abort()
	require.Equal(t, "endpoint_busy", refusal(t, w.moments(time.Second)))
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestATestThatCouldNotBeginIsNotMadeLater(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	r := w.try("t1", ep)
	w.Now = w.Now.Add(2 * time.Minute)
	require.Equal(t, "test_expired", refusal(t, w.settle(w.Process(r))))
	require.Empty(t, w.receiver.sent())
}

func TestATestIsNoDeliveryToRetryOrCancel(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdAll()
	w.settle(w.Process(w.try("t1", ep)))
	delivery := id.Derive(id.Delivery, "test", "t1")
	retry := w.asked(func(cmd *webhooksv1.Command) {
		cmd.Action = &webhooksv1.Command_RetryDelivery{RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: delivery, EndpointId: ep}}
	})
	require.Empty(t, outcomes(t, w.settle(w.Process(retry))), "behind the test")
	w.receiver.letAllGo()
	out := w.settle(w.Commit())
	require.Len(t, outcomes(t, out), 2)
	require.Equal(t, "delivered", outcomes(t, out)[0].GetDelivery().GetStatus())
	require.Equal(t, "test_delivery", outcomes(t, out)[1].GetRefusal().GetCode())
	require.Len(t, w.receiver.sent(), 1)
}
