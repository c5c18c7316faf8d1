package delivery

import (
	"context"
	"fmt"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/testenv"
)

// deck is what happens to instances and brokers in a round: everything, and kills most.
func (r *run) deck(f *fire.Faults) []fire.Fault {
	if r.KillsOnly {
		return []fire.Fault{f.Kill}
	}
	return []fire.Fault{f.Kill, f.Kill, f.Kill, f.Kill, f.ComeOrGo, f.ComeOrGo, f.Freeze, f.BreakBroker}
}

// rowFaults break ClickHouse, beside the others.
type rowFaults struct {
	*fire.Faults
	server *testenv.ClickHouseServer
	// away is how long it is down, once a round.
	away time.Duration

	kills, freezes int
	downs          []span
}

// span is from a time to another.
type span struct{ from, to time.Time }

// frozenRows is longer than the deadline of an INSERT, which is 10 s.
const frozenRows = 12 * time.Second

// rowDeck is what happens to ClickHouse in a round.
func (r *run) rowDeck(f *rowFaults) []fire.Fault {
	if r.KillsOnly {
		return []fire.Fault{f.kill}
	}
	return []fire.Fault{f.kill, f.kill, f.kill, f.freeze, f.down}
}

func (f *rowFaults) kill(ctx context.Context) error {
	f.kills++
	f.Say("ClickHouse killed")
	return f.restart(ctx, time.Duration(f.Rand.IntN(1000))*time.Millisecond)
}

// down is as kill, for as long as it takes to see that memory stays flat.
func (f *rowFaults) down(ctx context.Context) error {
	from := time.Now()
	f.Say("ClickHouse is away for %s", f.away)
	err := f.restart(ctx, f.away)
	f.downs = append(f.downs, span{from, time.Now()})
	f.Say("ClickHouse is back")
	return err
}

func (f *rowFaults) restart(ctx context.Context, after time.Duration) error {
	if err := f.server.Kill(); err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	time.Sleep(after)
	if err := f.server.Start(ctx); err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	return nil
}

// freeze stops it in the middle of whatever it does, and lets it go on once inserts are overdue.
func (f *rowFaults) freeze(context.Context) error {
	f.freezes++
	f.Say("ClickHouse frozen")
	if err := f.server.Stop(); err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	time.Sleep(frozenRows)
	f.Say("ClickHouse goes on")
	if err := f.server.Cont(); err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	return nil
}
