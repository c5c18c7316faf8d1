package fire

import (
	"fmt"
	"time"
)

// The bars for work under fire. That of time is for SIGKILLs: a freeze past the session time-out or a folder that is deleted
// stops a partition for as long as the time-out is, or the restore.
const (
	leastRatio = 0.5
	mostP99    = 10 * time.Second
)

// Bars compares what was measured with the bars, and tells of each that was missed. peace and fire are throughputs, zero
// where they were not measured; p99 is the time that 99 in 100 took, under fire.
func Bars(peace, fire float64, p99 time.Duration, killsOnly bool) (missed []string) {
	if peace > 0 && fire < leastRatio*peace {
		missed = append(missed, fmt.Sprintf("the throughput under fire is %.0f %% of that undisturbed, the bar is %.0f %%", 100*fire/peace, 100*leastRatio))
	}
	if killsOnly && p99 >= mostP99 {
		missed = append(missed, fmt.Sprintf("1 in 100 took longer than %s, the bar is %s", p99.Round(time.Millisecond), mostP99))
	}
	return missed
}
