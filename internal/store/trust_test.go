package store

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAPositionIsTrustedOnlyWithinItsLogAndItsTime(t *testing.T) {
	now := time.Now()
	log := Log{TopicID: [16]byte{1}, Start: 10, End: 20}
	at := func(offset int64, age time.Duration) Position {
		return Position{TopicID: log.TopicID, Offset: offset, AppliedAt: now.Add(-age)}
	}
	for name, c := range map[string]struct {
		pos  Position
		says string
	}{
		"at the log's start":          {at(10, 0), ""},
		"at the log's end":            {at(20, 0), ""},
		"before the log":              {at(9, 0), "the log begins at 10"},
		"beyond the log":              {at(21, 0), "the log ends at 20"},
		"of another topic":            {Position{Offset: 15, AppliedAt: now}, "another topic"},
		"as old as can be":            {at(15, MaxAge), ""},
		"too old":                     {at(15, MaxAge+time.Minute), "last current"},
		"from a clock a little ahead": {at(15, -maxAhead), ""},
		"from the future":             {at(15, -maxAhead-time.Minute), "from the future"},
	} {
		t.Run(name, func(t *testing.T) {
			why := c.pos.Distrust(log, now)
			if c.says == "" {
				require.Empty(t, why)
				return
			}
			require.Contains(t, why, c.says)
		})
	}
}
