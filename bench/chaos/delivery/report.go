package delivery

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/deliverer/rows"
	"github.com/betterdata/webhooks/schemas"
)

// Report is what a run has shown.
type Report struct {
	Seed uint64
	fire.Counts
	// RowKills and RowFreezes are ClickHouse's.
	RowKills, RowFreezes int
	*verdict
	// Under is how long there was fire, Drained how long it took from the end of the load until everything had ended.
	Under, Drained time.Duration
	// Measured are the deliveries a second that ended while the load was as much as was delivered, and the time from the making of
	// a delivery to a prompt endpoint until its first request, under fire with a steady load.
	fire.Measured
	// Stall is the longest time that a partition had something to send to prompt endpoints and sent nothing.
	Stall time.Duration
	// Held is the largest resident set of an instance, in MiB, while ClickHouse was there; HeldAway, while it was away.
	Held, HeldAway float64
	// Rebalances of each group.
	Rebalances map[string]int32

	timedFrom time.Time
	downs     []span
}

// sinkGroups are the groups of the deliverer's sinks.
func sinkGroups() (groups []string) {
	for _, t := range rows.Tables() {
		groups = append(groups, schemas.GroupSinkPrefix+t.Name)
	}
	return groups
}

// Equal reports that nothing differs from the model.
func (r *Report) Equal() bool { return r.count == 0 }

// Missed tells of the bars that were missed.
func (r *Report) Missed() []string {
	missed := r.Measured.Missed()
	if !r.flat() {
		missed = append(missed, fmt.Sprintf("memory grows while ClickHouse is away: from %.0f MiB to %.0f", r.Held, r.HeldAway))
	}
	return missed
}

// roomForRows is what the sinks may hold more of while ClickHouse is away, in MiB: 32 each, and a poll on top.
const roomForRows = 3 * 40

// flat reports that memory does not grow with what ClickHouse has missed.
func (r *Report) flat() bool { return r.HeldAway <= r.Held+roomForRows }

// weigh tells the memory held while ClickHouse was away from that before and after.
func (r *Report) weigh(w *watch) {
	from := time.Time{}
	for _, away := range r.downs {
		r.Held = max(r.Held, w.most(from, away.from))
		r.HeldAway = max(r.HeldAway, w.most(away.from, away.to))
		from = away.to
	}
	r.Held = max(r.Held, w.most(from, time.Now()))
}

// Print writes the report.
func (r *Report) Print(out io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	p("\nunder fire for %.0f s: %d kills (%d with the state folder deleted), %d instances added, %d removed, %d broker kills",
		r.Under.Seconds(), r.Kills, r.Forgotten, r.Added, r.Removed, r.BrokerKills)
	p("freezes past the session time-out: %d, of them with a transaction open: %d; given up by the group before they woke: %d",
		r.Frozen, r.InTransaction, r.Expelled)
	p("ClickHouse: %d kills, %d freezes past the deadline of inserts, away %d times", r.RowKills, r.RowFreezes, len(r.downs))
	p("rebalances: %s", pairs(r.Rebalances))
	p("deliveries: %d: %s", r.deliveries, pairs(r.ended))
	p("attempts: %d, as many rows; requests: %d; not seen by a receiver: %d, timed out though it answered: %d",
		r.attempts, r.requests, r.unseen, r.starved)
	p("sent again: %d after a fault, after one %d at most; %d on a stale connection; rows marked so: %d, of which %d came once",
		r.afterFault, r.most, r.stale, r.marked, r.needless)
	if r.Peace > 0 {
		p("throughput, as much as is delivered: %.0f deliveries/s at peace, %.0f under fire: %.0f %%", r.Peace, r.Fire, 100*r.Fire/r.Peace)
	}
	p("from making to first request, under fire, %d deliveries to prompt endpoints: p50 %s, p99 %s, longest %s", len(r.times),
		percentile(r.times, .5).Round(time.Millisecond), r.P99.Round(time.Millisecond), percentile(r.times, 1).Round(time.Millisecond))
	p("longest stall of a partition: %s; everything ended %s after the end of the load",
		r.Stall.Round(10*time.Millisecond), r.Drained.Round(10*time.Millisecond))
	p("memory of the largest instance: %.0f MiB, while ClickHouse was away %.0f", r.Held, r.HeldAway)
	r.printDifferences(p)
}

func pairs[V any](of map[string]V) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s %v", name, of[name]))
	}
	return strings.Join(all, ", ")
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
