package produce_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

func newProducer(t *testing.T, cfg produce.Config) *produce.Producer {
	p, err := produce.New(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		p.Close(ctx)
	})
	return p
}

func TestWhatIsSentIsThere(t *testing.T) {
	cluster := testenv.FakeKafka(t)
	p := newProducer(t, produce.Config{Kafka: cluster})
	// Many senders use the same tickets again and again.
	var senders sync.WaitGroup
	for i := range 20 {
		senders.Go(func() {
			for range 50 {
				key := string(rune('a' + i))
				require.True(t, p.Budget.Take(10))
				require.NoError(t, p.Send(produce.Record{Topic: schemas.Inbound, RoutingKey: key, Value: []byte("of " + key), Reserved: 10}))
			}
		})
	}
	senders.Wait()
	require.Zero(t, p.Budget.Used())

	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers...), kgo.ConsumeTopics(cluster.Topic(schemas.Inbound)))
	require.NoError(t, err)
	defer client.Close()
	for n := 0; n < 1000; {
		client.PollFetches(t.Context()).EachRecord(func(r *kgo.Record) {
			require.Equal(t, "of "+string(r.Key), string(r.Value))
			require.Equal(t, cluster.PartitionOf(string(r.Key)), r.Partition)
			n++
		})
	}
}

func TestWithoutKafkaASenderIsToldInTimeAndItsBytesComeBack(t *testing.T) {
	p := newProducer(t, produce.Config{
		Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}, Partitions: 1, ReplicationFactor: 1}, Timeout: 200 * time.Millisecond,
	})
	require.True(t, p.Budget.Take(100))
	start := time.Now()
	err := p.Send(produce.Record{Topic: schemas.Inbound, RoutingKey: "a", Reserved: 100})
	require.True(t, errors.Is(err, produce.ErrUnavailable))
	require.Less(t, time.Since(start), 2*time.Second)
	testenv.Eventually(t, 20*time.Second, func() bool { return p.Budget.Used() == 0 }, "the bytes are given back")
}

func TestABudgetIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(0, 50).Draw(t, "limit")
		b := produce.NewBudget(limit)
		var held []int64
		for range 50 {
			if len(held) > 0 && rapid.Bool().Draw(t, "give") {
				b.Give(held[0])
				held = held[1:]
				continue
			}
			n, before := rapid.Int64Range(0, 30).Draw(t, "take"), b.Used()
			if b.Take(n) {
				held = append(held, n)
			} else {
				require.Greater(t, before+n, limit)
			}
			require.LessOrEqual(t, b.Used(), limit)
		}
	})
}
