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
		pos   Position
		byAge bool
		says  string
	}{
		"at the log's start":                         {pos: at(10, 0)},
		"at the log's end":                           {pos: at(20, 0)},
		"before the log":                             {pos: at(9, 0), says: "the log begins at 10"},
		"beyond the log":                             {pos: at(21, 0), says: "the log ends at 20"},
		"of another topic":                           {pos: Position{Offset: 15, AppliedAt: now}, says: "another topic"},
		"as old as can be":                           {pos: at(15, MaxAge)},
		"too old":                                    {pos: at(15, MaxAge+time.Minute), says: "last current"},
		"from a clock a little ahead":                {pos: at(15, -maxAhead)},
		"from the future":                            {pos: at(15, -maxAhead-time.Minute), says: "from the future"},
		"however old, where records drop by age":     {pos: at(15, 100*MaxAge), byAge: true},
		"from the future, where records drop by age": {pos: at(15, -100*maxAhead), byAge: true},
		"before a log that drops by age":             {pos: at(9, 0), byAge: true, says: "the log begins at 10"},
		"beyond a log that drops by age":             {pos: at(21, 0), byAge: true, says: "the log ends at 20"},
		"of another topic that drops by age":         {pos: Position{Offset: 15, AppliedAt: now}, byAge: true, says: "another topic"},
	} {
		t.Run(name, func(t *testing.T) {
			log := log
			log.ByAge = c.byAge
			why := c.pos.Distrust(log, now)
			if c.says == "" {
				require.Empty(t, why)
				return
			}
			require.Contains(t, why, c.says)
		})
	}
}
