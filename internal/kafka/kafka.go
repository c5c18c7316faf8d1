// Package kafka is what every client of the log shares: how connections are made, how topics are created and their
// partition count asserted, and how a key finds its partition. It holds no business logic.
package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kslog"

	"github.com/betterdata/webhooks/schemas"
)

// Config is how to reach the cluster.
type Config struct {
	Brokers []string
	// TopicPrefix stands before every topic, group and transactional id.
	TopicPrefix string
	// Partitions of keyed topics; permanent once the topics exist.
	Partitions int32
	// ReplicationFactor of topics when they are created. 1 also says that there is one broker.
	ReplicationFactor int16
}

// Topic is the full name of a topic.
func (c Config) Topic(name string) string { return c.TopicPrefix + name }

// PartitionOf is the partition of a routing key in the plan's topics.
func (c Config) PartitionOf(key string) int32 { return PartitionOf(key, c.Partitions) }

// PartitionOf is the partition of a routing key: murmur2, as the Java client and kgo's default partitioner do it, so
// that any Kafka tool finds a key where it is. The result never changes for a key; it is bound to the partition count.
func PartitionOf(key string, partitions int32) int32 {
	// Java's toPositive: the sign bit is dropped, not negated.
	return int32(murmur2(key)&0x7fffffff) % partitions
}

// ReadHeader is the value of a record's first header with that key, or "".
func ReadHeader(headers []kgo.RecordHeader, key string) string {
	for i := range headers {
		if headers[i].Key == key {
			return string(headers[i].Value)
		}
	}
	return ""
}

// Options are those of every client: brokers, name, logging. A request to a broker that is away is retried for as long
// as its caller waits; a context bounds it.
func Options(cfg Config, log *slog.Logger) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID("webhooks"),
		kgo.WithLogger(kslog.New(slog.New(quiet{log.Handler(), &told{kinds: map[string]time.Time{}}}))),
		// A broker that came back must be noticed in the time a test, or a merchant, waits.
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.RetryBackoffFn(retryBackoff),
		// Metrics pushed to the brokers (KIP-714) would keep a compressor a client: over half of an idle process's heap.
		kgo.DisableClientMetrics(),
	}
}

// retryBackoff doubles from 50 ms to 1 s: a restarted broker is found within a second, a dead one is not hammered.
func retryBackoff(fails int) time.Duration {
	if fails > 5 {
		return time.Second
	}
	return 50 * time.Millisecond << max(fails-1, 0)
}

// ProducerLimits bounds what a producer keeps in memory while the cluster is slow or away.
type ProducerLimits struct {
	// Records and Bytes buffered; TryProduce fails with kgo.ErrMaxBuffered beyond either.
	Records int
	Bytes   int
	// Timeout ends a record that the cluster has not acknowledged; its promise gets an error. A record may still have
	// been written: the caller repeats it with the same id.
	Timeout time.Duration
	// Linger collects records into larger batches; 0 sends at once.
	Linger time.Duration
}

// ProducerOptions are those of an idempotent producer: acknowledged by all in-sync replicas, records never reordered or
// doubled by a retry, partitions set by the caller (PartitionOf).
func ProducerOptions(limits ProducerLimits) []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MaxBufferedRecords(limits.Records),
		kgo.MaxBufferedBytes(limits.Bytes),
		kgo.RecordDeliveryTimeout(limits.Timeout),
		kgo.ProducerLinger(limits.Linger),
		kgo.ProducerBatchMaxBytes(schemas.MaxRecordBytes),
	}
}

// NewProducer makes a client for producing outside of transactions. The caller closes it.
func NewProducer(cfg Config, limits ProducerLimits, log *slog.Logger, extra ...kgo.Opt) (*kgo.Client, error) {
	opts := append(Options(cfg, log), ProducerOptions(limits)...)
	return kgo.NewClient(append(opts, extra...)...)
}

// quiet is for the client's own messages. It reports every transaction and rebalance at info: those are kept below the
// log unless that is at debug. And it warns of every try to reach a broker that is away: one message of a kind every
// ten seconds is enough.
type quiet struct {
	slog.Handler
	told *told
}

const quietFor = 10 * time.Second

type told struct {
	mu    sync.Mutex
	kinds map[string]time.Time // by message; the client has some hundred
}

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	if level >= slog.LevelWarn {
		return q.Handler.Enabled(ctx, level)
	}
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && !q.Handler.Enabled(ctx, slog.LevelDebug) && !q.told.due(r.Message, r.Time) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (t *told) due(message string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.kinds[message]) < quietFor {
		return false
	}
	t.kinds[message] = now
	return true
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.Handler.WithAttrs(attrs), q.told}
}
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name), q.told} }

// murmur2 is Kafka's 32-bit hash of a key (org.apache.kafka.common.utils.Utils.murmur2).
func murmur2(b string) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[3])<<24 | uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
		b = b[4:]
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
