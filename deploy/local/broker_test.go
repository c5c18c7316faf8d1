package local_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/deploy/local"
)

func startBroker(t *testing.T, cfg local.BrokerConfig) *local.Broker {
	t.Helper()
	b, err := local.StartBroker(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Stop()) })
	return b
}

func client(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(addr))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestTheBrokerKeepsRecordsOverARestartAndCompactsThem(t *testing.T) {
	folder := t.TempDir()
	b := startBroker(t, local.BrokerConfig{Folder: folder, Addr: "127.0.0.1:0"})
	addr := b.Addr()
	c := client(t, addr)
	_, err := kadm.NewClient(c).CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, "table")
	require.NoError(t, err)
	for _, value := range []string{"first", "second", "third"} {
		require.NoError(t, c.ProduceSync(t.Context(), &kgo.Record{Topic: "table", Key: []byte("k"), Value: []byte(value)}).FirstErr())
	}
	c.Close()
	require.NoError(t, b.Stop())

	b = startBroker(t, local.BrokerConfig{Folder: folder, Addr: addr})
	require.Equal(t, addr, b.Addr())
	var values []string
	reader := client(t, addr, kgo.ConsumeTopics("table"))
	for len(values) == 0 || values[len(values)-1] != "third" {
		fetches := reader.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	require.NotContains(t, values, "first", "superseded before the last start")
}

func TestAStartWaitsForItsPredecessor(t *testing.T) {
	folder := t.TempDir()
	first := startBroker(t, local.BrokerConfig{Folder: folder, Addr: "127.0.0.1:0"})
	go func() {
		time.Sleep(300 * time.Millisecond) // the predecessor's drain
		_ = first.Stop()
	}()
	second := startBroker(t, local.BrokerConfig{Folder: folder, Addr: first.Addr()})
	require.Equal(t, first.Addr(), second.Addr())
}

func TestATakenPortIsToldWithItsSetting(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = local.StartBroker(ctx, local.BrokerConfig{Folder: t.TempDir(), Addr: ln.Addr().String()}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "EMBEDDED_KAFKA_ADDR")
}

func TestAFolderInUseIsToldWithItsSetting(t *testing.T) {
	folder := t.TempDir()
	startBroker(t, local.BrokerConfig{Folder: folder, Addr: "127.0.0.1:0"})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := local.StartBroker(ctx, local.BrokerConfig{Folder: folder, Addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "DATA_DIR")
}
