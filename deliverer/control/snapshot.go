package control

import "time"

// Snapshot is what the next owner of an endpoint must know of its control. It changes only with what went wrong, and when
// that is over: successes of an endpoint that is well leave it as it is.
type Snapshot struct {
	// Failures in a row, as far as they matter: up to those that open the breaker.
	Failures int
	// Wait is the open breaker's time between probes, 0 = closed; Until is when the next may be.
	Wait  time.Duration
	Until time.Time
	// Allowed is the concurrency after throttling, 0 = all of Concurrency, which the endpoint's was then.
	Allowed, Concurrency int
}

// Healthy reports that there is nothing to know.
func (s Snapshot) Healthy() bool { return s == Snapshot{} }

// Snapshot is the present state.
func (e *Endpoint) Snapshot() Snapshot {
	s := Snapshot{Failures: min(e.failures, breakAfter), Wait: e.wait}
	if e.wait > 0 {
		s.Until = e.until
	}
	if int(e.allowed) < e.limits.Concurrency {
		s.Allowed, s.Concurrency = int(e.allowed), e.limits.Concurrency
	}
	return s
}

// Restore makes the control of an endpoint as its last owner left it. Clocks of hosts differ: a probe is never further away
// than the breaker's wait.
func Restore(l Limits, s Snapshot, now time.Time) *Endpoint {
	e := New(l, now)
	e.failures, e.wait = s.Failures, min(s.Wait, maxProbe)
	if e.wait > 0 {
		e.until = s.Until
		if latest := now.Add(e.wait); e.until.After(latest) {
			e.until = latest
		}
	}
	if s.Allowed > 0 {
		e.limits.Concurrency = max(1, s.Concurrency)
		e.allowed = float64(min(max(1, s.Allowed), e.limits.Concurrency))
	}
	return e
}

// Forget ends all that is held against an endpoint. What runs goes on.
func (e *Endpoint) Forget() {
	e.failures, e.wait, e.probing = 0, 0, false
	e.allowed, e.halved = float64(e.limits.Concurrency), time.Time{}
}
