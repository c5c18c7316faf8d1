package control

import "time"

// Streak is for how long an endpoint has done nothing but fail. The zero value is none.
//
// An endpoint is failing for as long as it was seen to: a success ends the streak, and so does a silence of half the time
// after which it counts (ENDPOINT_DISABLE_AFTER). So it takes failures at the beginning, about the middle and at the end
// of that time, with no longer gap between them: five days and 60 hours by default. The retries of one delivery leave 24
// hours at most between them. One failure five days ago and one today say nothing about the time between; Svix too starts
// its clock of five days only once several failures lie within a day.
type Streak struct {
	// Since is the first failure's time.
	Since time.Time
	// Seen is the last one's, but for a tenth of the time that counts: so it need not be written down each time.
	Seen time.Time
	// Version is the endpoint's whose attempts failed. Who changes an endpoint has looked at it: what was before does
	// not count.
	Version uint64
	// Judged tells that the endpoint of this version was found to be failing for long enough.
	Judged bool
}

// Fail adds a failure of the endpoint's given version and tells whether by it the streak is, for the first time, as long
// as after. One of an older version, whose answer came late, changes nothing.
func (s *Streak) Fail(now time.Time, version uint64, after time.Duration) (judged bool) {
	switch {
	case version < s.Version:
		return false
	case version > s.Version, s.Since.IsZero(), now.Sub(s.Seen) > after/2 && !s.Judged:
		*s = Streak{Since: now, Seen: now, Version: version}
	case now.Sub(s.Seen) >= after/10:
		s.Seen = now
	}
	if s.Judged || now.Sub(s.Since) < after {
		return false
	}
	s.Judged = true
	return true
}
