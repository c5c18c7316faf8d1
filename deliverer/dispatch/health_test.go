package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// health is what is written of an endpoint's health; nil when nothing is.
func (w *world) health(ep string) *webhooksv1.EndpointHealth {
	w.t.Helper()
	value := w.Get(schemas.EndpointHealth, []byte(ep))
	if value == nil {
		return nil
	}
	h := new(webhooksv1.EndpointHealth)
	require.NoError(w.t, proto.Unmarshal(value, h))
	return h
}

// events are records of so many events for an endpoint.
func (w *world) events(prefix string, n int, ep string) (records []*kgo.Record) {
	for _, name := range names(prefix, n) {
		records = append(records, w.event(name, ep))
	}
	return records
}

// broken makes an endpoint whose breaker has just opened.
func (w *world) broken(name string) string {
	w.t.Helper()
	ep := w.endpoint(name, nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.events(name, 10, ep)...))
	require.EqualValues(w.t, 1000, w.health(ep).GetBreakerWaitMs())
	return ep
}

func TestNothingIsWrittenOfAnEndpointThatIsWell(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	out := w.settle(w.Process(w.events("e", 50, ep)...))
	require.Len(t, attempts(t, out), 50)
	require.Empty(t, out.Topic(schemas.EndpointHealth))
}

func TestAnOpenBreakerSurvives(t *testing.T) {
	for name, restart := range map[string]func(*world) streamtest.Outputs{
		"a crash":      func(w *world) streamtest.Outputs { w.Crash(); return w.settle(w.Redeliver()) },
		"a hand-over":  func(w *world) streamtest.Outputs { return append(w.Stop(), w.settle(w.Redeliver())...) },
		"an abort":     func(w *world) streamtest.Outputs { w.Abort(); return w.settle(w.Redeliver()) },
		"no new owner": func(w *world) streamtest.Outputs { return w.settle(w.Commit()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.broken("a")
			out := restart(w)
			out = append(out, w.settle(w.Process(w.event("new", ep)))...)
			out = append(out, w.pass(999*time.Millisecond)...)
			require.Empty(t, attempts(t, out), "not before the probe is due")
			require.Len(t, attempts(t, w.pass(time.Millisecond)), 1, "one probe")
			require.EqualValues(t, 2000, w.health(ep).GetBreakerWaitMs())

			w.receiver.answer(200)
			restart(w)
			require.NotEmpty(t, attempts(t, w.pass(10*time.Second)))
			require.Nil(t, w.health(ep), "it is well")
		})
	}
}

func TestBreakersAreCountedAfterARestart(t *testing.T) {
	w := newWorld(t, nil)
	w.broken("a")
	w.broken("b")
	w.Crash()
	w.settle(w.Redeliver())
	require.Equal(t, 2.0, w.gather()["webhooks_breakers_open{}"], "before anything is sent")
	w.receiver.answer(200)
	w.pass(10 * time.Second)
	w.pass(2 * time.Second)
	require.Equal(t, 0.0, w.gather()["webhooks_breakers_open{}"])
}

func TestAFailureThatIsOverIsForgotten(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	require.EqualValues(t, 1, w.health(ep).GetFailures())
	w.receiver.answer(200)
	out := w.settle(w.Process(w.event("e2", ep)))
	require.Nil(t, w.health(ep))
	require.Len(t, out.Topic(schemas.EndpointHealth), 1)
	require.Nil(t, out.Topic(schemas.EndpointHealth)[0].Value, "a tombstone")
}

func TestThrottlingSurvives(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(429)
	w.settle(w.Process(w.event("e1", ep)))
	require.EqualValues(t, 8, w.health(ep).GetAllowed())
	w.receiver.answer(200)
	w.Crash()
	w.settle(w.Redeliver())
	for _, name := range names("held", 20) {
		w.receiver.holdBack(name)
	}
	w.settle(w.Process(w.events("held", 20, ep)...))
	require.Equal(t, 8, w.receiver.holding())
}

func TestAStormOfFailuresIsOneSmallRecord(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 200 })
	w.receiver.answer(500)
	for _, name := range names("e", 200) {
		w.receiver.holdBack(name)
	}
	w.settle(w.Process(w.events("e", 200, ep)...))
	w.receiver.releaseAll()
	w.quiet()
	out := w.Commit()
	require.Len(t, attempts(t, out), 200)
	written := out.Topic(schemas.EndpointHealth)
	require.Len(t, written, 1, "one a transaction")
	require.Less(t, len(written[0].Value), 100)
	require.Empty(t, w.settle(nil).Topic(schemas.EndpointHealth))
}

func TestAnAbortedChangeOfHealthIsWrittenAgain(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.settle(w.Commit())
	w.receiver.answer(500)
	w.Abort(w.event("e1", ep))
	w.quiet()
	w.Abort()
	require.Nil(t, w.health(ep))
	w.settle(w.Redeliver())
	require.EqualValues(t, 1, w.health(ep).GetFailures())

	w.receiver.answer(200)
	w.receiver.holdBack("e2")
	w.Process(w.event("e2", ep))
	w.receiver.releaseAll()
	w.quiet()
	w.Abort()
	require.NotNil(t, w.health(ep))
	w.settle(w.Redeliver())
	require.Nil(t, w.health(ep))
}

func TestHealthEndsWithTheEndpointsUse(t *testing.T) {
	off := func(ep *webhooksv1.Endpoint) { ep.Enabled = false }
	for name, end := range map[string]func(w *world, ep string){
		"disabled":                          func(w *world, _ string) { w.endpoint("a", off) },
		"deleted":                           func(w *world, ep string) { w.removeEndpoint(ep) },
		"disabled while nobody owned it":    func(w *world, _ string) { w.Stop(); w.endpoint("a", off) },
		"deleted while nobody owned it":     func(w *world, ep string) { w.Stop(); w.removeEndpoint(ep) },
		"disabled, and attempts come later": func(w *world, ep string) { w.late(ep, func() { w.endpoint("a", off) }) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.broken("a")
			end(w, ep)
			w.settle(w.Commit())
			require.Nil(t, w.health(ep))
			w.receiver.answer(200)
			w.endpoint("a", nil)
			require.Len(t, attempts(t, w.settle(w.Process(w.event("new", ep)))), 1, "it begins anew, at once")
		})
	}
}

// late does something while an attempt is under way that fails after it.
func (w *world) late(ep string, do func()) {
	w.t.Helper()
	w.receiver.holdBack("late")
	w.Process(w.event("late", ep))
	w.pass(time.Second)
	do()
	w.settle(w.Commit())
	w.receiver.releaseAll()
	w.settle(w.Commit())
}

// Whatever fails, whenever the owner changes: what is written is what a breaker that was never restarted would say, as
// far as it decides anything, and it is gone once the endpoint has answered often enough.
func TestWrittenHealthFollowsTheEndpoint(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, nil)
		ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
		sent := 0
		failures := 0 // in a row, as the receiver sees it
		count := func(out streamtest.Outputs) {
			for _, a := range attempts(rt, out) {
				if a.Outcome == "success" {
					failures = 0
				} else {
					failures++
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"event": func(*rapid.T) {
				sent++
				count(w.settle(w.Process(w.event(fmt.Sprint("e", sent), ep))))
			},
			"answer": func(rt *rapid.T) { w.receiver.answer(rapid.SampledFrom([]int{200, 500, 429}).Draw(rt, "status")) },
			"time": func(rt *rapid.T) {
				count(w.pass(time.Duration(rapid.IntRange(0, 2000).Draw(rt, "ms")) * time.Millisecond))
			},
			"abort": func(*rapid.T) { w.Abort(); count(w.settle(w.Redeliver())) },
			"crash": func(*rapid.T) { w.Crash(); count(w.settle(w.Redeliver())) },
			"stop":  func(*rapid.T) { count(w.Stop()); count(w.settle(w.Redeliver())) },
			"": func(rt *rapid.T) {
				h := w.health(ep)
				if int(h.GetFailures()) != min(failures, 10) || (h.GetBreakerWaitMs() > 0) != (failures >= 10) {
					rt.Fatalf("%d failures in a row, written: %v", failures, h)
				}
			},
		})
		w.receiver.answer(200)
		for i := range 30 {
			count(w.pass(5 * time.Second))
			count(w.settle(w.Process(w.events(fmt.Sprint("last", i, "-"), 3, ep)...)))
		}
		require.Nil(rt, w.health(ep))
	})
}
