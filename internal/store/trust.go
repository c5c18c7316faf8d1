package store

import (
	"fmt"
	"time"

	"github.com/betterdata/webhooks/schemas"
)

const (
	// MaxAge is half of the time tombstones live: a tombstone outlives the first cleaning that sees it by
	// delete.retention.ms, so a store that was current more recently than that cannot have missed one.
	MaxAge = schemas.TombstoneRetention / 2
	// maxAhead is how far into the future clocks that were set right may put a store.
	maxAhead = time.Hour
)

// Log is a changelog as it stands: its topic's id, its first offset, and the offset after its last record.
type Log struct {
	TopicID    [16]byte
	Start, End int64
	// ByAge says that a record means nothing once the log drops it for its age: a tombstone that was missed does no harm.
	ByAge bool
}

// Distrust says why what is at pos cannot be continued from the log, or "". Whether the log was rewritten since
// (KIP-101) is for the caller to find out.
func (pos Position) Distrust(log Log, now time.Time) string {
	age := now.Sub(pos.AppliedAt)
	switch {
	case pos.TopicID != log.TopicID:
		return "it belongs to another topic of that name"
	case pos.Offset > log.End:
		return fmt.Sprintf("it is at offset %d and the log ends at %d", pos.Offset, log.End)
	case pos.Offset < log.Start:
		return fmt.Sprintf("it is at offset %d and the log begins at %d", pos.Offset, log.Start)
	case log.ByAge:
		return ""
	case age > MaxAge:
		// A key deleted since may have lost its tombstone; it would live here for ever.
		return fmt.Sprintf("it was last current %s ago", age.Round(time.Hour))
	case age < -maxAhead:
		return "it is from the future; its age cannot be known"
	}
	return ""
}
