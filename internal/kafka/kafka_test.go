package kafka

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/schemas"
)

func fakeCluster(t *testing.T) Config {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	return Config{Brokers: cluster.ListenAddrs(), TopicPrefix: "t.", Partitions: 4, ReplicationFactor: 1}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestPartitionOfIsJavas(t *testing.T) {
	// Values of org.apache.kafka.common.utils.Utils.murmur2, from Kafka's own UtilsTest.
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		require.Equal(t, want, int32(murmur2(key)), key)
		require.Equal(t, want&0x7fffffff%64, PartitionOf(key, 64), key)
	}
}

func TestPartitionOfAgreesWithTheClientsPartitioner(t *testing.T) {
	p := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for i := range 1000 {
		key := "org_" + strconv.Itoa(i)
		require.EqualValues(t, p.Partition(&kgo.Record{Key: []byte(key)}, 12), PartitionOf(key, 12))
	}
}

func TestReadHeaderTakesTheFirst(t *testing.T) {
	h := []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}}
	require.Equal(t, "1", ReadHeader(h, "a"))
	require.Equal(t, "", ReadHeader(h, "b"))
}

func TestEnsureTopicsFromManyInstancesAtOnce(t *testing.T) {
	cfg := fakeCluster(t)
	var group sync.WaitGroup
	errs := make(chan error, 4)
	for range 4 {
		group.Go(func() { errs <- EnsureTopics(deadline(t), cfg, slog.New(slog.DiscardHandler)) })
	}
	group.Wait()
	for range 4 {
		require.NoError(t, <-errs)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	details, err := kadm.NewClient(client).ListTopics(deadline(t))
	require.NoError(t, err)
	for _, topic := range schemas.Topics() {
		want := topic.Partitions
		if want == 0 {
			want = 4
		}
		require.Len(t, details["t."+topic.Name].Partitions, int(want), topic.Name)
	}
	settings := func(topic string) map[string]string {
		configs, err := kadm.NewClient(client).DescribeTopicConfigs(deadline(t), "t."+topic)
		require.NoError(t, err)
		got := map[string]string{}
		for _, c := range configs[0].Configs {
			got[c.Key] = c.MaybeValue()
		}
		return got
	}
	got := settings(schemas.Billing)
	require.Equal(t, "compact", got["cleanup.policy"])
	require.Equal(t, "604800000", got["delete.retention.ms"])
	require.Equal(t, "4194304", got["max.message.bytes"])
	got = settings(schemas.Idempotency)
	require.Equal(t, "compact,delete", got["cleanup.policy"])
	require.Equal(t, "93600000", got["retention.ms"])
}

func TestEnsureTopicsRefusesAnotherPartitionCount(t *testing.T) {
	cfg := fakeCluster(t)
	log := slog.New(slog.DiscardHandler)
	require.NoError(t, EnsureTopics(deadline(t), cfg, log))
	require.NoError(t, EnsureTopics(deadline(t), cfg, log), "a later start finds its plan")
	cfg.Partitions = 8
	err := EnsureTopics(deadline(t), cfg, log)
	require.ErrorIs(t, err, ErrPartitions)
	require.ErrorContains(t, err, "KAFKA_PARTITIONS is 8, the topics were created with 4")
}

func TestEnsureTopicsRefusesAnAlteredTopic(t *testing.T) {
	cfg := fakeCluster(t)
	log := slog.New(slog.DiscardHandler)
	require.NoError(t, EnsureTopics(deadline(t), cfg, log))
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).UpdatePartitions(deadline(t), 6, "t."+schemas.Inbound)
	require.NoError(t, err)
	require.ErrorIs(t, EnsureTopics(deadline(t), cfg, log), ErrPartitions)
}

func TestEnsureTopicsRefusesATopicThatWouldLoseState(t *testing.T) {
	cfg := fakeCluster(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	require.NoError(t, err)
	defer client.Close()
	adm := kadm.NewClient(client)
	alter := func(key, value string) {
		_, err := adm.AlterTopicConfigs(deadline(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, "t."+schemas.Retries)
		require.NoError(t, err)
	}
	set := func(policy string) { alter("cleanup.policy", policy) }
	_, err = adm.CreateTopic(deadline(t), 4, 1, nil, "t."+schemas.Retries)
	require.NoError(t, err)

	set("delete")
	err = EnsureTopics(deadline(t), cfg, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, ErrCleanup)
	require.ErrorContains(t, err, "topic t.retries has cleanup.policy delete, not compact")
	set("delete,compact")
	require.ErrorIs(t, EnsureTopics(deadline(t), cfg, slog.New(slog.DiscardHandler)), ErrCleanup)
	set("compact")
	alter("delete.retention.ms", "86400000")
	err = EnsureTopics(deadline(t), cfg, slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, ErrCleanup)
	require.ErrorContains(t, err, "topic t.retries has delete.retention.ms 86400000, less than 604800000")
	alter("delete.retention.ms", "704800000")
	require.NoError(t, EnsureTopics(deadline(t), cfg, slog.New(slog.DiscardHandler)), "longer is no loss")
}

func TestEnsureTopicsSaysWhatItCannotReach(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := EnsureTopics(ctx, Config{Brokers: []string{"127.0.0.1:1"}, Partitions: 1, ReplicationFactor: 1}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "reach Kafka at [127.0.0.1:1]")
}

func TestTheClientsMessagesAreKeptShort(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(quiet{slog.NewTextHandler(&out, nil), &told{kinds: map[string]time.Time{}}})
	for range 3 {
		log.Info("transaction")
		log.With("addr", "a").Warn("unable to open connection")
		log.Error("manage loop")
	}
	require.NotContains(t, out.String(), "transaction")
	require.Equal(t, 1, strings.Count(out.String(), "unable to open connection"))
	require.Equal(t, 1, strings.Count(out.String(), "manage loop"))

	out.Reset()
	log = slog.New(quiet{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}), &told{}})
	for range 3 {
		log.Info("transaction")
		log.Warn("unable to open connection")
	}
	require.Equal(t, 6, strings.Count(out.String(), "\n"), "all of it at debug")
}
