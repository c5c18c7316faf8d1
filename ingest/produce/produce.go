// Package produce makes the edge's records durable: Send returns nil only after all in-sync replicas have a record.
//
// Nothing is queued that a crash could lose, since whoever sent a request waits for the outcome. Memory is bounded by a
// Budget that counts a request's body from before it is read until the fate of its record is known, also when its sender
// was answered 503 meanwhile.
package produce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
)

// Config bounds the producer. Zero values take the defaults.
type Config struct {
	Kafka kafka.Config
	// Timeout is how long a sender waits; default 5 s. Kafka's own delivery time-out lies a second below it.
	Timeout time.Duration
	// Linger is how long a record may wait for others to share its batch; default 2 ms.
	Linger time.Duration
	// MaxBytes bounds the bodies held at any time; default 256 MiB.
	MaxBytes int64
}

const (
	defaultTimeout  = 5 * time.Second
	defaultLinger   = 2 * time.Millisecond
	defaultMaxBytes = 256 << 20
	maxRecords      = 100_000
	// minDelivery is the least that kgo takes for a record's time-out.
	minDelivery = time.Second
	// requestOverhead is how much longer than the broker's own time-out an answer of the broker is awaited.
	requestOverhead = 5 * time.Second
)

// ErrUnavailable is returned when a record was not acknowledged in time. It may be on the log nevertheless: the sender
// repeats it with the same id.
var ErrUnavailable = errors.New("not acknowledged by Kafka")

// Producer sends records. Its methods may be called from many goroutines.
type Producer struct {
	Budget  *Budget
	client  *kgo.Client
	cfg     Config
	tickets sync.Pool
}

// New makes a Producer; it connects when it is first needed.
func New(cfg Config, log *slog.Logger) (*Producer, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Linger <= 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	delivery := max(cfg.Timeout-time.Second, minDelivery)
	client, err := kafka.NewProducer(cfg.Kafka, kafka.ProducerLimits{
		Records: maxRecords, Bytes: int(2 * cfg.MaxBytes), Timeout: delivery, Linger: cfg.Linger,
	}, log,
		// A record whose request was written and never answered must end too, or memory would be held for as long as a
		// broker hangs. What is repeated after that is recognised by its id.
		kgo.AllowIdempotentProduceCancellation(),
		kgo.ProduceRequestTimeout(delivery),
		kgo.RequestTimeoutOverhead(requestOverhead),
		// Compressing would cost the edge more than the rest of its work; brokers may compress topics.
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
	if err != nil {
		return nil, fmt.Errorf("ingest producer: %w", err)
	}
	p := &Producer{Budget: NewBudget(cfg.MaxBytes), client: client, cfg: cfg}
	p.tickets.New = func() any { return newTicket(p.Budget) }
	return p, nil
}

// Record is one record to send. Its slices must not be changed after Send, whatever that returns.
type Record struct {
	// Topic is without the prefix.
	Topic string
	// RoutingKey decides the partition and is the record's key.
	RoutingKey string
	Value      []byte
	Headers    []kgo.RecordHeader
	// Reserved bytes of the Budget are given back once the record's fate is known.
	Reserved int64
}

// Send returns nil once the record is durable, and an error that wraps ErrUnavailable when that did not come to pass
// within the time-out.
func (p *Producer) Send(r Record) error {
	t := p.tickets.Get().(*ticket)
	t.reserved = r.Reserved
	t.record = kgo.Record{
		Topic: p.cfg.Kafka.Topic(r.Topic), Partition: p.cfg.Kafka.PartitionOf(r.RoutingKey),
		Key: []byte(r.RoutingKey), Value: r.Value, Headers: r.Headers,
	}
	t.timer.Reset(p.cfg.Timeout)
	p.client.TryProduce(context.Background(), &t.record, t.promise)
	select {
	case err := <-t.done:
		t.timer.Stop()
		t.record = kgo.Record{}
		p.tickets.Put(t)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil
	case <-t.timer.C:
		// The client still holds the ticket's record: it is left to the garbage collector.
		return fmt.Errorf("%w within %s", ErrUnavailable, p.cfg.Timeout)
	}
}

// TrySend hands a record to the client and calls done, from another goroutine or at once, when its fate is known.
func (p *Producer) TrySend(r Record, partition int32, done func(error)) {
	p.client.TryProduce(context.Background(), &kgo.Record{
		Topic: p.cfg.Kafka.Topic(r.Topic), Partition: partition, Key: []byte(r.RoutingKey), Value: r.Value, Headers: r.Headers,
	}, func(_ *kgo.Record, err error) { done(err) })
}

// Client is the Kafka client, for questions about the cluster.
func (p *Producer) Client() *kgo.Client { return p.client }

// Close waits, until ctx ends, for what is under way, closes the connections and returns how many records were left.
func (p *Producer) Close(ctx context.Context) (unsent int64) {
	if p.client.Flush(ctx) != nil {
		unsent = p.client.BufferedProduceRecords()
	}
	p.client.Close()
	return unsent
}

// ticket is one sender's wait.
type ticket struct {
	record   kgo.Record
	reserved int64
	done     chan error
	timer    *time.Timer
	promise  func(*kgo.Record, error)
}

func newTicket(budget *Budget) *ticket {
	t := &ticket{done: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	t.promise = func(_ *kgo.Record, err error) {
		budget.Give(t.reserved)
		t.done <- err
	}
	return t
}

// Budget bounds the bytes of bodies in memory.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget makes a Budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{max: bytes} }

// Take reserves bytes, or reports that there are not enough.
func (b *Budget) Take(bytes int64) bool {
	if b.used.Add(bytes) > b.max {
		b.used.Add(-bytes)
		return false
	}
	return true
}

// Give returns reserved bytes.
func (b *Budget) Give(bytes int64) { b.used.Add(-bytes) }

// Used is the number of bytes reserved.
func (b *Budget) Used() int64 { return b.used.Load() }
