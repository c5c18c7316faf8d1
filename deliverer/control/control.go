// Package control decides, for one endpoint, whether an attempt may begin now: its concurrency, its rate and its circuit
// breaker. One owner holds an endpoint whole, so that the limits are exact without talking to other machines.
//
// The rules:
//   - Concurrency: no more attempts at once than the endpoint allows. An answer that asks for less (429, 502, 504;
//     Standard Webhooks 1.0.0) halves the limit, at most once a second and not below one; each success gives back a
//     part, so that a whole round of successes adds one, as TCP does.
//   - Rate: a token bucket of the endpoint's requests a second, which holds a tenth of a second's worth. What a former
//     owner sent is not known, so it is empty when an owner begins: no restart lets more through than the rate.
//   - Spare: work that must cost the rest nothing has half of the concurrency, at least one, and half of the rate. When it
//     may ask at all is the caller's to say.
//   - Breaker: ten failures in a row open it. After a second one attempt may probe; each failed probe doubles the wait,
//     up to a minute; a success closes it (CONTRACT §5).
//
// It is a state machine without clock or goroutines: callers give the time. It is not safe for concurrent use. What a new
// owner must know of it is a Snapshot; for how long it has been failing is a Streak.
package control

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	breakAfter  = 10
	firstProbe  = time.Second
	maxProbe    = time.Minute
	halveEvery  = time.Second
	burstWindow = 100 * time.Millisecond
	aheadFor    = 100 * time.Millisecond
	maxRounds   = 16
	keepFor     = time.Second
	maxKept     = 64
	// quickPace is how soon an endpoint answers that holds nobody up.
	quickPace = time.Second
	// spareShare is the part, one in so many, that spare work may take.
	spareShare = 2
	// paceWeight is the part of the newest attempt in the average.
	paceWeight = 8
)

// Limits are what an endpoint allows.
type Limits struct {
	// Concurrency is the number of attempts at once; at least 1.
	Concurrency int
	// Rate is attempts a second; 0 = no limit.
	Rate float64
}

// Verdict answers whether an attempt may begin.
type Verdict uint8

// The verdicts.
const (
	// Go: it may, and holds a slot until Done.
	Go Verdict = iota
	// Full: all slots are taken.
	Full
	// Limited: the rate is used up.
	Limited
	// Open: the breaker is open.
	Open
)

// Outcome is how an attempt ended, as far as control is concerned.
type Outcome uint8

// The outcomes.
const (
	Success Outcome = iota
	Failure
	// Throttled is a failure by which the receiver asks for less.
	Throttled
)

// Endpoint is the control of one endpoint.
type Endpoint struct {
	limits  Limits
	bucket  *rate.Limiter
	running int
	// owned is since when all attempts are known here.
	owned time.Time
	// spare are those of them that AdmitSpare let go; spareBucket is their part of the rate.
	spare       int
	spareBucket *rate.Limiter
	// allowed is the concurrency after throttling, between 1 and limits.Concurrency.
	allowed float64
	halved  time.Time
	// pace is how long attempts take, a moving average; 0 = not known.
	pace time.Duration
	// heard is when an attempt ended last, or the first of those that run began; answered, that one has ended.
	heard    time.Time
	answered bool

	failures int
	// wait is the breaker's time between probes; 0 = closed.
	wait  time.Duration
	until time.Time
	// probing: the attempt that may close the breaker is under way.
	probing bool
}

// New makes the control of an endpoint about which nothing is known, and whose attempts are made here since owned.
func New(l Limits, owned time.Time) *Endpoint {
	e := &Endpoint{owned: owned}
	e.SetLimits(l)
	e.allowed = float64(e.limits.Concurrency)
	return e
}

// SetLimits takes an endpoint's new limits. What runs above them runs on.
func (e *Endpoint) SetLimits(l Limits) {
	l.Concurrency = max(1, l.Concurrency)
	if l.Concurrency > e.limits.Concurrency {
		e.allowed = math.Max(e.allowed, float64(l.Concurrency))
	}
	e.allowed = math.Min(e.allowed, float64(l.Concurrency))
	if l.Rate != e.limits.Rate {
		e.bucket, e.spareBucket = newBucket(l.Rate, e.owned), newBucket(l.Rate/spareShare, e.owned)
	}
	e.limits = l
}

// newBucket is empty when an owner begins; nil where there is no limit.
func newBucket(perSecond float64, owned time.Time) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	burst := max(1, int(perSecond*burstWindow.Seconds()))
	bucket := rate.NewLimiter(rate.Limit(perSecond), burst)
	bucket.AllowN(owned, burst)
	return bucket
}

// Admit says whether an attempt may begin now; Go takes its slot.
func (e *Endpoint) Admit(now time.Time) Verdict {
	if e.wait > 0 && now.Before(e.until) {
		return Open
	}
	return e.Probe(now)
}

// Probe is Admit of an attempt that somebody asked for to see whether the endpoint answers: it need not wait until an open
// breaker lets one probe, and counts as one.
func (e *Endpoint) Probe(now time.Time) Verdict {
	switch {
	case e.wait > 0 && e.probing:
		return Open
	case e.running >= int(e.allowed):
		return Full
	case e.bucket != nil && !e.bucket.AllowN(now, 1):
		return Limited
	}
	if e.running == 0 {
		e.heard = now
	}
	e.running++
	e.probing = e.wait > 0
	return Go
}

// AdmitSpare is Admit for what takes what the rest leaves. After Go, ReturnSpare is called besides Done or Release.
func (e *Endpoint) AdmitSpare(now time.Time) Verdict {
	if e.spare >= e.spareSlots() {
		return Full
	}
	token, ok := takeToken(e.spareBucket, now)
	if !ok {
		return Limited
	}
	verdict := e.Admit(now)
	if verdict == Go {
		e.spare++
	} else {
		token.CancelAt(now)
	}
	return verdict
}

// takeToken takes one of a bucket, if there is a bucket; ok is false when it has none.
func takeToken(bucket *rate.Limiter, now time.Time) (token *rate.Reservation, ok bool) {
	if bucket == nil {
		return &rate.Reservation{}, true
	}
	token = bucket.ReserveN(now, 1)
	if token.DelayFrom(now) > 0 {
		token.CancelAt(now)
		return nil, false
	}
	return token, true
}

// ReturnSpare gives back the part of the spare slots that an attempt held.
func (e *Endpoint) ReturnSpare() { e.spare-- }

func (e *Endpoint) spareSlots() int { return max(1, int(e.allowed)/spareShare) }

// Ahead is how many deliveries are worth having at hand beyond those that run, so that the next is there when one ends:
// what the endpoint works off in a tenth of a second, at least as many as may run and at most sixteen times that.
func (e *Endpoint) Ahead() int { return e.worksOff(aheadFor, maxRounds) }

// Keep is how many deliveries that have just come, and are in memory, are worth keeping there beyond those that run, rather
// than writing them down and reading them again: of a quick endpoint what it works off in a second, at most sixty-four times
// as many as may run, so that a burst, or a moment in which we are slow, costs nothing more.
func (e *Endpoint) Keep(now time.Time) int {
	if !e.Quick(now) {
		return e.Ahead()
	}
	return e.worksOff(keepFor, maxKept)
}

// worksOff is how many attempts end in that time, at least as many as may run and at most so many times that.
func (e *Endpoint) worksOff(in time.Duration, most int) int {
	rounds := 1
	if e.pace > 0 {
		rounds = int(min(max(in/e.pace, 1), time.Duration(most)))
	}
	n := rounds * int(e.allowed)
	if e.bucket != nil {
		n = min(n, max(1, int(e.limits.Rate*in.Seconds())))
	}
	return n
}

// Want is how many deliveries are worth having in hand now, those that run included.
func (e *Endpoint) Want(now time.Time) int {
	switch {
	case e.wait > 0 && (e.probing || now.Before(e.until)):
		return 0
	case e.wait > 0:
		return e.running + 1
	}
	return int(e.allowed) + e.Ahead()
}

// WantSpare is Want for what AdmitSpare lets go.
func (e *Endpoint) WantSpare(now time.Time) int {
	switch {
	case e.wait > 0 && (e.probing || now.Before(e.until)):
		return 0
	case e.wait > 0:
		return e.spare + 1
	}
	return e.spareSlots() + max(1, e.Ahead()/spareShare)
}

// NextTry is when it is worth asking again after Limited or Open; the zero time when only Done can change anything.
func (e *Endpoint) NextTry(now time.Time) time.Time {
	switch {
	case e.wait > 0 && e.probing:
		return time.Time{}
	case e.wait > 0 && now.Before(e.until):
		return e.until
	case e.bucket != nil && e.running < int(e.allowed):
		return nextToken(e.bucket, now)
	}
	return time.Time{}
}

// NextSpareTry is NextTry for AdmitSpare.
func (e *Endpoint) NextSpareTry(now time.Time) time.Time {
	next := e.NextTry(now)
	if e.spareBucket != nil && !next.IsZero() && e.spare < e.spareSlots() {
		if spare := nextToken(e.spareBucket, now); spare.After(next) {
			return spare
		}
	}
	return next
}

func nextToken(bucket *rate.Limiter, now time.Time) time.Time {
	r := bucket.ReserveN(now, 1)
	defer r.CancelAt(now)
	return now.Add(r.DelayFrom(now))
}

// Done ends an attempt that Admit let go and that took so long.
func (e *Endpoint) Done(now time.Time, o Outcome, took time.Duration) {
	e.running--
	e.heard, e.answered = now, true
	if e.pace == 0 {
		e.pace = took
	}
	e.pace += (took - e.pace) / paceWeight
	if o == Success {
		e.failures, e.wait, e.probing = 0, 0, false
		e.allowed = math.Min(e.allowed+1/e.allowed, float64(e.limits.Concurrency))
		return
	}
	if o == Throttled && now.Sub(e.halved) >= halveEvery {
		e.halved = now
		e.allowed = math.Max(1, e.allowed/2)
	}
	e.failures++
	switch {
	case e.wait == 0 && e.failures >= breakAfter:
		e.open(now, firstProbe)
	case e.wait > 0 && e.probing:
		e.open(now, min(2*e.wait, maxProbe))
	}
}

// Release ends an attempt that Admit let go and that was never made.
func (e *Endpoint) Release() {
	e.running--
	e.probing = false
}

func (e *Endpoint) open(now time.Time, wait time.Duration) {
	e.wait, e.until, e.probing = wait, now.Add(wait), false
}

// Broken reports that the breaker is open or being probed.
func (e *Endpoint) Broken() bool { return e.wait > 0 }

// Quick reports that the endpoint has shown that it answers within a second: its attempts end so on average, and if some
// run, one has ended or begun since.
func (e *Endpoint) Quick(now time.Time) bool {
	return e.answered && e.pace <= quickPace && (e.running == 0 || now.Sub(e.heard) <= quickPace)
}

// Running is the number of attempts that hold a slot.
func (e *Endpoint) Running() int { return e.running }

// Idle reports that there is nothing to remember: no attempt runs, the last ones went well, and as many as the rate ever
// lets through at once may begin.
func (e *Endpoint) Idle(now time.Time) bool {
	return e.running == 0 && e.Snapshot().Healthy() && (e.bucket == nil || e.bucket.TokensAt(now) >= float64(e.bucket.Burst()))
}
