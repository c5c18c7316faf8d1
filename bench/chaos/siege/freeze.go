package siege

import (
	"context"
	"slices"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
)

// deck is what happens in a round: everything, and kills most.
func (r *run) deck(f *fire.Faults) []fire.Fault {
	if r.KillsOnly {
		return []fire.Fault{f.Kill}
	}
	inTimer := func(ctx context.Context) error { return f.FreezeAs(ctx, r.stopInTimer) }
	return []fire.Fault{f.Kill, f.Kill, f.Kill, f.Kill, f.ComeOrGo, f.ComeOrGo, f.Freeze, inTimer, f.BreakBroker}
}

// aimFor bounds the tries to stop an instance in a timer's transaction.
const aimFor = 60

// stopInTimer stops an instance again and again, just after the full second, when timers are due, until it has the output
// of a timer in a transaction that is not decided.
func (r *run) stopInTimer(ctx context.Context, in *fire.Instance, ids []string) (open bool, note string, err error) {
	id := ids[slices.Index(groups, schemas.GroupInbound)]
	for try := 0; ; try++ {
		now := time.Now()
		time.Sleep(now.Truncate(time.Second).Add(time.Second + time.Duration(try%12)*5*time.Millisecond).Sub(now))
		if err := in.Stop(); err != nil {
			return false, "", r.herd.Failed(in, err)
		}
		time.Sleep(fire.Seen)
		ask, cancel := context.WithTimeout(ctx, fire.AskWithin)
		open, timers, _ := r.watch.undecided(ask, id)
		cancel()
		switch {
		case timers:
			r.inTimer.Add(1)
			return open, " in the middle of a timer's transaction", nil
		case try == aimFor:
			return open, "", nil
		}
		if err := in.Cont(); err != nil {
			return false, "", r.herd.Failed(in, err)
		}
	}
}
