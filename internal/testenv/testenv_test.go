package testenv_test

import (
	"context"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

func TestKafkaHasTheTopics(t *testing.T) {
	for name, cfg := range map[string]func(testing.TB) kafka.Config{"real": testenv.Kafka, "fake": testenv.FakeKafka} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg(t)
			client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
			require.NoError(t, err)
			defer client.Close()
			topics, err := kadm.NewClient(client).ListTopics(t.Context())
			require.NoError(t, err)
			require.Len(t, topics[cfg.Topic(schemas.Inbound)].Partitions, testenv.Partitions)
			require.Len(t, topics[cfg.Topic(schemas.Control)].Partitions, 1)
		})
	}
}

func TestKafkaKeepsItsRecordsWhenKilled(t *testing.T) {
	k := testenv.NewKafka(t)
	topic := k.Topics(t, 1).Topic(schemas.Inbound)
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr), kgo.ConsumeTopics(topic))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("kept")}).FirstErr())

	require.NoError(t, k.Restart(t.Context()))

	fetches := client.PollRecords(t.Context(), 1)
	require.NoError(t, fetches.Err())
	require.Equal(t, "kept", string(fetches.Records()[0].Value))
}

func TestAStoppedKafkaAnswersAgainWhenItGoesOn(t *testing.T) {
	k := testenv.NewKafka(t)
	topic := k.Topics(t, 1).Topic(schemas.Inbound)
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr))
	require.NoError(t, err)
	defer client.Close()

	require.NoError(t, k.Stop())
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.Error(t, client.ProduceSync(short, &kgo.Record{Topic: topic}).FirstErr())

	require.NoError(t, k.Cont())
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic}).FirstErr())
}

func TestClickHouseKeepsItsRowsWhenKilled(t *testing.T) {
	c := testenv.NewClickHouse(t)
	url := c.Database(t)
	require.NoError(t, open(t, url).Exec(t.Context(), "CREATE TABLE kept (n UInt8) ENGINE = MergeTree ORDER BY n"))
	require.NoError(t, open(t, url).Exec(t.Context(), "INSERT INTO kept VALUES (7)"))

	require.NoError(t, c.Restart(t.Context()))

	var n uint8
	require.NoError(t, open(t, url).QueryRow(t.Context(), "SELECT n FROM kept").Scan(&n))
	require.Equal(t, uint8(7), n)
}

func TestClickHouseDatabasesAreApart(t *testing.T) {
	one, other := open(t, testenv.ClickHouse(t)), open(t, testenv.ClickHouse(t))
	require.NoError(t, one.Exec(t.Context(), "CREATE TABLE mine (n UInt8) ENGINE = Memory"))
	require.Error(t, other.Exec(t.Context(), "SELECT * FROM mine"))
}

func open(t *testing.T, url string) driver.Conn {
	t.Helper()
	options, err := clickhouse.ParseDSN(url)
	require.NoError(t, err)
	conn, err := clickhouse.Open(options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

func TestStripeSignsAsStripeDoes(t *testing.T) {
	payload, secret := []byte(`{"a":"é\n"}`), "whsec_test"
	header := testenv.StripeSigner(t)(payload, secret)
	_, err := webhook.ConstructEventWithOptions(payload, header, secret, webhook.ConstructEventOptions{IgnoreAPIVersionMismatch: true})
	require.NoError(t, err)
}

func TestAClusterGoesOnWithoutOneBroker(t *testing.T) {
	k := testenv.NewKafkaCluster(t, 3)
	topic := k.Topics(t, 1).Topic(schemas.Inbound)
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addrs()...), kgo.ConsumeTopics(topic), kgo.RequiredAcks(kgo.AllISRAcks()))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, k.Brokers[0].Kill())
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("kept")}).FirstErr())
	fetches := client.PollRecords(t.Context(), 1)
	require.NoError(t, fetches.Err())
	require.Equal(t, "kept", string(fetches.Records()[0].Value))
}
