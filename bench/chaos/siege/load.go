package siege

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// load writes what edges would: events and commands of all organizations, at a steady rate or as fast as they are taken.
type load struct {
	cluster kafka.Config
	client  *kgo.Client
	rng     *rand.Rand
	orgs    []*organization

	// given counts what was handed to the client, written what was acknowledged, by topic and partition; head is the offset
	// after the last of them. failed is the first that was not acknowledged.
	given, written, head map[string][]atomic.Int64
	failed               atomic.Pointer[error]
}

func newLoad(cluster kafka.Config, orgs int, seed uint64) (*load, error) {
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{
		Records: 200_000, Bytes: 512 << 20, Timeout: 10 * time.Minute, Linger: 2 * time.Millisecond,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	l := &load{cluster: cluster, client: client, rng: rand.New(rand.NewPCG(seed, 1))}
	for _, counts := range []*map[string][]atomic.Int64{&l.given, &l.written, &l.head} {
		*counts = map[string][]atomic.Int64{
			schemas.Inbound: make([]atomic.Int64, cluster.Partitions), schemas.InboundUnrouted: make([]atomic.Int64, cluster.Partitions),
		}
	}
	for n := range orgs {
		l.orgs = append(l.orgs, newOrganization(n, rand.New(rand.NewPCG(seed, uint64(n)+2))))
	}
	return l, nil
}

// steady sends so many a second until ctx ends.
func (l *load) steady(ctx context.Context, rate int) {
	began, sent := time.Now(), 0
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
			l.send(l.orgs[l.rng.IntN(len(l.orgs))])
		}
	}
}

// maxAhead is how many records of a partition may wait when they are sent as fast as they are taken: a second of work or
// two, so that a partition that comes back has enough to do and what it has missed is soon over.
const maxAhead = 2000

// saturate sends as fast as the processors take until ctx ends. Each partition has its own measure: one that stands still
// does not keep the others from work.
func (l *load) saturate(ctx context.Context, taken func(partition int32) int64) {
	fire.AsTaken(ctx, func() bool {
		o := l.orgs[l.rng.IntN(len(l.orgs))]
		p := l.cluster.PartitionOf(o.name)
		if l.waiting(p)-taken(p) >= maxAhead {
			return false
		}
		l.send(o)
		return true
	})
}

// waiting is where a partition of inbound will end once what is on its way has arrived.
func (l *load) waiting(p int32) int64 {
	onItsWay := l.given[schemas.Inbound][p].Load() - l.written[schemas.Inbound][p].Load()
	return l.head[schemas.Inbound][p].Load() + onItsWay
}

func (l *load) send(o *organization) { l.write(o, o.next(time.Now())) }

// finish sends what was held back, and waits until all is acknowledged.
func (l *load) finish(ctx context.Context) error {
	for _, o := range l.orgs {
		for _, m := range o.last() {
			l.write(o, m)
		}
	}
	if err := l.client.Flush(ctx); err != nil {
		return fmt.Errorf("write the rest of the load: %w", err)
	}
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// write sends a message to where the edge would.
func (l *load) write(o *organization, m *message) {
	topic, key, r := schemas.Inbound, o.name, record(o, m, time.Now())
	if o.way != direct && (m.command == nil || m.command.GetCreateEndpoint() == nil) {
		topic, key = schemas.InboundUnrouted, o.account()
	}
	partition := l.cluster.PartitionOf(key)
	r.Topic, r.Partition, r.Key = l.cluster.Topic(topic), partition, []byte(key)
	l.given[topic][partition].Add(1)
	// A context of its own: what is on its way when the load stops must be known to have arrived.
	l.client.Produce(context.Background(), r, func(r *kgo.Record, err error) {
		if err != nil {
			err = fmt.Errorf("write to %s: %w", topic, err)
			l.failed.CompareAndSwap(nil, &err)
			return
		}
		l.head[topic][partition].Store(r.Offset + 1)
		l.written[topic][partition].Add(1)
	})
}

// record is a message as the edge writes it at that time.
func record(o *organization, m *message, now time.Time) *kgo.Record {
	if m.command != nil {
		m.command.IssuedUnixMs = now.UnixMilli()
		r, err := cloudevent.Command(m.command)
		if err != nil {
			panic("BUG: a command does not encode: " + err.Error())
		}
		return r
	}
	r := &kgo.Record{Value: m.body}
	for _, h := range [...][2]string{
		{schemas.HeaderSpecVersion, schemas.SpecVersion},
		{schemas.HeaderID, m.id},
		{schemas.HeaderSource, schemas.SourceStripe},
		{schemas.HeaderType, m.eventType},
		{schemas.HeaderContentType, schemas.ContentTypeJSON},
		{schemas.HeaderEventID, eventID(m.id)},
		{schemas.HeaderAccount, o.customer},
		{schemas.HeaderAcceptedAt, now.UTC().Format(cloudevent.TimeLayout)},
	} {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	if m.created != 0 {
		r.Headers = append(r.Headers, kgo.RecordHeader{
			Key: schemas.HeaderTime, Value: []byte(time.Unix(m.created, 0).UTC().Format(cloudevent.TimeLayout)),
		})
	}
	switch {
	case o.way == direct:
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: schemas.HeaderOrganization, Value: []byte(o.name)})
	case m.named != "":
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: schemas.HeaderNamedOrganization, Value: []byte(m.named)})
	}
	return r
}

// eventID is our id of Stripe's event.
func eventID(stripes string) string { return id.Derive(id.Event, schemas.SourceStripe, stripes) }
