package dispatch_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

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

// What may have gone out before a crash cannot be sent again once its endpoint is disabled or deleted. It is one row all the
// same, and so is what waits only for being sent again.
func TestCrashBeforeAnEndpointIsClosed(t *testing.T) {
	for name, closeIt := range map[string]func(w *world, ep string){
		"endpoint_disabled": func(w *world, _ string) { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Enabled = false }) },
		"endpoint_deleted":  func(w *world, ep string) { w.removeEndpoint(ep) },
	} {
		for _, retried := range []bool{false, true} {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			number := 1
			if retried {
				w.receiver.answer(500)
				w.settle(w.Process(w.event("e1", ep)))
				number++
			}
			w.receiver.holdBack("e1")
			if retried {
				w.pass(5 * time.Second)
			} else {
				w.settle(w.Process(w.event("e1", ep)))
			}
			require.Len(t, w.receiver.sent(), number)
			w.Crash()
			closeIt(w, ep)
			w.receiver.release("e1")
			out := w.settle(w.Redeliver())
			require.Len(t, attempts(t, out), 1)
			row := attempts(t, out)[0]
			require.EqualValues(t, number, row.Number)
			require.True(t, row.MaybeRepeated)
			require.Equal(t, []string{"failure", "reset", "dead"}, []string{row.Outcome, row.ErrorClass, row.DeliveryStatus})
			require.EqualValues(t, number, deliveries(t, out)[0].AttemptCount)
			require.Equal(t, name, deliveries(t, out)[0].Reason)
			require.Empty(t, w.Keys(schemas.Retries))
			require.Len(t, w.receiver.sent(), number, "not sent again")
		}
	}
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
