package table

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
)

// A log may end in records that are shown to no reader: aborted ones whose marker is gone, or ones that were compacted
// away. kfake makes such a log when it is killed within a transaction.
func TestACopyIsCurrentThoughTheLogEndsInWhatNobodyIsShown(t *testing.T) {
	f := hiddenTail(t)
	c := f.start(f.dir())
	f.current(c, "a")
	require.Equal(t, "1", f.get(c, "a"))
	require.NoError(t, c.Check(t.Context()))

	f.put("a", "3")
	f.current(c, "a")
	require.Equal(t, "3", f.get(c, "a"))
}

// hiddenTail is a cluster whose topic ends, in the partition of the key a, in a transaction without a marker.
func hiddenTail(t *testing.T) *fixture {
	t.Helper()
	whole, torn := t.TempDir(), t.TempDir()
	f := onFolder(t, whole)
	f.createTopic()
	f.put("a", "1")
	tx := f.transaction()
	require.NoError(t, tx.BeginTransaction())
	f.produce(tx, "a", []byte("2"))
	require.NoError(t, os.CopyFS(torn, os.DirFS(whole)))
	require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryAbort))
	return onFolder(t, torn)
}

func onFolder(t *testing.T, folder string) *fixture {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(folder))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	f := &fixture{
		t: t, stops: map[*Copy]func(){},
		cfg: kafka.Config{Brokers: cluster.ListenAddrs(), TopicPrefix: "t.", Partitions: partitions, ReplicationFactor: 1},
	}
	f.client = f.newClient()
	return f
}
