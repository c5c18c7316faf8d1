package siege

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
)

func TestMain(m *testing.M) {
	if exit, is := Child(); is {
		os.Exit(exit)
	}
	os.Exit(m.Run())
}

// TestUnderFire is a short siege: every kind of fault, and then no output that differs from the model's. How fast it all
// went is judged by the program, on a machine that has nothing else to do.
func TestUnderFire(t *testing.T) {
	report, err := Run(t.Context(), Config{
		Seed: uint64(time.Now().UnixNano()), Brokers: testenv.NewKafkaCluster(t, 1),
		Instances: 3, Partitions: 4, Orgs: 300, Rate: 100, Steady: 40 * time.Second, Interval: 3 * time.Second, Out: t.Output(),
	})
	require.NoError(t, err)
	report.Print(t.Output())
	require.True(t, report.Equal(), "differences, with seed %d", report.Seed)
	require.Positive(t, report.inputs)
	for what, n := range map[string]int{
		"kills": report.Kills, "freezes": report.Frozen, "instances added": report.Added, "broker kills": report.BrokerKills,
		"timers that ran": report.timers, "moves": report.moves, "accounts learnt anew": report.learnt,
		"subscriptions that went to other organizations": report.parted, "events sent again across a move": report.recognised,
	} {
		require.Positive(t, n, what)
	}
}
