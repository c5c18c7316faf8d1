package dispatch_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// behindOne makes an endpoint in strict order with three deliveries, of which the first has failed and waits for its next
// attempt. From now on it answers with success.
func behindOne(t *testing.T) (*world, string) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.answer(500)
	w.settle(w.Process(w.events("e", 3, ep)...))
	require.Equal(t, names("e", 1), w.bodies())
	w.receiver.answer(200)
	return w, ep
}

func TestARetryOfTheFirstInOrder(t *testing.T) {
	t.Run("waiting, goes at once, and the others follow", func(t *testing.T) {
		w, ep := behindOne(t)
		out := w.settle(w.Process(w.retry("e000", ep)))
		require.EqualValues(t, w.Now.UnixMilli(), answered(t, out).NextAttemptUnixMs)
		require.Equal(t, []string{"2 manual", "1 schedule", "1 schedule"}, triggers(t, out))
		require.Equal(t, []string{"e000", "e000", "e001", "e002"}, w.bodies())
		require.Empty(t, w.Keys(schemas.Retries))
	})
	t.Run("fails again, and the others go on waiting", func(t *testing.T) {
		w, ep := behindOne(t)
		w.receiver.answer(500)
		w.settle(w.Process(w.retry("e000", ep)))
		require.Equal(t, []string{"e000", "e000"}, w.bodies())
		require.Equal(t, map[string]int{"BACKOFF": 1, "ORDERED": 2}, w.reasons())
	})
	t.Run("being attempted, goes again when that fails", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.answer(500)
		w.receiver.holdBack("e000")
		w.settle(w.Process(w.events("e", 3, ep)...))
		require.Empty(t, outcomes(t, w.settle(w.Process(w.retry("e000", ep)))))
		w.receiver.release("e000")
		out := w.settle(w.Commit())
		require.Equal(t, []string{"1 schedule", "2 manual"}, triggers(t, out))
		require.Equal(t, []string{"e000", "e000"}, w.bodies())
		w.receiver.answer(200)
		w.pass(5 * time.Second)
		require.Equal(t, []string{"e000", "e000", "e000", "e001", "e002"}, w.bodies())
	})
}

func TestARetryOfAnAttemptThatDeliversHoldsUpNothingInOrder(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.holdBack("e000")
	w.settle(w.Process(w.events("e", 3, ep)...))
	w.archive.holdBack()
	w.settle(w.Process(w.retry("e000", ep)))
	w.receiver.release("e000")
	w.settle(w.Commit())
	require.Equal(t, []string{"e000", "e001", "e002"}, w.bodies())
	w.archive.release()
	require.Equal(t, []string{"2 manual"}, triggers(t, w.settle(w.Commit())))
	require.Empty(t, w.Keys(schemas.Retries))
}

// A retry of what is behind another is the attempt that is made when its turn comes.
func TestARetryDoesNotOvertake(t *testing.T) {
	for name, begin := range map[string]func(w *world, retries ...*kgo.Record) streamtest.Outputs{
		"nothing": func(w *world, r ...*kgo.Record) streamtest.Outputs { return w.Process(r...) },
		"abort":   func(w *world, r ...*kgo.Record) streamtest.Outputs { w.Abort(r...); return w.Redeliver() },
		"crash": func(w *world, r ...*kgo.Record) streamtest.Outputs {
			out := w.Process(r...)
			w.Crash()
			return append(out, w.Redeliver()...)
		},
	} {
		t.Run("in the schedule, "+name, func(t *testing.T) {
			w, ep := behindOne(t)
			out := w.settle(begin(w, w.retry("e001", ep), w.retry("e001", ep)))
			require.Len(t, outcomes(t, out), 2)
			for _, o := range outcomes(t, out) {
				require.Equal(t, "waiting", o.GetDelivery().GetStatus())
				require.Zero(t, o.GetDelivery().GetNextAttemptUnixMs(), "nobody knows")
			}
			require.Len(t, deliveries(t, out), 1, "the second says what the first did")
			require.Len(t, out.Topic(schemas.Retries), 1, "it is not taken in hand")
			require.Equal(t, names("e", 1), w.bodies())
			require.Equal(t, map[string]int{"BACKOFF": 1, "ORDERED": 2}, w.reasons())
			out = w.pass(5 * time.Second)
			require.Equal(t, []string{"2 schedule", "1 manual", "1 schedule"}, triggers(t, out))
			require.Equal(t, slices.Concat(names("e", 1), names("e", 3)), w.bodies())
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
	t.Run("in memory", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.holdBack("e000")
		w.settle(w.Process(w.events("e", 3, ep)...))
		out := w.settle(w.Process(w.retry("e001", ep)))
		require.Zero(t, answered(t, out).NextAttemptUnixMs)
		require.Equal(t, names("e", 1), w.bodies())
		w.receiver.release("e000")
		w.settle(w.Commit())
		require.Equal(t, names("e", 3), w.bodies())
	})
	t.Run("drawn from the schedule", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.answer(500)
		w.settle(w.Process(w.events("e", 5, ep)...))
		w.receiver.answer(200)
		w.receiver.holdBack("e002")
		w.pass(5 * time.Second)
		require.Equal(t, map[string]int{"SATURATED": 1, "ORDERED": 2}, w.reasons())
		require.True(t, w.waiting()[dlv("e003", ep)].Started, "it is in hand")
		require.Zero(t, answered(t, w.settle(w.Process(w.retry("e003", ep)))).NextAttemptUnixMs)
		require.Equal(t, slices.Concat(names("e", 1), names("e", 3)), w.bodies())
		w.receiver.release("e002")
		require.Equal(t, []string{"1 schedule", "1 manual", "1 schedule"}, triggers(t, w.settle(w.Commit())))
		require.Equal(t, slices.Concat(names("e", 1), names("e", 5)), w.bodies())
		require.Empty(t, w.Keys(schemas.Retries))
	})
}

// What goes back to the schedule after its end neither waits for those that are there nor is waited for.
func TestARetryOfWhatHasEndedIsInNoOrder(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.exhaust("old", ep)
	w.receiver.answer(500)
	w.settle(w.Process(w.events("e", 3, ep)...))
	w.pass(2 * time.Second)
	out := w.settle(w.Process(w.retry("old", ep)))
	require.Equal(t, []string{"4 manual"}, triggers(t, out), "it does not wait for them")
	require.Nil(t, w.waiting()[dlv("old", ep)].OrderGroup)
	w.receiver.answer(200)
	w.pass(3 * time.Second)
	require.Equal(t, names("e", 3), w.bodies()[5:], "they do not wait for it")
	w.pass(2 * time.Second)
	require.Equal(t, "old", w.bodies()[8])
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestACancelledFirstLetsTheNextGo(t *testing.T) {
	for name, begin := range map[string]func(w *world, cancel *kgo.Record) streamtest.Outputs{
		"nothing": func(w *world, r *kgo.Record) streamtest.Outputs { return w.Process(r) },
		"abort": func(w *world, r *kgo.Record) streamtest.Outputs {
			w.Abort(r)
			w.settle(w.Commit())
			return w.Redeliver()
		},
		"crash": func(w *world, r *kgo.Record) streamtest.Outputs {
			out := w.Process(r)
			w.Crash()
			return append(out, w.Redeliver()...)
		},
	} {
		t.Run("in the schedule, "+name, func(t *testing.T) {
			w, ep := behindOne(t)
			out := w.settle(begin(w, w.cancel("e000", ep)))
			require.Equal(t, "canceled", answered(t, out).Reason)
			require.Equal(t, names("e", 3), w.bodies())
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
	t.Run("being attempted", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.answer(500)
		w.receiver.holdBack("e000")
		w.settle(w.Process(w.events("e", 2, ep)...))
		w.settle(w.Process(w.cancel("e000", ep)))
		w.receiver.release("e000")
		require.Equal(t, "canceled", answered(t, w.settle(w.Commit())).Reason)
		require.Equal(t, names("e", 2), w.bodies())
	})
	for name, begin := range map[string]func(w *world, cancel *kgo.Record){
		"nothing": func(w *world, r *kgo.Record) { w.settle(w.Process(r)) },
		"abort":   func(w *world, r *kgo.Record) { w.Abort(r); w.settle(w.Redeliver()) },
	} {
		t.Run("in memory, "+name, func(t *testing.T) {
			w := newWorld(t, nil)
			ordering := "/key"
			ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Ordering, ep.Concurrency = &ordering, 1 })
			const x, y1, y2 = `{"key":"x"}`, `{"key":"y"}`, `{"key":"y","n":2}`
			w.receiver.holdBody(x)
			w.settle(w.Process(w.keyed("x", x, ep), w.keyed("y1", y1, ep), w.keyed("y2", y2, ep)))
			begin(w, w.cancel("y1", ep))
			w.receiver.releaseAll()
			w.settle(w.Commit())
			var bodies []string
			for _, s := range w.receiver.sent() {
				bodies = append(bodies, s.body)
			}
			require.Equal(t, []string{x, y2}, bodies)
			require.Equal(t, "canceled", w.archive.rows[dlv("y1", ep)].Reason)
			require.Empty(t, w.Keys(schemas.Retries))
			require.EqualValues(t, 4, w.Watermark())
		})
	}
}

func TestACancelledOneBetweenIsPassedOver(t *testing.T) {
	t.Run("in the schedule", func(t *testing.T) {
		w, ep := behindOne(t)
		require.Equal(t, "canceled", answered(t, w.settle(w.Process(w.cancel("e001", ep)))).Reason)
		require.Equal(t, names("e", 1), w.bodies())
		require.Equal(t, map[string]int{"BACKOFF": 1, "ORDERED": 1}, w.reasons())
		w.pass(5 * time.Second)
		require.Equal(t, []string{"e000", "e000", "e002"}, w.bodies())
		require.Empty(t, w.Keys(schemas.Retries))
	})
	t.Run("in memory", func(t *testing.T) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.holdBack("e000")
		w.settle(w.Process(w.events("e", 3, ep)...))
		require.Equal(t, "canceled", answered(t, w.settle(w.Process(w.cancel("e001", ep)))).Reason)
		require.Equal(t, names("e", 1), w.bodies())
		w.receiver.release("e000")
		w.settle(w.Commit())
		require.Equal(t, []string{"e000", "e002"}, w.bodies())
	})
}

func TestTestsAreInNoOrder(t *testing.T) {
	w, ep := behindOne(t)
	require.Equal(t, []string{"1 test"}, triggers(t, w.settle(w.Process(w.try("t1", ep)))))
	require.Equal(t, map[string]int{"BACKOFF": 1, "ORDERED": 2}, w.reasons())
	w.receiver.answer(500)
	w.settle(w.Process(w.try("t2", ep)))
	w.receiver.answer(200)
	w.pass(5 * time.Second)
	require.Equal(t, names("e", 3), w.bodies()[3:])
}
