package sink

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/testenv"
)

// One server is killed by all of these, one after the other.
func TestClickHouseIsKilled(t *testing.T) {
	t.Parallel()
	server := testenv.NewClickHouse(t)
	for name, test := range map[string]func(*testing.T, *testenv.ClickHouseServer){
		"in mid-stream":                            killedInMidStream,
		"reached over HTTP":                        killedOverHTTP,
		"away: memory stays flat, nothing is lost": awayForLong,
	} {
		t.Run(name, func(t *testing.T) { test(t, server) })
	}
}

func killedInMidStream(t *testing.T, server *testenv.ClickHouseServer) {
	f := newFixture(t, testenv.FakeKafka(t), server.Database(t))
	s := f.start(plainTable())
	for range 3 {
		for range 10 {
			f.produce(200)
			time.Sleep(10 * time.Millisecond)
		}
		require.NoError(t, server.Kill())
		f.produce(500)
		require.NoError(t, server.Start(t.Context()))
	}
	f.exactlyOnce()
	f.settled()
	require.Zero(t, counted(s, resultStopped))
}

func killedOverHTTP(t *testing.T, server *testenv.ClickHouseServer) {
	native := server.Database(t)
	f := newFixture(t, testenv.FakeKafka(t), native)
	url := "http://" + server.HTTPAddr + native[strings.LastIndex(native, "/"):]
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	s := f.start(plainTable(), func(c *Config) { c.ClickHouse = f.open(url) })
	f.produce(1_000)
	f.exactlyOnce()
	require.NoError(t, server.Kill())
	f.produce(1_000)
	require.NoError(t, server.Start(t.Context()))
	f.exactlyOnce()
	f.settled()
	require.Zero(t, counted(s, resultStopped))
}

func awayForLong(t *testing.T, server *testenv.ClickHouseServer) {
	f := newFixture(t, testenv.FakeKafka(t), server.Database(t))
	s := f.start(plainTable(), func(c *Config) { c.MaxBuffered = 200 << 10 })
	f.produce(100)
	f.exactlyOnce()

	require.NoError(t, server.Kill())
	for range 20 {
		f.produce(2_000)
	}
	require.Eventually(t, func() bool { return s.Check(t.Context()) != nil }, 20*time.Second, 10*time.Millisecond)
	f.steady(s)
	require.GreaterOrEqual(t, s.buffered.Load(), int64(s.cfg.MaxBuffered))
	require.Less(t, s.buffered.Load(), int64(200<<10+maxPoll*(recordOverhead+100)))
	require.Positive(t, s.age())

	require.NoError(t, server.Start(t.Context()))
	f.exactlyOnce()
	require.Eventually(t, func() bool { return s.Check(t.Context()) == nil && s.buffered.Load() == 0 }, 20*time.Second, 10*time.Millisecond)
}
