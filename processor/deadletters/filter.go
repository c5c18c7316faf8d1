package deadletters

import (
	"slices"
	"time"
)

// Filter chooses letters. What is empty chooses all.
type Filter struct {
	// A letter has one of each.
	Reasons, Sources, Organizations, Types []string
	// EventIDs are ours or the source's.
	EventIDs []string
	// It was buried at Since or later, and before Until.
	Since, Until time.Time
}

func (f *Filter) chooses(l *Letter) bool {
	e := l.GetEvent()
	switch {
	case !f.Since.IsZero() && l.Buried.Before(f.Since), !f.Until.IsZero() && !l.Buried.Before(f.Until):
		return false
	case !among(f.EventIDs, e.GetEventId()) && !among(f.EventIDs, e.GetSourceEventId()):
		return false
	}
	return among(f.Reasons, e.GetReason()) && among(f.Sources, e.GetSource()) &&
		among(f.Organizations, e.GetOrganizationId()) && among(f.Types, e.GetType())
}

func among(chosen []string, text string) bool {
	return len(chosen) == 0 || slices.Contains(chosen, text)
}
