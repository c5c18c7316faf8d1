package delivery

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

// TestUnderFire is a short siege: every kind of fault, and then every delivery has ended, every attempt is a row, and every
// row is one. How fast it all went is judged by the program, on a machine that has nothing else to do.
func TestUnderFire(t *testing.T) {
	report, err := Run(t.Context(), Config{
		Seed: uint64(time.Now().UnixNano()), Brokers: testenv.NewKafkaCluster(t, 1), ClickHouse: testenv.NewClickHouse(t),
		Instances: 3, Partitions: 4, Endpoints: 100, Rate: 60, Steady: 35 * time.Second, Interval: 3 * time.Second, Away: 5 * time.Second,
		Out: t.Output(),
	})
	require.NoError(t, err)
	report.Print(t.Output())
	require.True(t, report.Equal(), "differences, with seed %d", report.Seed)
	require.Empty(t, report.Missed())
	for what, n := range map[string]int{
		"attempts": report.attempts, "sent again after a fault": report.afterFault, "dead": report.ended["dead exhausted"],
		"kills": report.Kills, "freezes": report.Frozen, "instances added": report.Added, "broker kills": report.BrokerKills,
		"kills of ClickHouse": report.RowKills, "freezes of ClickHouse": report.RowFreezes,
	} {
		require.Positive(t, n, what)
	}
}
