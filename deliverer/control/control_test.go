package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/control"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func admitted(e *control.Endpoint, now time.Time, tries int) int {
	n := 0
	for range tries {
		if e.Admit(now) == control.Go {
			n++
		}
	}
	return n
}

func TestConcurrency(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 3}, start)
	require.Equal(t, 3, admitted(e, start, 10))
	require.Equal(t, control.Full, e.Admit(start))
	require.True(t, e.NextTry(start).IsZero(), "only an end makes room")
	e.Done(start, control.Success, time.Second)
	require.Equal(t, control.Go, e.Admit(start))
}

func TestLimitsChange(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 2}, start)
	require.Equal(t, 2, admitted(e, start, 10))
	e.SetLimits(control.Limits{Concurrency: 5})
	require.Equal(t, 3, admitted(e, start, 10))
	e.SetLimits(control.Limits{Concurrency: 1})
	require.Equal(t, control.Full, e.Admit(start))
	for range 5 {
		e.Done(start, control.Success, time.Second)
	}
	require.Equal(t, 1, admitted(e, start, 10))
}

func TestThrottledHalvesAndSuccessGivesBack(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 16}, start)
	require.Equal(t, 16, admitted(e, start, 20))
	for range 16 {
		e.Done(start, control.Throttled, time.Second)
	}
	require.Equal(t, 8, e.Allowed(), "once a second")
	e = control.New(control.Limits{Concurrency: 16}, start)
	for i := range 5 {
		require.Equal(t, control.Go, e.Admit(start))
		e.Done(start.Add(time.Duration(i)*time.Second), control.Throttled, time.Second)
	}
	require.Equal(t, 1, e.Allowed(), "never below one")
	for range 200 {
		require.Equal(t, control.Go, e.Admit(start))
		e.Done(start, control.Success, time.Second)
	}
	require.Equal(t, 16, e.Allowed())
}

func TestBreaker(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1}, start)
	now := start
	for range 9 {
		require.Equal(t, control.Go, e.Admit(now))
		e.Done(now, control.Failure, time.Second)
	}
	require.False(t, e.Broken())
	require.Equal(t, control.Go, e.Admit(now))
	e.Done(now, control.Failure, time.Second)
	require.True(t, e.Broken())
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		wait *= time.Second
		require.Equal(t, control.Open, e.Admit(now))
		require.Equal(t, now.Add(wait), e.NextTry(now))
		require.Equal(t, control.Open, e.Admit(now.Add(wait-1)))
		now = now.Add(wait)
		require.Equal(t, control.Go, e.Admit(now))
		require.Equal(t, control.Open, e.Admit(now), "one probe at a time")
		require.True(t, e.NextTry(now).IsZero())
		e.Done(now, control.Failure, time.Second)
	}
	now = now.Add(time.Minute)
	require.Equal(t, control.Go, e.Admit(now))
	e.Done(now, control.Success, time.Second)
	require.False(t, e.Broken())
	require.Equal(t, control.Go, e.Admit(now))
}

func TestAProbeThatIsAskedForDoesNotWaitForTheBreaker(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 2, Rate: 1}, start.Add(-time.Second))
	now := start
	for range 10 {
		require.Equal(t, control.Go, e.Admit(now))
		e.Done(now, control.Failure, time.Second)
		now = now.Add(time.Second)
	}
	now = now.Add(-time.Millisecond)
	require.Equal(t, control.Open, e.Admit(now))
	require.Equal(t, control.Limited, e.Probe(now), "the rate holds")
	now = now.Add(500 * time.Millisecond)
	require.Equal(t, control.Go, e.Admit(now), "the breaker's own")
	require.Equal(t, control.Open, e.Probe(now), "one at a time")
	e.Done(now, control.Failure, time.Second)
	require.Equal(t, control.Open, e.Admit(now.Add(time.Second)))
	require.Equal(t, control.Go, e.Probe(now.Add(time.Second)))
	e.Done(now.Add(time.Second), control.Failure, time.Second)
	require.Equal(t, now.Add(5*time.Second), e.NextTry(now.Add(time.Second)), "a failed one counts")
	require.Equal(t, control.Go, e.Probe(now.Add(3*time.Second)))
	e.Done(now.Add(3*time.Second), control.Success, time.Second)
	require.False(t, e.Broken())
}

func TestSuccessesBetweenKeepItClosed(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1}, start)
	for i := range 100 {
		require.Equal(t, control.Go, e.Admit(start))
		outcome := control.Failure
		if i%10 == 9 {
			outcome = control.Success
		}
		e.Done(start, outcome, time.Second)
	}
	require.False(t, e.Broken())
}

func TestStragglersDoNotMoveAnOpenBreaker(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 20}, start)
	require.Equal(t, 20, admitted(e, start, 20))
	for range 20 {
		e.Done(start, control.Failure, time.Second)
	}
	require.Equal(t, start.Add(time.Second), e.NextTry(start))
}

func TestAheadIsWhatIsWorkedOffInATenthOfASecond(t *testing.T) {
	for _, tc := range []struct {
		took time.Duration
		want int
	}{
		{15 * time.Second, 4}, {100 * time.Millisecond, 4}, {50 * time.Millisecond, 8}, {10 * time.Millisecond, 40},
		{time.Microsecond, 64}, {0, 4},
	} {
		e := control.New(control.Limits{Concurrency: 4}, start)
		require.Equal(t, 4, e.Ahead(), "nothing is known")
		for range 100 {
			require.Equal(t, control.Go, e.Admit(start))
			e.Done(start, control.Success, tc.took)
		}
		require.Equal(t, tc.want, e.Ahead(), tc.took)
		require.Equal(t, 4+tc.want, e.Want(start))
	}
}

func TestAQuickEndpointKeepsWhatItWorksOffInASecond(t *testing.T) {
	for _, tc := range []struct {
		took time.Duration
		want int
	}{
		{2 * time.Second, 4}, {time.Second, 4}, {400 * time.Millisecond, 8}, {50 * time.Millisecond, 80}, {time.Microsecond, 256},
	} {
		e := control.New(control.Limits{Concurrency: 4}, start)
		require.Equal(t, 4, e.Keep(start), "nothing is known")
		for range 100 {
			require.Equal(t, control.Go, e.Admit(start))
			e.Done(start, control.Success, tc.took)
		}
		require.Equal(t, tc.want, e.Keep(start), tc.took)
		require.Equal(t, control.Go, e.Admit(start))
		require.Equal(t, e.Ahead(), e.Keep(start.Add(1001*time.Millisecond)), "what runs has been silent for long")
	}
}

func TestALimitedEndpointKeepsASecondOfItsRate(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 16, Rate: 30}, start.Add(-time.Second))
	require.Equal(t, control.Go, e.Admit(start))
	e.Done(start, control.Success, time.Millisecond)
	require.Equal(t, 30, e.Keep(start))
}

func TestRate(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1000, Rate: 50}, start)
	sent := 0
	for ms := range 2000 {
		now := start.Add(time.Duration(ms) * time.Millisecond)
		switch e.Admit(now) {
		case control.Go:
			sent++
		case control.Limited:
			require.WithinRange(t, e.NextTry(now), now, now.Add(20*time.Millisecond))
		}
	}
	require.InDelta(t, 100, sent, 6)
	require.Equal(t, 5, e.Ahead())
}

// Whatever happens, no more run than are allowed, and an endpoint that answers well again gets all of its slots back.
func TestControlHoldsItsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 8).Draw(t, "concurrency")
		e := control.New(control.Limits{Concurrency: limit}, start)
		now, running := start, 0
		t.Repeat(map[string]func(*rapid.T){
			"admit": func(t *rapid.T) {
				if e.Admit(now) == control.Go {
					running++
				} else if next := e.NextTry(now); next.IsZero() && running == 0 {
					t.Fatal("refused, and nothing would ever change that")
				}
			},
			"end": func(t *rapid.T) {
				if running > 0 {
					running--
					e.Done(now, rapid.SampledFrom([]control.Outcome{control.Success, control.Failure, control.Throttled}).Draw(t, "outcome"), time.Second)
				}
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 90_000).Draw(t, "ms")) * time.Millisecond)
			},
			"": func(t *rapid.T) {
				if running != e.Running() || running > limit || e.Allowed() < 1 || e.Allowed() > limit {
					t.Fatalf("%d run of %d, control says %d of %d", running, limit, e.Running(), e.Allowed())
				}
			},
		})
		for ; running > 0; running-- {
			e.Done(now, control.Success, time.Second)
		}
		now = now.Add(time.Minute)
		for range 200 {
			if e.Admit(now) != control.Go {
				t.Fatal("an idle endpoint is refused a minute later")
			}
			e.Done(now, control.Success, time.Second)
		}
		if !e.Idle(now) {
			t.Fatal("not back to normal")
		}
	})
}

func spare(e *control.Endpoint, now time.Time, tries int) int {
	n := 0
	for range tries {
		if e.AdmitSpare(now) == control.Go {
			n++
		}
	}
	return n
}

func TestSpareHasHalfOfTheConcurrency(t *testing.T) {
	for _, tc := range []struct{ concurrency, busy, want int }{
		{16, 0, 8}, {16, 12, 4}, {16, 16, 0}, {3, 0, 1}, {2, 0, 1}, {1, 0, 1}, {1, 1, 0},
	} {
		e := control.New(control.Limits{Concurrency: tc.concurrency}, start)
		require.Equal(t, tc.busy, admitted(e, start, tc.busy))
		require.Equal(t, tc.want, spare(e, start, 20), "%+v", tc)
		require.Equal(t, tc.concurrency-tc.busy-tc.want, admitted(e, start, 20), "the other half is not touched: %+v", tc)
		if tc.want > 0 {
			e.Done(start, control.Success, time.Second)
			e.ReturnSpare()
			require.Equal(t, 1, spare(e, start, 20))
		}
	}
}

func TestSpareHasHalfOfTheRate(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 1000, Rate: 20}, start)
	began := 0
	now := start
	for now.Before(start.Add(2 * time.Second)) {
		if e.AdmitSpare(now) == control.Go {
			began++
			e.Done(now, control.Success, time.Millisecond)
			e.ReturnSpare()
			continue
		}
		next := e.NextSpareTry(now)
		require.True(t, next.After(now), "asked again at a time that changes something")
		now = next
	}
	require.InDelta(t, 20, began, 2)
	require.NotZero(t, admitted(e, now, 2), "and leaves the other half")
}

func TestSpareProbesAnOpenBreaker(t *testing.T) {
	e := control.New(control.Limits{Concurrency: 16, Rate: 1000}, start.Add(-time.Second))
	now := start
	for range 10 {
		require.Equal(t, control.Go, e.AdmitSpare(now))
		e.Done(now, control.Failure, time.Second)
		e.ReturnSpare()
		now = now.Add(10 * time.Millisecond)
	}
	require.Equal(t, control.Open, e.AdmitSpare(now))
	require.Zero(t, e.WantSpare(now))
	now = e.NextSpareTry(now)
	require.Equal(t, 1, e.WantSpare(now))
	require.Equal(t, 1, spare(e, now, 5), "one probe")
	e.Done(now, control.Success, time.Second)
	e.ReturnSpare()
	require.Equal(t, 8, spare(e, now.Add(time.Second), 20))
}
