package kafka

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestNextVisiblePassesWhatNoReaderIsShown(t *testing.T) {
	whole, torn := t.TempDir(), t.TempDir()
	onFolder := func(folder string) *kgo.Client {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(folder))
		require.NoError(t, err)
		t.Cleanup(cluster.Close)
		client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.TransactionalID("writer"),
			kgo.DefaultProduceTopic("topic"))
		require.NoError(t, err)
		t.Cleanup(client.Close)
		return client
	}
	ctx := deadline(t)
	client := onFolder(whole)
	_, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, nil, "topic")
	require.NoError(t, err)
	require.NoError(t, client.BeginTransaction())
	require.NoError(t, client.ProduceSync(ctx, kgo.StringRecord("0")).FirstErr())
	require.NoError(t, client.EndTransaction(ctx, kgo.TryCommit)) // at 1
	require.NoError(t, client.BeginTransaction())
	for range 2 { // at 2 and 3
		require.NoError(t, client.ProduceSync(ctx, kgo.StringRecord("open")).FirstErr())
	}
	// kfake is killed: the transaction is neither open nor has it a marker.
	require.NoError(t, os.CopyFS(torn, os.DirFS(whole)))
	killed := onFolder(torn)

	for _, c := range []struct {
		what                       string
		client                     *kgo.Client
		from, next, stable, record int64
	}{
		{"a record", killed, 0, 0, 4, 0},
		{"a marker", killed, 1, 1, 4, 4},
		{"aborted records up to the end", killed, 2, 4, 4, 4},
		{"the end", killed, 4, 4, 4, 4},
		{"a marker before an open transaction", client, 1, 1, 2, 2},
		{"an open transaction", client, 2, 2, 2, 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			next, stable, err := NextVisible(ctx, c.client, "topic", 0, c.from)
			require.NoError(t, err)
			require.Equal(t, []int64{c.next, c.stable}, []int64{next, stable})
			record, err := NextRecord(ctx, c.client, "topic", 0, c.from)
			require.NoError(t, err)
			require.Equal(t, c.record, record, "the next that is no marker")
		})
	}
}
