// Package subscription says which events an endpoint asks for by their type and their loop: the patterns of `eventTypes`
// and the `loopIds`. Fan-out and replays match by it, so that they cannot disagree; what a filter says comes on top
// (package eventfilter).
package subscription

import (
	"slices"
	"strings"

	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/schemas"
)

// Patterns are event types, and beginnings of them with `*` as last character.
type Patterns struct {
	// All is that `*` alone is among them: every type but the operational ones.
	All             bool
	Exact, Prefixes []string
}

// Parse sorts patterns.
func Parse(patterns []string) Patterns {
	var p Patterns
	for _, pattern := range patterns {
		prefix, open := strings.CutSuffix(pattern, "*")
		switch {
		case !open:
			p.Exact = append(p.Exact, pattern)
		case prefix == "":
			p.All = true
		default:
			p.Prefixes = append(p.Prefixes, prefix)
		}
	}
	return p
}

// Match reports whether a pattern matches the type.
func (p *Patterns) Match(eventType string) bool {
	if p.All && !schemas.Operational(eventType) {
		return true
	}
	return slices.Contains(p.Exact, eventType) ||
		slices.ContainsFunc(p.Prefixes, func(prefix string) bool { return strings.HasPrefix(eventType, prefix) })
}

// Loops are those that an endpoint asked for; none of them is all.
type Loops []string

// Match reports whether an event of that loop, "" for one that is of none, is asked for. Who asked for loops gets no events
// that are of none.
func (l Loops) Match(loopID string) bool {
	return len(l) == 0 || loopID != "" && slices.Contains(l, loopID)
}

var loopIDPath = jsonscan.Compile("/loopId")

// LoopID is the loop that an event's data names, "" where it names none. An error says that data is no JSON object.
func LoopID(data []byte) (string, error) {
	var loopID [1]jsonscan.Value
	if err := loopIDPath.Scan(data, loopID[:]); err != nil {
		return "", err
	}
	return loopID[0].String(), nil
}
