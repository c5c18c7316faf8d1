package control_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/control"
)

const fiveDays = 120 * time.Hour

// every lists times from 0 on.
func every(step time.Duration, n int) (at []time.Duration) {
	for i := range n {
		at = append(at, time.Duration(i)*step)
	}
	return at
}

// retried is when the attempts of a delivery fail that begins at from, by the default schedule.
func retried(from time.Duration) (at []time.Duration) {
	at = []time.Duration{from}
	for _, delay := range []time.Duration{
		5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
	} {
		from += delay * 12 / 10
		at = append(at, from)
	}
	return at
}

func join(lists ...[]time.Duration) (all []time.Duration) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func TestStreak(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		fails []time.Duration
		want  time.Duration // when it is judged, 0 = never
	}{
		"one failure":                                  {every(0, 1), 0},
		"one five days ago and one now":                {every(fiveDays, 2), 0},
		"one a week, for months":                       {every(7*day, 20), 0},
		"one delivery, retried to its end":             {retried(0), 0},
		"one delivery a week, each retried to its end": {join(retried(0), retried(7*day), retried(14*day), retried(21*day)), 0},
		"one delivery a day, not retried":              {every(day, 20), 5 * day},
		"a failure a second":                           {every(time.Second, 500_000), fiveDays},
		"a delivery, and another when it has died":     {join(retried(0), []time.Duration{100 * time.Hour, 6 * day}), 6 * day},
		"every 60 hours":                               {every(60*time.Hour, 9), fiveDays},
		"every 61 hours":                               {every(61*time.Hour, 9), 0},
		"a silence of four days begins it anew":        {join(every(day, 5), []time.Duration{8 * day, 9 * day, 10 * day, 11 * day, 12 * day, 13 * day}), 13 * day},
	} {
		t.Run(name, func(t *testing.T) {
			var s control.Streak
			var judged []time.Duration
			for _, at := range tc.fails {
				if s.Fail(start.Add(at), 1, fiveDays) {
					judged = append(judged, at)
				}
			}
			if tc.want == 0 {
				require.Empty(t, judged)
			} else {
				require.Equal(t, []time.Duration{tc.want}, judged, "once")
			}
		})
	}
}

func TestAChangedEndpointIsJudgedAnew(t *testing.T) {
	var s control.Streak
	fail := func(at time.Duration, version uint64) bool { return s.Fail(start.Add(at*time.Hour), version, fiveDays) }
	for h := range 120 {
		require.False(t, fail(time.Duration(h), 1))
	}
	require.False(t, fail(120, 2), "the version that fails now has not failed for long")
	require.False(t, fail(121, 1), "a late answer to the old one")
	require.Equal(t, start.Add(120*time.Hour), s.Since)
	for h := 121; h < 240; h++ {
		require.False(t, fail(time.Duration(h), 2))
	}
	require.True(t, fail(240, 2))
	require.False(t, fail(241, 2))
	for h := 242; h < 362; h++ {
		require.False(t, fail(time.Duration(h), 3))
	}
	require.True(t, fail(362, 3))
}

// A judgement always has failures behind it that are never more than half of the time apart, with none but failures
// between; and failures that are no more than two fifths apart always lead to one.
func TestJudgementsHaveEvidence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s control.Streak
		now, since, seen, sure := start, time.Time{}, time.Time{}, time.Time{}
		judged := false
		for range rapid.IntRange(1, 200).Draw(t, "attempts") {
			gap := time.Duration(rapid.IntRange(0, 70).Draw(t, "hours")) * time.Hour
			now = now.Add(gap)
			if rapid.IntRange(0, 9).Draw(t, "outcome") == 0 {
				s, since, sure, judged = control.Streak{}, time.Time{}, time.Time{}, false
				continue
			}
			if since.IsZero() || now.Sub(seen) > fiveDays/2 {
				since = now
			}
			if sure.IsZero() || now.Sub(seen) > fiveDays*2/5 {
				sure = now
			}
			seen = now
			if s.Fail(now, 1, fiveDays) {
				if judged || now.Sub(since) < fiveDays {
					t.Fatalf("judged after %s, before: %v", now.Sub(since), judged)
				}
				judged = true
			}
			if !judged && now.Sub(sure) >= fiveDays {
				t.Fatalf("not judged after %s", now.Sub(sure))
			}
		}
	})
}
