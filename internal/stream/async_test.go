package stream

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
)

func TestUnitsAreDoneOnceWhateverTransactionsDo(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, starts := newClient(t, cfg), startsFile(t)
		records, units := parcels(0, 1000)
		c.produce(senderIn, records...)
		g := begin(t, senderSpec(starts, 300), config(cfg, t.TempDir()), func(g *Group) {
			g.retries = rand.IntN(2)
			g.faults.abort = func() bool { return rand.IntN(4) == 0 }
			g.faults.forget = func() bool { return rand.IntN(4) == 0 }
		})
		require.Zero(t, c.requireRows(units, starts), "nothing was handed over, nothing is in doubt")
		testenv.Eventually(t, 10*time.Second, func() bool { return g.Lag() == 0 }, "lag 0")
	})
}

func TestACleanHandOverLeavesNothingInDoubt(t *testing.T) {
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, starts, dir := newClient(t, cfg), startsFile(t), t.TempDir()
		total := 0
		for i := range 3 {
			g := begin(t, senderSpec(starts, 100), config(cfg, dir)).ready()
			records, units := parcels(i*300, 300)
			total += units
			c.produce(senderIn, records...)
			g.stop() // with most of it undone
		}
		begin(t, senderSpec(starts, 100), config(cfg, dir))
		require.Zero(t, c.requireRows(total, starts))
	})
}
