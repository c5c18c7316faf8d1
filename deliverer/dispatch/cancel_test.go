package dispatch_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (w *world) cancel(event, ep string) *kgo.Record {
	w.t.Helper()
	return w.asked(func(cmd *webhooksv1.Command) {
		cmd.Action = &webhooksv1.Command_CancelDelivery{CancelDelivery: &webhooksv1.CancelDelivery{DeliveryId: dlv(event, ep), EndpointId: ep}}
	})
}

func TestCancelOfADeliveryThatWaits(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	canceled := w.cancel("e1", ep)
	w.Abort(canceled)
	require.Len(t, w.waiting(), 1)
	w.settle(w.Commit())
	require.Len(t, w.receiver.sent(), 1, "what was taken in hand to be ended is not sent")
	out := w.settle(w.Redeliver())
	d := answered(t, out)
	require.Equal(t, "dead", d.Status)
	require.Equal(t, "canceled", d.Reason)
	require.EqualValues(t, 1, d.AttemptCount)
	require.EqualValues(t, w.Now.UnixMilli(), d.EndedUnixMs)
	require.Equal(t, []uint64{3}, versions(t, out))
	require.Len(t, dead(t, out), 1)
	require.Empty(t, w.Keys(schemas.Retries))
	require.Empty(t, attempts(t, w.pass(time.Hour)))

	w.receiver.answer(200)
	out = w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, []string{"2 manual"}, triggers(t, out))
	require.Equal(t, []uint64{4, 5}, versions(t, out))
}

func TestCancelOfADeliveryThatIsPaused(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	w.settle(w.Process(w.event("e1", ep)))
	require.Equal(t, "canceled", answered(t, w.settle(w.Process(w.cancel("e1", ep)))).Reason)
	w.endpoint("a", nil)
	require.Empty(t, attempts(t, w.settle(w.Commit())))
}

func TestCancelOfADeliveryInTheQueue(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.holdBack("e0")
	w.settle(w.Process(w.event("e0", ep), w.event("e1", ep)))
	w.Abort(w.cancel("e1", ep))
	out := w.settle(w.Redeliver())
	require.Equal(t, "canceled", answered(t, out).Reason)
	require.Zero(t, answered(t, out).AttemptCount)
	w.receiver.release("e0")
	require.Len(t, attempts(t, w.settle(w.Commit())), 1)
	require.Len(t, w.receiver.sent(), 1)
	require.EqualValues(t, 3, w.Watermark())
}

func TestCancelOfADeliveryThatIsBeingAttempted(t *testing.T) {
	t.Run("the attempt fails", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.receiver.answer(500)
		w.receiver.holdBack("e1")
		w.settle(w.Process(w.event("e1", ep)))
		out := w.settle(w.Process(w.cancel("e1", ep)))
		require.Empty(t, outcomes(t, out))
		w.receiver.release("e1")
		out = w.settle(w.Commit())
		require.Equal(t, "canceled", answered(t, out).Reason)
		require.Equal(t, "dead", attempts(t, out)[0].DeliveryStatus)
		require.Empty(t, out.Topic(schemas.Events))
		require.Empty(t, w.Keys(schemas.Retries))
	})
	t.Run("the attempt delivers", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.receiver.holdBack("e1")
		w.settle(w.Process(w.event("e1", ep)))
		w.settle(w.Process(w.cancel("e1", ep)))
		w.receiver.release("e1")
		out := w.settle(w.Commit())
		require.Equal(t, "delivery_ended", refusal(t, out))
		require.Equal(t, "delivered", deliveries(t, out)[0].Status)
	})
	t.Run("the attempt delivers, and of commands that wait for it each holds in its turn", func(t *testing.T) {
		for name, c := range map[string]struct {
			ask      func(w *world, ep string) []*kgo.Record
			triggers []string
			canceled string
		}{
			"canceled, then retried": {func(w *world, ep string) []*kgo.Record {
				return []*kgo.Record{w.cancel("e1", ep), w.retry("e1", ep)}
			}, []string{"1 schedule", "2 manual"}, "delivery_ended"},
			"retried, then canceled": {func(w *world, ep string) []*kgo.Record {
				w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
				return []*kgo.Record{w.retry("e1", ep), w.cancel("e1", ep)}
			}, []string{"1 schedule"}, ""},
		} {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.holdBack("e1")
			w.settle(w.Process(w.event("e1", ep)))
			w.settle(w.Process(c.ask(w, ep)...))
			w.receiver.release("e1")
			out := w.settle(w.Commit())
			w.endpoint("a", nil)
			out = w.settle(out)
			require.Len(t, outcomes(t, out), 2, name)
			require.Equal(t, c.triggers, triggers(t, out), name)
			var refused string
			for _, o := range outcomes(t, out) {
				refused += o.GetRefusal().GetCode()
			}
			require.Equal(t, c.canceled, refused, name)
			require.Equal(t, "delivered", w.archive.rows[dlv("e1", ep)].Status, name)
			require.Empty(t, w.Keys(schemas.Retries), name)
		}
	})
	t.Run("the attempt fails, and of commands that wait for it the last holds", func(t *testing.T) {
		for _, retried := range []bool{false, true} {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.answer(500)
			w.receiver.holdBack("e1")
			w.settle(w.Process(w.event("e1", ep)))
			asked := []*kgo.Record{w.retry("e1", ep), w.cancel("e1", ep)}
			if retried {
				asked[0], asked[1] = asked[1], asked[0]
			}
			w.settle(w.Process(asked...))
			w.receiver.release("e1")
			out := w.settle(w.Commit())
			require.Len(t, outcomes(t, out), 2)
			if retried {
				require.Equal(t, []string{"1 schedule", "2 manual"}, triggers(t, out))
			} else {
				require.Equal(t, "canceled", deliveries(t, out)[0].Reason)
				require.Len(t, attempts(t, out), 1)
			}
		}
	})
}

func TestCancelOfAnAttemptThatMayHaveGoneOut(t *testing.T) {
	for _, pulled := range []bool{false, true} {
		w := newWorld(t, nil)
		ep := w.endpoint("a", nil)
		w.receiver.answer(500)
		if pulled {
			w.settle(w.Process(w.event("e1", ep)))
		}
		w.receiver.holdBack("e1")
		if pulled {
			w.pass(5 * time.Second)
		} else {
			w.settle(w.Process(w.event("e1", ep)))
		}
		sent := len(w.receiver.sent())
		require.Empty(t, outcomes(t, w.Process(w.cancel("e1", ep))))
		w.Crash()
		w.receiver.release("e1")
		out := w.settle(w.Redeliver())
		require.Equal(t, "canceled", answered(t, out).Reason)
		require.EqualValues(t, sent, answered(t, out).AttemptCount)
		require.True(t, attempts(t, out)[0].MaybeRepeated)
		require.Empty(t, w.Keys(schemas.Retries))
	}
}

func TestCancelOfAnAttemptThatMayHaveGoneOutToAPausedEndpoint(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	w.Crash()
	w.receiver.release("e1")
	w.settle(w.Redeliver())
	require.Empty(t, outcomes(t, w.settle(w.Process(w.cancel("e1", ep)))))
	w.endpoint("a", nil)
	out := w.settle(w.Commit())
	require.Equal(t, "canceled", answered(t, out).Reason)
	require.True(t, attempts(t, out)[0].MaybeRepeated)
	require.Empty(t, w.Keys(schemas.Retries))
}

// It cannot be made again, and is one that broke off.
func TestCancelOfAnAttemptThatMayHaveGoneOutToAnEndpointThatIsOff(t *testing.T) {
	for name, off := range map[string]func(w *world, ep string){
		"disabled": func(w *world, _ string) { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Enabled = false }) },
		"deleted":  func(w *world, ep string) { w.removeEndpoint(ep) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.answer(500)
			w.settle(w.Process(w.event("e1", ep)))
			w.receiver.holdBack("e1")
			w.pass(5 * time.Second)
			w.Crash()
			w.receiver.release("e1")
			off(w, ep)
			out := w.settle(w.Process(w.cancel("e1", ep)))
			d := answered(t, out)
			require.Equal(t, "canceled", d.Reason)
			require.EqualValues(t, 2, d.AttemptCount)
			require.Len(t, deliveries(t, out), 1)
			require.EqualValues(t, 2, deliveries(t, out)[0].AttemptCount)
			require.Equal(t, "reset", attempts(t, out)[0].ErrorClass)
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

func TestCancelOfADeliveryThatHasEnded(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.settle(w.Process(w.event("e1", ep)))
	require.Equal(t, "delivery_ended", refusal(t, w.settle(w.Process(w.cancel("e1", ep)))))
}

// A delivery that was delivered before, and waits because a retry of it failed, stays what it was.
func TestCancelOfARetryOfWhatWasDelivered(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.settle(w.Process(w.event("e1", ep)))
	w.receiver.answer(500)
	w.settle(w.Process(w.retry("e1", ep)))
	require.Len(t, w.waiting(), 1)
	out := w.settle(w.Process(w.cancel("e1", ep)))
	require.Equal(t, "delivered", answered(t, out).Status)
	require.Zero(t, answered(t, out).NextAttemptUnixMs)
	require.Empty(t, dead(t, out))
	require.Empty(t, w.Keys(schemas.Retries))
}
