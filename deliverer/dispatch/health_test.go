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

func TestABrokenEndpointIsNotOverdue(t *testing.T) {
	w := newWorld(t, nil)
	w.broken("a")
	w.pass(2 * time.Second)
	require.Positive(t, w.gather()["webhooks_retry_oldest_due_seconds{}"])
	require.Zero(t, w.gather()["webhooks_retry_overdue_seconds{}"])
	w.settle(w.Process(w.event("e", w.endpoint("b", nil)))) // fails once, and waits
	w.pass(2 * time.Second)
	require.Positive(t, w.gather()["webhooks_retry_overdue_seconds{}"])
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

// disables lists the commands to disable an endpoint among outputs.
func disables(t streamtest.TB, out streamtest.Outputs) (found []*webhooksv1.DisableEndpoint) {
	for _, c := range rows(t, out, schemas.Inbound, func() *webhooksv1.Command { return new(webhooksv1.Command) }) {
		found = append(found, c.GetDisableEndpoint())
	}
	return found
}

// failFor has an endpoint fail an event every hour, and returns what came of it.
func (w *world) failFor(d time.Duration, ep string, between func(hour int)) (out streamtest.Outputs) {
	w.t.Helper()
	w.receiver.answer(500)
	for hour := range int(d.Hours()) {
		if between != nil {
			between(hour)
		}
		out = append(out, w.settle(w.Process(w.event(fmt.Sprint("failing at ", w.Now), ep)))...)
		out = append(out, w.pass(time.Hour)...)
	}
	return out
}

func newFailing(t *testing.T) (w *world, ep string) {
	w = newWorld(t, func(c *config) { c.DisableAfter = 120 * time.Hour })
	return w, w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Version = 7 })
}

func TestAnEndpointThatFailsForFiveDaysIsDisabledOnce(t *testing.T) {
	for name, disturb := range map[string]func(w *world){
		"in peace":            nil,
		"with crashes":        func(w *world) { w.Crash(); w.settle(w.Redeliver()) },
		"handed over":         func(w *world) { w.Stop(); w.settle(w.Redeliver()) },
		"with aborts":         func(w *world) { w.Abort(); w.settle(w.Redeliver()) },
		"with aborts of work": func(w *world) { w.abortOf() },
	} {
		t.Run(name, func(t *testing.T) {
			w, ep := newFailing(t)
			step := func(int) {
				if disturb != nil {
					disturb(w)
				}
			}
			require.Empty(t, disables(t, w.failFor(119*time.Hour, ep, step)), "before its time")
			found := disables(t, w.failFor(48*time.Hour, ep, step))
			require.Len(t, found, 1)
			require.True(t, proto.Equal(&webhooksv1.DisableEndpoint{EndpointId: ep, JudgedVersion: 7, Reason: "failing"}, found[0]))
			require.Equal(t, 1.0, w.gather()[`webhooks_endpoints_disabled_total{reason="failing"}`])
		})
	}
}

// abortOf aborts a transaction in which attempts ended, and has it done again.
func (w *world) abortOf() {
	w.t.Helper()
	w.Now = w.Now.Add(time.Second)
	w.Commit()
	w.quiet()
	w.Abort()
	w.settle(w.Commit())
}

func TestTheCommandAndItsMarkAreOneTransaction(t *testing.T) {
	w := newWorld(t, func(c *config) { c.DisableAfter = 120 * time.Hour })
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RetrySchedule = &webhooksv1.RetrySchedule{} })
	w.failFor(119*time.Hour, ep, nil)
	w.Now = w.Now.Add(time.Hour)
	w.receiver.holdBack("last")
	w.settle(w.Process(w.event("last", ep)))
	w.receiver.releaseAll()
	for range 3 {
		w.quiet()
		w.Abort()
		require.False(t, w.health(ep).GetJudged())
	}
	require.Len(t, disables(t, w.settle(w.Commit())), 1)
	require.True(t, w.health(ep).GetJudged())
	w.Crash()
	require.Empty(t, disables(t, w.failFor(24*time.Hour, ep, nil)), "it is on its way")
}

func TestASuccessBeginsTheStreakAnew(t *testing.T) {
	w, ep := newFailing(t)
	w.failFor(119*time.Hour, ep, nil)
	w.receiver.answer(200)
	for len(attempts(t, w.settle(w.Process(w.event("well", ep))))) == 0 {
		w.pass(time.Minute)
	}
	require.Nil(t, w.health(ep))
	require.Empty(t, disables(t, w.failFor(119*time.Hour, ep, nil)))
	require.NotEmpty(t, disables(t, w.failFor(24*time.Hour, ep, nil)))
}

func TestAnEndpointThatIsAskedSeldomIsNotDisabled(t *testing.T) {
	w, ep := newFailing(t)
	w.receiver.answer(500)
	for week := range 10 {
		out := w.settle(w.Process(w.event(fmt.Sprint("week", week), ep)))
		out = append(out, w.pass(7*24*time.Hour)...)
		require.NotEmpty(t, attempts(t, out))
		require.Empty(t, disables(t, out))
	}
}

func TestEnabledAgainItBeginsWithACleanRecord(t *testing.T) {
	off := func(ep *webhooksv1.Endpoint) { ep.Version, ep.Enabled = 8, false }
	on := func(ep *webhooksv1.Endpoint) { ep.Version = 9 }
	for name, again := range map[string]func(w *world){
		"seen": func(w *world) {
			w.endpoint("a", off)
			w.settle(w.Commit())
			w.endpoint("a", on)
		},
		"while nobody owned it": func(w *world) { w.Stop(); w.endpoint("a", off); w.endpoint("a", on) },
	} {
		t.Run(name, func(t *testing.T) {
			w, ep := newFailing(t)
			require.NotEmpty(t, disables(t, w.failFor(130*time.Hour, ep, nil)))
			again(w)
			w.receiver.answer(200)
			require.NotEmpty(t, attempts(t, w.settle(w.Process(w.event("new", ep)))), "at once")
			require.Nil(t, w.health(ep))
			require.Empty(t, disables(t, w.failFor(119*time.Hour, ep, nil)))
			found := disables(t, w.failFor(24*time.Hour, ep, nil))
			require.Len(t, found, 1)
			require.EqualValues(t, 9, found[0].JudgedVersion)
		})
	}
}

func TestWhatIsWrittenOfALongStreakIsBounded(t *testing.T) {
	w, ep := newFailing(t)
	w.failFor(12*time.Hour, ep, nil) // the breaker's wait is at its longest
	bytes, failures := 0, 0
	for range 24 {
		out := w.failFor(time.Hour, ep, nil)
		failures += len(attempts(t, out))
		for _, r := range out.Topic(schemas.EndpointHealth) {
			bytes += len(r.Key) + len(r.Value)
		}
	}
	require.Less(t, bytes/failures, 150)
}

func TestZeroDisablesNobody(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	require.Empty(t, disables(t, w.failFor(200*time.Hour, ep, nil)))
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
