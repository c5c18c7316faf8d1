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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

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
	return topics(t, kafka.Config{Brokers: cluster.ListenAddrs(), Partitions: Partitions, ReplicationFactor: 1})
}

// KafkaServer is one broker of an Apache Kafka, on ports and data of its own.
type KafkaServer struct {
	*Server
	// Addr is the broker's address, the same after a restart.
	Addr string
}

// NewKafka starts a broker for this test alone, to be broken.
func NewKafka(t testing.TB) *KafkaServer {
	t.Helper()
	return NewKafkaCluster(t, 1).Brokers[0]
}

// Topics makes a fresh set of topics on the broker.
func (k *KafkaServer) Topics(t testing.TB, partitions int32) kafka.Config {
	t.Helper()
	return (&KafkaCluster{[]*KafkaServer{k}}).Topics(t, partitions)
}

// KafkaCluster is an Apache Kafka of some brokers. Each of them is a controller too.
type KafkaCluster struct{ Brokers []*KafkaServer }

// NewKafkaCluster starts a cluster for this test alone, to be broken.
func NewKafkaCluster(t testing.TB, brokers int) *KafkaCluster {
	t.Helper()
	k, err := StartKafka(t.Context(), brokers, quickJVM...)
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k
}

// Addrs are the brokers' addresses.
func (k *KafkaCluster) Addrs() (addrs []string) {
	for _, b := range k.Brokers {
		addrs = append(addrs, b.Addr)
	}
	return addrs
}

// Topics makes a fresh set of topics, replicated to every broker.
func (k *KafkaCluster) Topics(t testing.TB, partitions int32) kafka.Config {
	t.Helper()
	return topics(t, kafka.Config{Brokers: k.Addrs(), Partitions: partitions, ReplicationFactor: int16(len(k.Brokers))})
}

// Close kills the brokers and removes their data.
func (k *KafkaCluster) Close() {
	for _, b := range k.Brokers {
		b.Close()
	}
}

// quickJVM starts fast and stays small: what a test needs of a broker is correctness.
var quickJVM = []string{"-Xmx512m", "-XX:TieredStopAtLevel=1"}

var sharedKafka = sync.OnceValues(func() (*KafkaCluster, error) { return StartKafka(context.Background(), 1, quickJVM...) })

// StartKafka starts a cluster, also for programs that are no tests. jvm are Java's own flags. It tries again on other
// ports when one was taken between its choice and the start.
func StartKafka(ctx context.Context, brokers int, jvm ...string) (k *KafkaCluster, err error) {
	for range 3 {
		if k, err = tryKafka(ctx, brokers, jvm); err == nil {
			return k, nil
		}
	}
	return nil, fmt.Errorf("start Apache Kafka: %w", err)
}

func tryKafka(ctx context.Context, brokers int, jvm []string) (*KafkaCluster, error) {
	nodes := make([]node, brokers)
	for i := range nodes {
		var err error
		if nodes[i], err = newNode(i + 1); err != nil {
			return nil, err
		}
	}
	k := &KafkaCluster{make([]*KafkaServer, brokers)}
	var starting errgroup.Group
	for i, n := range nodes {
		starting.Go(func() (err error) {
			k.Brokers[i], err = n.start(ctx, nodes, jvm)
			return err
		})
	}
	if err := starting.Wait(); err != nil {
		k.Brokers = slices.DeleteFunc(k.Brokers, func(b *KafkaServer) bool { return b == nil })
		k.Close()
		return nil, err
	}
	return k, nil
}

// node is a broker to be: its id, folder and addresses.
type node struct {
	id                       int
	folder, addr, controller string
}

func newNode(id int) (n node, err error) {
	n.id = id
	if n.folder, err = newFolder("kafka-"); err != nil {
		return n, err
	}
	if n.addr, err = freeAddr(); err != nil {
		return n, err
	}
	n.controller, err = freeAddr()
	return n, err
}

// start formats the node's storage and starts it as one of all.
func (n node) start(ctx context.Context, all []node, jvm []string) (*KafkaServer, error) {
	java, err := kafkaJars()
	if err != nil {
		return nil, err
	}
	properties := filepath.Join(n.folder, "server.properties")
	logging := filepath.Join(n.folder, "log4j2.properties")
	if err := os.WriteFile(properties, []byte(n.properties(all)), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(logging, []byte(kafkaLogging), 0o600); err != nil {
		return nil, err
	}
	command := slices.Concat(java[:1], jvm, []string{"-Dlog4j2.configurationFile=" + logging}, java[1:])
	if err := formatStorage(ctx, command, properties); err != nil {
		return nil, err
	}
	server, err := startServer(ctx, n.folder, append(command, "kafka.Kafka", properties), func(ctx context.Context) error {
		return kafkaReady(ctx, n.addr, len(all))
	})
	if err != nil {
		return nil, err
	}
	return &KafkaServer{server, n.addr}, nil
}

func formatStorage(ctx context.Context, java []string, properties string) error {
	java = append(java[:len(java):len(java)], "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", properties)
	out, err := exec.CommandContext(ctx, java[0], java[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format the broker's storage: %w\n%s", err, out)
	}
	return nil
}

func (n node) properties(all []node) string {
	voters := make([]string, len(all))
	for i, v := range all {
		voters[i] = fmt.Sprintf("%d@%s", v.id, v.controller)
	}
	replicas, inSync := len(all), min(2, len(all))
	return strings.Join([]string{
		"process.roles=broker,controller",
		fmt.Sprint("node.id=", n.id),
		"controller.quorum.voters=" + strings.Join(voters, ","),
		"listeners=PLAINTEXT://" + n.addr + ",CONTROLLER://" + n.controller,
		"advertised.listeners=PLAINTEXT://" + n.addr,
		"controller.listener.names=CONTROLLER",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(n.folder, "data"),
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		// A broker that was killed may register again once its old session is over.
		"broker.session.timeout.ms=3000",
		"broker.heartbeat.interval.ms=500",
		fmt.Sprint("offsets.topic.replication.factor=", replicas),
		"offsets.topic.num.partitions=4",
		fmt.Sprint("transaction.state.log.replication.factor=", replicas),
		fmt.Sprint("transaction.state.log.min.isr=", inSync),
		"transaction.state.log.num.partitions=4",
		fmt.Sprint("share.coordinator.state.topic.replication.factor=", replicas),
		fmt.Sprint("share.coordinator.state.topic.min.isr=", inSync),
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

// kafkaReady returns when the broker answers and knows of as many brokers as a topic is to be placed on.
func kafkaReady(ctx context.Context, addr string, brokers int) error {
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
		known, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
		if err == nil && len(known.Brokers) >= brokers {
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
func topics(t testing.TB, cfg kafka.Config) kafka.Config {
	t.Helper()
	cfg.TopicPrefix = prefix(t)
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
