package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// Partitions is the count of keyed topics in tests.
const Partitions = 4

const startTimeout = 90 * time.Second

// Kafka is a fresh set of topics on the test process's Apache Kafka, which starts with the first call. Names differ
// from those of every other test.
func Kafka(t testing.TB) kafka.Config {
	t.Helper()
	return KafkaPartitions(t, Partitions)
}

// KafkaPartitions is Kafka with a partition count.
func KafkaPartitions(t testing.TB, partitions int32) kafka.Config {
	t.Helper()
	shared, err := sharedKafka()
	require.NoError(t, err)
	return shared.Topics(t, partitions)
}

// FakeKafka is a kfake with the topics, in this process: quick, for tests that do not depend on what a real broker does.
func FakeKafka(t testing.TB) kafka.Config {
	t.Helper()
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.GroupMinSessionTimeout(100*time.Millisecond),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": fmt.Sprint(schemas.MaxRecordBytes)}),
	)
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	return topics(t, cluster.ListenAddrs()[0], Partitions)
}

// KafkaServer is an Apache Kafka of one broker, on ports and data of its own.
type KafkaServer struct {
	*Server
	// Addr is the broker's address, the same after a restart.
	Addr string
}

// NewKafka starts a broker for this test alone, to be broken.
func NewKafka(t testing.TB) *KafkaServer {
	t.Helper()
	k, err := startKafka(t.Context())
	require.NoError(t, err)
	t.Cleanup(k.close)
	return k
}

// Topics makes a fresh set of topics on the broker.
func (k *KafkaServer) Topics(t testing.TB, partitions int32) kafka.Config {
	t.Helper()
	return topics(t, k.Addr, partitions)
}

var sharedKafka = sync.OnceValues(func() (*KafkaServer, error) { return startKafka(context.Background()) })

// startKafka tries again on other ports when one was taken between its choice and the start.
func startKafka(ctx context.Context) (k *KafkaServer, err error) {
	for range 3 {
		if k, err = tryKafka(ctx); err == nil {
			return k, nil
		}
	}
	return nil, fmt.Errorf("start Apache Kafka: %w", err)
}

func tryKafka(ctx context.Context) (*KafkaServer, error) {
	java, err := kafkaJars()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("kafka-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	controller, err := freeAddr()
	if err != nil {
		return nil, err
	}
	properties := filepath.Join(folder, "server.properties")
	logging := filepath.Join(folder, "log4j2.properties")
	if err := os.WriteFile(properties, []byte(kafkaProperties(folder, addr, controller)), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(logging, []byte(kafkaLogging), 0o600); err != nil {
		return nil, err
	}
	java = append(java[:len(java):len(java)], "-Xmx512m", "-XX:TieredStopAtLevel=1", "-Dlog4j2.configurationFile="+logging)
	if err := formatStorage(ctx, java, properties); err != nil {
		return nil, err
	}
	server, err := startServer(ctx, folder, append(java, "kafka.Kafka", properties), func(ctx context.Context) error {
		return kafkaReady(ctx, addr)
	})
	if err != nil {
		return nil, err
	}
	return &KafkaServer{server, addr}, nil
}

func formatStorage(ctx context.Context, java []string, properties string) error {
	java = append(java[:len(java):len(java)], "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", properties)
	out, err := exec.CommandContext(ctx, java[0], java[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format the broker's storage: %w\n%s", err, out)
	}
	return nil
}

func kafkaProperties(folder, addr, controller string) string {
	return strings.Join([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + controller,
		"listeners=PLAINTEXT://" + addr + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + addr,
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(folder, "data"),
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		// A broker that was killed may register again once its old session is over.
		"broker.session.timeout.ms=3000",
		"broker.heartbeat.interval.ms=500",
		"offsets.topic.replication.factor=1",
		"offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"transaction.state.log.num.partitions=4",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		"share.coordinator.state.topic.num.partitions=1",
		"",
	}, "\n")
}

const kafkaLogging = `status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
`

// kafkaReady returns when the broker answers and can place a topic on itself.
func kafkaReady(ctx context.Context, addr string) error {
	// A plain dial first: a client would wait longer and longer between its tries.
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.Close()
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no broker on %s: %w", addr, err)
		case <-time.After(25 * time.Millisecond):
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		brokers, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
		if err == nil && len(brokers.Brokers) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the broker on %s is not ready: %w", addr, ctx.Err())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// topics creates the topics under a new prefix.
func topics(t testing.TB, addr string, partitions int32) kafka.Config {
	t.Helper()
	cfg := kafka.Config{
		Brokers:           []string{addr},
		TopicPrefix:       prefix(t),
		Partitions:        partitions,
		ReplicationFactor: 1,
	}
	require.NoError(t, kafka.EnsureTopics(t.Context(), cfg, slog.New(slog.DiscardHandler)))
	return cfg
}

// prefix says which test it is in the broker's logs, and is like no other.
func prefix(t testing.TB) string {
	var unique [4]byte
	_, _ = rand.Read(unique[:])
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name())
	return name[:min(len(name), 40)] + "-" + hex.EncodeToString(unique[:]) + "."
}
