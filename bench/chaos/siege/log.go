package siege

import (
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

// isTimers reports that an event of `events` was caused by a timer.
func isTimers(r *kgo.Record) bool {
	return kafka.ReadHeader(r.Headers, schemas.HeaderCauseSource) == billing.TimerSource
}

// numberOf is an organization's number by its name, also of one that its account was moved to.
func numberOf(name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, "org_")
	digits, _, _ = strings.Cut(digits, "-")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil
}
