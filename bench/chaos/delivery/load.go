package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// eventType is of every event.
const eventType = "order.allocation_succeeded"

// made is a delivery as fan-out made it, or what took its place.
type made struct {
	id, event, endpoint, org string
	kind                     kind
	partition                int32
	replay                   string
	unmatched                bool
	at                       time.Time
}

// load writes what fan-out would, and what organizations' owners do to endpoints. What it sends and changes is one
// goroutine's.
type load struct {
	cluster kafka.Config
	client  *kgo.Client
	rng     *rand.Rand
	orgs    map[string]*organization
	list    []*organization
	byID    map[string]*endpoint
	later   []later
	// recent are events that may be replayed.
	recent  []*webhooksv1.OutboundEvent
	meddled time.Time
	// commands are the deliverer's, to be obeyed.
	commands chan *webhooksv1.Command

	// sent counts the deliveries to prompt endpoints by partition.
	sent   []atomic.Int64
	failed atomic.Pointer[error]

	mu   sync.Mutex
	made map[string]made
	// events are the ids of all, with how many endpoints were to hear of each.
	events map[string]int
}

func newLoad(cfg Config, cluster kafka.Config, receivers []string, keys *seal.Keyring) (*load, error) {
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{
		Records: 200_000, Bytes: 512 << 20, Timeout: 10 * time.Minute, Linger: 2 * time.Millisecond,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	l := &load{
		cluster: cluster, client: client, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		orgs: map[string]*organization{}, byID: map[string]*endpoint{}, commands: make(chan *webhooksv1.Command, 10_000),
		sent: make([]atomic.Int64, cluster.Partitions), made: map[string]made{}, events: map[string]int{},
	}
	now := time.Now()
	for n := range cfg.Endpoints {
		// Ten to an organization, of every kind.
		name := fmt.Sprint("org_", n/10)
		o := l.orgs[name]
		if o == nil {
			o = &organization{name: name}
			l.orgs[name], l.list = o, append(l.list, o)
		}
		e, err := newEndpoint(n, name, receivers[n%len(receivers)], keys, now)
		if err != nil {
			return nil, err
		}
		e.partition = cluster.PartitionOf(e.record.Id)
		o.endpoints, l.byID[e.record.Id] = append(o.endpoints, e), e
		l.change(o, e, func(*webhooksv1.Endpoint) {})
	}
	return l, nil
}

// steady sends so many events a second until ctx ends.
func (l *load) steady(ctx context.Context, rate int) {
	began, sent := time.Now(), 0
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case command := <-l.commands:
			l.obey(command, time.Now())
			continue
		case <-tick.C:
		}
		l.manage(time.Now())
		for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
			l.send(l.draw(nil))
		}
	}
}

// manage changes endpoints now and then.
func (l *load) manage(now time.Time) {
	l.undo(now, false)
	if now.Sub(l.meddled) > 200*time.Millisecond {
		l.meddled = now
		l.meddle(now)
	}
}

// maxAhead is how many deliveries to the prompt endpoints of a partition may be under way when they are made as fast as
// they end. With more of them no attempt would end within its time-out, for want of a processor.
const maxAhead = 100

// saturate sends to prompt endpoints as fast as their deliveries end, until ctx ends. Each partition has its own measure:
// one that stands still does not keep the others from work.
func (l *load) saturate(ctx context.Context, ended func(partition int32) int64) {
	fire.AsTaken(ctx, func() bool {
		o, e := l.draw(func(e *endpoint) bool { return e.kind == prompt })
		if l.sent[e.partition].Load()-ended(e.partition) >= maxAhead {
			return false
		}
		l.send(o, e)
		return true
	})
}

// draw finds an endpoint that is there.
func (l *load) draw(wanted func(*endpoint) bool) (*organization, *endpoint) {
	for {
		o := l.list[l.rng.IntN(len(l.list))]
		e := o.endpoints[l.rng.IntN(len(o.endpoints))]
		if !e.deleted && (wanted == nil || wanted(e)) {
			return o, e
		}
	}
}

// send makes an event for an endpoint, one time in four for others of its organization too, one time in fifty for nobody;
// and one time in thirty it replays an earlier one instead.
func (l *load) send(o *organization, e *endpoint) {
	now := time.Now()
	if len(l.recent) > 0 && l.rng.IntN(30) == 0 {
		l.replay(o, e, now)
		return
	}
	event := l.event(o, now)
	switch targets := []*endpoint{e}; {
	case l.rng.IntN(50) == 0:
		l.deliver(o, event, nil, "", now)
	case l.rng.IntN(4) == 0:
		for _, other := range o.endpoints {
			if other != e && !other.deleted && other.kind == e.kind {
				targets = append(targets, other)
			}
		}
		l.deliver(o, event, targets, "", now)
	default:
		l.deliver(o, event, targets, "", now)
	}
}

var padding = strings.Repeat("x", 300)

func (l *load) event(o *organization, now time.Time) *webhooksv1.OutboundEvent {
	eventID := id.New(id.Event)
	event := &webhooksv1.OutboundEvent{
		Id: eventID, OrganizationId: o.name, Type: eventType, AcceptedUnixMs: now.UnixMilli(),
		Body: fmt.Appendf(nil, `{"id":%q,"type":%q,"data":{"text":%q}}`, eventID, eventType, padding),
	}
	if l.recent = append(l.recent, event); len(l.recent) > 1000 {
		l.recent = l.recent[500:]
	}
	return event
}

// replay sends an earlier event of the organization again, to one endpoint.
func (l *load) replay(o *organization, e *endpoint, now time.Time) {
	for range 20 {
		event := l.recent[l.rng.IntN(len(l.recent))]
		if event.OrganizationId == o.name && e.record.Enabled {
			l.deliver(o, event, []*endpoint{e}, id.New(id.Replay), now)
			return
		}
	}
}

// deliver writes what fan-out writes for an event.
func (l *load) deliver(o *organization, event *webhooksv1.OutboundEvent, to []*endpoint, replay string, now time.Time) {
	byPartition := map[int32][]*webhooksv1.Target{}
	matched := 0
	for _, e := range to {
		m := made{
			id: id.Derive(id.Delivery, event.Id, e.record.Id, replay), event: event.Id, endpoint: e.record.Id, org: o.name,
			kind: e.kind, partition: e.partition, replay: replay, unmatched: !e.record.Enabled, at: now,
		}
		l.row(m, event)
		if m.unmatched {
			continue
		}
		matched++
		byPartition[e.partition] = append(byPartition[e.partition], &webhooksv1.Target{
			DeliveryId: m.id, EndpointId: e.record.Id, EndpointVersion: e.record.Version,
		})
		if e.kind == prompt {
			l.sent[e.partition].Add(1)
		}
	}
	if len(to) == 0 {
		l.row(made{
			id: id.Derive(id.Delivery, event.Id, "", replay), event: event.Id, org: o.name,
			kind: -1, partition: l.cluster.PartitionOf(o.name), unmatched: true, at: now,
		}, event)
	}
	if replay == "" {
		l.eventRow(event, matched)
	}
	for partition, targets := range byPartition {
		l.write(schemas.Deliveries, partition, event.Id, &webhooksv1.Deliveries{
			Event: event, EndpointSetVersion: o.set, Targets: targets, ReplayId: replay, CreatedUnixMs: now.UnixMilli(),
		})
	}
}

// row writes a delivery's first row.
func (l *load) row(m made, event *webhooksv1.OutboundEvent) {
	row := &webhooksv1.DeliveryRow{
		DeliveryId: m.id, OrganizationId: m.org, EndpointId: m.endpoint, EventId: m.event, EventType: event.Type,
		Status: schemas.DeliveryWaiting, AcceptedUnixMs: event.AcceptedUnixMs, NextAttemptUnixMs: m.at.UnixMilli(),
		ReplayId: m.replay, Version: 1, CreatedUnixMs: m.at.UnixMilli(),
	}
	if m.unmatched {
		row.Status, row.NextAttemptUnixMs = schemas.DeliveryUnmatched, 0
	}
	l.mu.Lock()
	l.made[m.id] = m
	l.mu.Unlock()
	l.write(schemas.DeliveryRows, m.partition, m.id, row)
}

func (l *load) eventRow(event *webhooksv1.OutboundEvent, matched int) {
	l.mu.Lock()
	l.events[event.Id] = matched
	l.mu.Unlock()
	l.write(schemas.EventRows, l.cluster.PartitionOf(event.OrganizationId), event.Id, &webhooksv1.EventRow{
		EventId: event.Id, OrganizationId: event.OrganizationId, Type: event.Type, Source: "/chaos", SchemaVersion: 1,
		OccurredUnixMs: event.AcceptedUnixMs, AcceptedUnixMs: event.AcceptedUnixMs, Matched: uint32(matched), Data: event.Body,
	})
}

// write hands a record to the client; a nil message is a tombstone.
func (l *load) write(topic string, partition int32, key string, m proto.Message) {
	r := &kgo.Record{Topic: l.cluster.Topic(topic), Partition: partition, Key: []byte(key)}
	if m != nil {
		value, err := proto.Marshal(m)
		if err != nil {
			panic("BUG: a record does not encode: " + err.Error())
		}
		r.Value = value
	}
	// A context of its own: what is on its way when the load stops must be known to have arrived.
	l.client.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
		if err != nil {
			err = fmt.Errorf("write to %s: %w", topic, err)
			l.failed.CompareAndSwap(nil, &err)
		}
	})
}

// finish undoes what was done to endpoints, and waits until everything is acknowledged.
func (l *load) finish(ctx context.Context) error {
	l.undo(time.Now(), true)
	if err := l.client.Flush(ctx); err != nil {
		return fmt.Errorf("write the rest of the load: %w", err)
	}
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// kindOf is an endpoint's kind and partition; -1 where there is none.
func (l *load) kindOf(endpoint string) (kind, int32) {
	if e := l.byID[endpoint]; e != nil {
		return e.kind, e.partition
	}
	return -1, 0
}

// matched is how many deliveries were made that must end.
func (l *load) matched() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.made {
		if !m.unmatched {
			n++
		}
	}
	return n
}
