package siege

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
)

// Report is what a run has shown.
type Report struct {
	Seed uint64
	fire.Counts
	// InTimer is how many of the freezes met the output of a timer in the open transaction.
	InTimer int
	*verdict
	// Under is how long there was fire, Drained how long it took from its end until everything was taken.
	Under, Drained time.Duration
	// Measured are the rows a second that became visible while the load was as much as was taken, and with P50 and Longest the
	// times from acceptance until the row was visible, under fire with a steady load, of so many inputs.
	fire.Measured
	P50, Longest time.Duration
	Timed        int
	// Stall is the longest time that a partition with work stood still.
	Stall time.Duration
	// Rebalances of each group; Aborted are outputs of timers that stand on the log in transactions that did not commit.
	Rebalances map[string]int32
	Aborted    int
}

// Equal reports that nothing differs from the model.
func (r *Report) Equal() bool { return r.count == 0 }

// Print writes the report.
func (r *Report) Print(out io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	p("\nunder fire for %.0f s: %d kills (%d with the state folder deleted), %d instances added, %d removed, %d broker kills",
		r.Under.Seconds(), r.Kills, r.Forgotten, r.Added, r.Removed, r.BrokerKills)
	p("freezes past the session time-out: %d, of them with a transaction open: %d, with the output of a timer in it: %d; "+
		"given up by all groups before they woke: %d",
		r.Frozen, r.InTransaction, r.InTimer, r.Expelled)
	p("outputs of timers on the log in transactions that did not commit: %d", r.Aborted)
	var groups []string
	for _, group := range slices.Sorted(maps.Keys(r.Rebalances)) {
		groups = append(groups, fmt.Sprintf("%s %d", group, r.Rebalances[group]))
	}
	p("rebalances: %s", strings.Join(groups, ", "))
	p("inputs: %d of %d organizations; timers that ran: %d", r.inputs, r.orgs, r.timers)
	p("accounts moved: %d times, by an event: %d; events that came again to an organization which had not seen them itself: %d; "+
		"subscriptions that went to other organizations: %d", r.moves, r.learnt, r.recognised, r.parted)
	p("compared with the model, record by record:")
	for _, topic := range slices.Sorted(maps.Keys(r.compared)) {
		p("  %-16s %9d", topic, r.compared[topic])
	}
	if r.Peace > 0 {
		p("throughput, as much as is taken: %.0f rows/s at peace, %.0f under fire: %.0f %%", r.Peace, r.Fire, 100*r.Fire/r.Peace)
	}
	p("from acceptance until the row is visible, under fire, %d inputs: p50 %s, p99 %s, longest %s", r.Timed,
		r.P50.Round(time.Millisecond), r.P99.Round(time.Millisecond), r.Longest.Round(time.Millisecond))
	p("longest stall of a partition: %s; everything taken %s after the end of the load",
		r.Stall.Round(10*time.Millisecond), r.Drained.Round(10*time.Millisecond))
	r.printDifferences(p)
}

func (r *Report) printDifferences(p func(string, ...any)) {
	if r.Equal() {
		p("no difference (seed %d)", r.Seed)
		return
	}
	p("\nDIFFERENCES: %d; the first of them:", r.count)
	for _, d := range r.differences {
		p("- %s", d)
	}
	p("again with -seed %d", r.Seed)
}

// abortedTimers counts the outputs of timers that are on the log and that no read committed reader sees.
func abortedTimers(ctx context.Context, cluster *fire.Cluster) (n int, err error) {
	for p := range cluster.Partitions {
		for _, level := range []kgo.IsolationLevel{kgo.ReadUncommitted(), kgo.ReadCommitted()} {
			sign := map[bool]int{true: -1, false: 1}[level == kgo.ReadCommitted()]
			err := cluster.Read(ctx, level, schemas.Events, p, 0, func(r *kgo.Record) bool {
				if isTimers(r) {
					n += sign
				}
				return true
			})
			if err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}
