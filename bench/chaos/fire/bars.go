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

// Measured is what a run has shown of how fast it was.
type Measured struct {
	// Peace and Fire are the throughputs, where they were to be Compared.
	Compared    bool
	Peace, Fire float64
	// P99 is the time that 99 in 100 took, under fire, of KillsOnly or of more.
	P99       time.Duration
	KillsOnly bool
}

// Missed tells of each bar that was missed. What should have been measured and was not is missed too.
func (m Measured) Missed() (missed []string) {
	if peace, fire := m.Peace, m.Fire; m.Compared && (peace == 0 || fire < leastRatio*peace) {
		missed = append(missed, fmt.Sprintf("the throughput under fire is %.0f %% of that undisturbed, the bar is %.0f %%", 100*fire/max(peace, 1), 100*leastRatio))
	}
	if m.KillsOnly && (m.P99 == 0 || m.P99 >= mostP99) {
		missed = append(missed, fmt.Sprintf("1 in 100 took longer than %s, the bar is %s", m.P99.Round(time.Millisecond), mostP99))
	}
	return missed
}
