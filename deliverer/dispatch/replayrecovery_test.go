package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestCrashWhileAReplayIsUnderWay(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	all := names("e", 20)
	w.replayable(all...)
	w.receiver.holdBack("e004")
	w.receiver.holdBack("e005")
	out := w.settle(w.Process(w.start(1, ep)))
	done := len(attempts(t, out))
	require.Positive(t, done)
	w.Crash()
	w.receiver.releaseAll()
	out = w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 20-done, "each event has one row")
	maybe := 0
	for _, row := range attempts(t, out) {
		require.EqualValues(t, 1, row.Number)
		if row.MaybeRepeated {
			maybe++
		}
	}
	require.Positive(t, maybe)
	require.LessOrEqual(t, maybe, 4, "no more than what was in hand")
	require.Equal(t, "done", w.replay(1).Status)
	require.EqualValues(t, 20, w.replay(1).Done)
}

func TestCleanStopOfAReplayRepeatsNothing(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	all := names("e", 20)
	w.replayable(all...)
	w.receiver.holdBack("e000")
	w.receiver.holdBack("e001")
	w.settle(w.Process(w.start(1, ep)))
	time.AfterFunc(10*time.Millisecond, w.receiver.releaseAll)
	out := w.Stop()
	out = append(out, w.settle(w.Redeliver())...)
	require.Len(t, attempts(t, out), 20)
	for _, row := range attempts(t, out) {
		require.False(t, row.MaybeRepeated)
	}
	require.Equal(t, once(all...), w.timesSent())
}

func TestAbortedTakingIsNotSent(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	w.replayable(names("e", 8)...)
	w.Process(w.start(1, ep))
	for range 20 { // until a transaction has taken something, which is aborted
		w.quiet()
		w.Abort()
		require.Empty(t, w.receiver.sent())
	}
	require.Empty(t, w.replay(1).Taken)
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 8)
	require.Equal(t, once(names("e", 8)...), w.timesSent())
}

func TestAbortedStartIsGivenAgain(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable("e1")
	w.settle(w.Commit())
	w.Abort(w.start(1, ep))
	require.Nil(t, w.replay(1))
	out := w.settle(w.Redeliver())
	require.Len(t, outcomes(t, out), 1)
	require.Len(t, w.receiver.sent(), 1)
	require.Equal(t, "done", w.replay(1).Status)
}

func TestEventsThatTheRecordHasNoMore(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	w.replayable(names("e", 6)...)
	w.receiver.holdBack("e000")
	w.receiver.holdBack("e001")
	w.settle(w.Process(w.start(1, ep)))
	w.Crash()
	w.receiver.releaseAll()
	w.ranges.set(func() { w.ranges.events = w.ranges.events[1:] })
	out := w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 6)
	letters := dead(t, out)
	require.Len(t, letters, 1, "it may have been sent: its delivery ends")
	require.Equal(t, "canceled", letters[0].Delivery.Reason)
	require.Equal(t, "done", w.replay(1).Status)
}

// Whatever happens in whichever order, each event of the range has its deliveries' rows: one attempt with number 1, and an end.
func TestReplayHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, nil)
		ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
		all := names("e", 30)
		w.replayable(all...)
		w.ranges.page = rapid.IntRange(1, 40).Draw(t, "page")
		var out streamtest.Outputs
		out = append(out, w.Process(w.start(1, ep))...)
		live, held := 0, map[string]bool{}
		steps := map[string]func(){
			"commit": func() { out = append(out, w.Commit()...) },
			"abort":  func() { w.Abort(); out = append(out, w.Redeliver()...) },
			"crash":  func() { w.Crash(); out = append(out, w.Redeliver()...) },
			"stop": func() {
				for name := range held {
					w.receiver.release(name)
					delete(held, name)
				}
				out = append(out, w.Stop()...)
				out = append(out, w.Redeliver()...)
			},
			"pause":  func() { out = append(out, w.Process(w.change(1, ep, "paused"))...) },
			"resume": func() { out = append(out, w.Process(w.change(1, ep, "running"))...) },
			"abort a pause": func() {
				w.Abort(w.change(1, ep, "paused"))
				out = append(out, w.Redeliver()...)
			},
			"live": func() {
				live++
				out = append(out, w.Process(w.event(fmt.Sprint("live", live), ep))...)
			},
			"hold": func() {
				name := rapid.SampledFrom(all).Draw(t, "held")
				if !held[name] {
					held[name] = true
					w.receiver.holdBack(name)
				}
			},
			"release": func() {
				for name := range held {
					w.receiver.release(name)
					delete(held, name)
				}
			},
			"wait":            func() { out = append(out, w.Advance(w.Now.Add(time.Second))...) },
			"fails":           func() { w.receiver.answer(500) },
			"works":           func() { w.receiver.answer(200) },
			"pause endpoint":  func() { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true }) },
			"resume endpoint": func() { w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 }) },
			"quiet":           func() { w.quiet() },
		}
		kinds := make([]string, 0, len(steps))
		for kind := range steps {
			kinds = append(kinds, kind)
		}
		slices.Sort(kinds)
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			steps[rapid.SampledFrom(kinds).Draw(t, "step")]()
		}
		// In the end all is well.
		w.receiver.answer(200)
		steps["release"]()
		w.endpoint("a", nil)
		out = append(out, w.Process(w.change(1, ep, "running"))...)
		for range 40 {
			out = append(out, w.settle(w.Commit())...)
			out = append(out, w.pass(time.Minute)...)
		}
		r := w.replay(1)
		require.Equal(t, "done", r.Status)
		require.EqualValues(t, 30, r.Done)
		require.Empty(t, r.Taken)
		require.Empty(t, w.Keys(schemas.Retries))
		numbers := map[string]int{}
		for _, row := range attempts(t, out) {
			numbers[row.AttemptId]++
			require.Equal(t, 1, numbers[row.AttemptId], "%s, attempt %d", row.DeliveryId, row.Number)
		}
		delivered := map[string]bool{}
		for _, row := range deliveries(t, out) {
			if row.Status == "delivered" {
				require.False(t, delivered[row.DeliveryId])
				delivered[row.DeliveryId] = true
			}
		}
		require.Len(t, delivered, 30+live)
	})
}
