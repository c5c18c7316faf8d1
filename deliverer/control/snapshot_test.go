package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/control"
)

// failing has so many attempts fail, one after the other, as soon as they may begin, and returns when the last ended.
func failing(t require.TestingT, e *control.Endpoint, now time.Time, attempts int, o control.Outcome) time.Time {
	for range attempts {
		if next := e.NextTry(now); next.After(now) {
			now = next
		}
		require.Equal(t, control.Go, e.Admit(now))
		e.Done(now, o, time.Millisecond)
	}
	return now
}

func TestSnapshot(t *testing.T) {
	for name, tc := range map[string]struct {
		failures, successes int
		outcome             control.Outcome
		want                control.Snapshot
	}{
		"well":                              {0, 100, control.Failure, control.Snapshot{}},
		"failures":                          {9, 0, control.Failure, control.Snapshot{Failures: 9}},
		"failures that are over":            {9, 1, control.Failure, control.Snapshot{}},
		"an open breaker":                   {10, 0, control.Failure, control.Snapshot{Failures: 10, Wait: time.Second, Until: start.Add(time.Second)}},
		"one that opened again":             {12, 0, control.Failure, control.Snapshot{Failures: 10, Wait: 4 * time.Second, Until: start.Add(7 * time.Second)}},
		"one that closed":                   {12, 1, control.Failure, control.Snapshot{}},
		"throttled":                         {1, 0, control.Throttled, control.Snapshot{Failures: 1, Allowed: 8, Concurrency: 16}},
		"throttled, and answering again":    {1, 1, control.Throttled, control.Snapshot{Allowed: 8, Concurrency: 16}},
		"throttled, and all is given back":  {1, 200, control.Throttled, control.Snapshot{}},
		"as many failures as ever come in":  {500, 0, control.Failure, control.Snapshot{Failures: 10, Wait: time.Minute, Until: start.Add(486*time.Minute + 3*time.Second)}},
		"a throttled one that only answers": {0, 3, control.Throttled, control.Snapshot{}},
	} {
		t.Run(name, func(t *testing.T) {
			e := control.New(control.Limits{Concurrency: 16}, start)
			now := failing(t, e, start, tc.failures, tc.outcome)
			failing(t, e, now, tc.successes, control.Success)
			require.Equal(t, tc.want, e.Snapshot())
			require.Equal(t, tc.want == control.Snapshot{}, e.Snapshot().Healthy())
		})
	}
}

func TestARestoredBreakerWaitsAsItWouldHave(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1}, start)
	now := failing(t, e, start, 13, control.Failure)
	require.Equal(t, now.Add(8*time.Second), e.NextTry(now))
	for name, tc := range map[string]struct{ clock, probe time.Time }{
		"at once":                       {now, now.Add(8 * time.Second)},
		"in between":                    {now.Add(5 * time.Second), now.Add(8 * time.Second)},
		"after the probe was due":       {now.Add(time.Hour), now.Add(time.Hour)},
		"on a host whose clock is fast": {now.Add(20 * time.Second), now.Add(20 * time.Second)},
		"on a host whose clock is slow": {now.Add(-time.Hour), now.Add(-time.Hour + 8*time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			r := control.Restore(control.Limits{Concurrency: 1}, e.Snapshot(), tc.clock)
			require.True(t, r.Broken())
			if tc.probe.After(tc.clock) {
				require.Equal(t, control.Open, r.Admit(tc.probe.Add(-1)))
				require.Equal(t, tc.probe, r.NextTry(tc.clock))
			}
			require.Equal(t, control.Go, r.Admit(tc.probe))
			require.Equal(t, control.Open, r.Admit(tc.probe), "one probe")
			r.Done(tc.probe, control.Failure, time.Millisecond)
			require.Equal(t, tc.probe.Add(16*time.Second), r.NextTry(tc.probe), "the wait goes on doubling")
		})
	}
}

func TestRestoredFailuresCount(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1}, start)
	failing(t, e, start, 9, control.Failure)
	r := control.Restore(control.Limits{Concurrency: 1}, e.Snapshot(), start)
	require.False(t, r.Broken())
	failing(t, r, start, 1, control.Failure)
	require.True(t, r.Broken())
}

func TestRestoredThrottlingHoldsAgainstTheEndpointsOwnLimit(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 32}, start)
	failing(t, e, start, 1, control.Throttled)
	for name, tc := range map[string]struct{ own, want int }{
		"the same":                           {32, 16},
		"less than what is left":             {4, 4},
		"more, which the merchant asked for": {40, 40},
	} {
		t.Run(name, func(t *testing.T) {
			r := control.Restore(control.Limits{Concurrency: 8}, e.Snapshot(), start)
			r.SetLimits(control.Limits{Concurrency: tc.own})
			require.Equal(t, tc.want, admitted(r, start, 100))
		})
	}
}

// However many owners follow each other, an endpoint gets no more in any second than its rate and a tenth of it.
func TestOwnersTogetherKeepTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSecond := rapid.SampledFrom([]float64{0.5, 1, 10, 50, 200}).Draw(t, "rate")
		limits := control.Limits{Concurrency: 10_000, Rate: perSecond}
		now := start
		var sent []time.Time
		for range rapid.IntRange(1, 8).Draw(t, "owners") {
			e := control.New(limits, now)
			for range rapid.IntRange(1, 3000).Draw(t, "ms") {
				for e.Admit(now) == control.Go {
					sent = append(sent, now)
				}
				now = now.Add(time.Millisecond)
			}
		}
		from := 0
		for i, at := range sent {
			for at.Sub(sent[from]) >= time.Second {
				from++
			}
			if n, most := i-from+1, int(perSecond*1.1)+1; n > most {
				t.Fatalf("%d in a second, %d may be", n, most)
			}
		}
	})
}

func TestForgottenWhileItRuns(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 16}, start)
	now := failing(t, e, start, 10, control.Throttled)
	now = e.NextTry(now)
	require.Equal(t, control.Go, e.Admit(now))
	e.Forget()
	require.True(t, e.Snapshot().Healthy())
	require.Equal(t, 15, admitted(e, now, 20), "what runs keeps its slot")
	e.Done(now, control.Failure, time.Millisecond)
	require.False(t, e.Broken(), "a probe of what is forgotten")
}

func TestAnEndpointWithAUsedUpRateIsNotIdle(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1, Rate: 0.01}, start)
	now := start.Add(100 * time.Second)
	require.True(t, e.Idle(now))
	require.Equal(t, control.Go, e.Admit(now))
	e.Done(now, control.Success, time.Millisecond)
	require.False(t, e.Idle(now.Add(99*time.Second)), "were it made anew, it could be sent to at once")
	require.True(t, e.Idle(now.Add(100*time.Second)))
}

// A restored endpoint decides as the one that goes on.
func TestRestoredDecidesAsTheOneThatGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := control.Limits{Concurrency: rapid.IntRange(1, 20).Draw(t, "concurrency")}
		e := control.New(limits, start)
		now := start
		for range rapid.IntRange(0, 60).Draw(t, "attempts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			if e.Admit(now) == control.Go {
				e.Done(now, rapid.SampledFrom([]control.Outcome{control.Success, control.Failure, control.Failure, control.Throttled}).Draw(t, "outcome"), time.Millisecond)
			}
		}
		r := control.Restore(limits, e.Snapshot(), now)
		if e.Broken() != r.Broken() || e.Allowed() != r.Allowed() || e.Snapshot() != r.Snapshot() || !e.NextTry(now).Equal(r.NextTry(now)) {
			t.Fatalf("%+v restored as %+v", e.Snapshot(), r.Snapshot())
		}
	})
}
