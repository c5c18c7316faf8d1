package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Endpoint is one of a merchant's.
type Endpoint struct{ ID, Org, URL string }

// Answers reports that it answers 200 at once.
func (e Endpoint) Answers() bool { return strings.Contains(e.URL, OK+"/") }

// Endpoints makes endpoints that are answered in one way, on so many hosts, ten an organization. What tells them from
// others is their name.
func (m *Merchants) Endpoints(name, answer string, count, hosts int) []Endpoint {
	all := make([]Endpoint, count)
	for i := range all {
		all[i] = Endpoint{
			ID:  id.Derive(id.Endpoint, name, fmt.Sprint(i)),
			Org: fmt.Sprintf("org_%s_%05d", name, i/10),
			URL: m.URL(i%hosts, answer) + "/" + fmt.Sprint(i),
		}
	}
	return all
}

// Secret signs everything.
const Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAA"

const eventType = "loop.transition.executed"

// Feed puts events on the topics.
type Feed struct {
	cluster kafka.Config
	client  *kgo.Client
	fed     int
	failed  error
}

func newFeed(s Setup) (*Feed, error) {
	cluster := s.cluster()
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{Records: 50_000, Bytes: 256 << 20, Timeout: time.Minute, Linger: 2 * time.Millisecond},
		slog.New(slog.DiscardHandler))
	return &Feed{cluster: cluster, client: client}, err
}

func (f *Feed) close() { f.client.Close() }

// Add puts more endpoints into the table.
func (d *Deliverer) Add(ctx context.Context, endpoints []Endpoint) error {
	return d.feed.putEndpoints(ctx, d.setup, endpoints)
}

func (f *Feed) putEndpoints(ctx context.Context, s Setup, endpoints []Endpoint) error {
	keys, err := seal.NewKeyring(s.SecretsKey)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		sealed, err := keys.Seal([]byte(Secret), seal.EndpointSecret(e.ID))
		if err != nil {
			return err
		}
		now := time.Now().UnixMilli()
		f.put(ctx, schemas.Endpoints, e.Org, schemas.EndpointKey(e.Org, e.ID), &webhooksv1.Endpoint{
			Id: e.ID, OrganizationId: e.Org, Url: e.URL, Enabled: true, EventTypes: []string{"*"}, Signatures: []string{"v1"},
			Secrets: []*webhooksv1.SigningSecret{{SealedSecret: sealed}}, Version: 1, CreatedUnixMs: now, UpdatedUnixMs: now,
		})
		f.put(ctx, schemas.Endpoints, e.Org, []byte(e.Org), &webhooksv1.EndpointSet{Version: 1, Endpoints: 10})
	}
	return f.flush(ctx)
}

func (f *Feed) put(ctx context.Context, topic, routing string, key []byte, m proto.Message) {
	value, err := proto.Marshal(m)
	if err != nil {
		f.failed = errors.Join(f.failed, err)
		return
	}
	f.client.Produce(ctx, &kgo.Record{Topic: f.cluster.Topic(topic), Partition: f.cluster.PartitionOf(routing), Key: key, Value: value},
		func(_ *kgo.Record, err error) {
			if err != nil {
				fmt.Println("feed:", err) // and the counts will not agree
			}
		})
}

func (f *Feed) flush(ctx context.Context) error { return errors.Join(f.failed, f.client.Flush(ctx)) }

// Fed is how many events were fed so far, each for one endpoint.
func (d *Deliverer) Fed() int { return d.feed.fed }

// Feed puts so many events on the log, each for one endpoint, in turn; at a rate, or at once where that is 0. pick chooses
// the i-th event's endpoint.
func (d *Deliverer) Feed(ctx context.Context, events int, rate float64, pick func(i int) Endpoint) error {
	began := time.Now()
	for i := range events {
		if rate > 0 {
			if ahead := time.Duration(float64(i)/rate*1e9) - time.Since(began); ahead > 0 {
				select {
				case <-time.After(max(ahead, time.Millisecond)):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		d.feed.send(ctx, pick(i), time.Now())
	}
	return d.feed.flush(ctx)
}

// FeedWindow puts events on the log as they reach the merchants: so many are on their way at a time.
func (d *Deliverer) FeedWindow(ctx context.Context, m *Merchants, events, window int, pick func(i int) Endpoint) error {
	start, err := m.Count()
	if err != nil {
		return err
	}
	now := start
	for i := range events {
		for i-(now-start) >= window {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
			if now, err = m.Count(); err != nil {
				return err
			}
		}
		d.feed.send(ctx, pick(i), time.Now())
	}
	return d.feed.flush(ctx)
}

// Each is a pick that takes the endpoints in turn.
func Each(endpoints []Endpoint) func(int) Endpoint {
	return func(i int) Endpoint { return endpoints[i%len(endpoints)] }
}

// send writes what fan-out writes of an event that one endpoint wants.
func (f *Feed) send(ctx context.Context, e Endpoint, now time.Time) {
	event := id.Derive(id.Event, f.cluster.TopicPrefix, fmt.Sprint(f.fed))
	delivery := id.Derive(id.Delivery, event, e.ID, "")
	data := Data(f.fed, now)
	f.fed++
	ms := now.UnixMilli()
	f.put(ctx, schemas.DeliveryRows, e.ID, []byte(delivery), &webhooksv1.DeliveryRow{
		DeliveryId: delivery, OrganizationId: e.Org, EndpointId: e.ID, EventId: event, EventType: eventType,
		Status: schemas.DeliveryWaiting, AcceptedUnixMs: ms, NextAttemptUnixMs: ms, Version: 1, CreatedUnixMs: ms,
	})
	f.put(ctx, schemas.EventRows, e.Org, []byte(event), &webhooksv1.EventRow{
		EventId: event, OrganizationId: e.Org, Type: eventType, Source: "betterdata", OccurredUnixMs: ms, AcceptedUnixMs: ms,
		SchemaVersion: 1, Matched: 1, Data: data,
	})
	f.put(ctx, schemas.Deliveries, e.ID, []byte(event), &webhooksv1.Deliveries{
		Event:              &webhooksv1.OutboundEvent{Id: event, OrganizationId: e.Org, Type: eventType, AcceptedUnixMs: ms, Body: Body(event, e.Org, now, data)},
		EndpointSetVersion: 1, CreatedUnixMs: ms,
		Targets: []*webhooksv1.Target{{DeliveryId: delivery, EndpointId: e.ID, EndpointVersion: 1}},
	})
}

// Body is an event as it is sent.
func Body(event, org string, at time.Time, data []byte) []byte {
	return fmt.Appendf(nil, `{"id":%q,"type":%q,"timestamp":%q,"organizationId":%q,"source":"betterdata","subject":null,"correlationId":null,`+
		`"causationId":null,"schemaVersion":1,"data":%s}`, event, eventType, at.UTC().Format("2006-01-02T15:04:05.000Z"), org, data)
}

// madeAt stands before the time of an event's making, for the merchants to know how long it took.
const madeAt = `"madeAt":`

var lines = strings.Repeat(`{"sku":"SKU-48151","quantity":"23","locationId":"loc-42","note":"Reordered after the weekly count"},`, 40)

// Data is the n-th event's: 0.8 to 2.8 kB, so that bodies are of 1 to 3 kB.
func Data(n int, at time.Time) []byte {
	const line = len(`{"sku":"SKU-48151","quantity":"23","locationId":"loc-42","note":"Reordered after the weekly count"},`)
	count := 7 + n*7%21
	return fmt.Appendf(nil, `{"loopId":"scm.procurement","aggregateId":"agg-%d",`+madeAt+`%d,"fromState":"requested","toState":"approved",`+
		`"transitionId":"tr-%d","actor":{"type":"user","id":"usr_%d"},"lines":[%s]}`, n, at.UnixNano(), n, n%1000, lines[:count*line-1])
}

// Waited is how many records were written so far of deliveries that had to wait: payloads, states and their ends.
func (d *Deliverer) Waited(ctx context.Context) (n int64, err error) {
	ends, err := kadm.NewClient(d.feed.client).ListEndOffsets(ctx, d.feed.cluster.Topic(schemas.Retries))
	ends.Each(func(end kadm.ListedOffset) { n += end.Offset })
	return n, errors.Join(err, ends.Error())
}
