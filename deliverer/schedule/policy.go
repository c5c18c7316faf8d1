package schedule

import (
	"fmt"
	"time"
)

// Policy is a retry schedule: after how long a failed attempt is followed by the next.
type Policy struct {
	// Delays, each from the end of one attempt to the next; one more attempt than delays is made.
	Delays []time.Duration
	// Jitter lengthens a delay by a random part, between 0 and this fraction of it.
	Jitter float64
}

// Default is the schedule of Standard Webhooks 1.0.0: ten attempts over about 75 hours.
func Default() Policy {
	return Policy{
		Delays: []time.Duration{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
			10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		},
		Jitter: 0.2,
	}
}

// Check refuses what cannot be a schedule.
func (p Policy) Check() error {
	for i, d := range p.Delays {
		if d < 0 {
			return fmt.Errorf("retry delay %d is negative: %s", i+1, d)
		}
	}
	if p.Jitter < 0 || p.Jitter > 1 {
		return fmt.Errorf("retry jitter %v is not between 0 and 1", p.Jitter)
	}
	return nil
}

// Next is when to try again after an attempt that failed at end, being the step-th of its pass through the schedule,
// from 0; ok is false when it was the last. A notBefore that the receiver named wins when it is later. random is in
// [0,1). The result is in whole milliseconds, rounded up, as it is stored.
func (p Policy) Next(step uint32, end, notBefore time.Time, random float64) (due time.Time, ok bool) {
	if int64(step) >= int64(len(p.Delays)) {
		return time.Time{}, false
	}
	delay := p.Delays[step]
	due = end.Add(delay + time.Duration(float64(delay)*p.Jitter*random))
	if notBefore.After(due) {
		due = notBefore
	}
	if whole := due.Truncate(time.Millisecond); whole.Before(due) {
		due = whole.Add(time.Millisecond)
	}
	return due, true
}
