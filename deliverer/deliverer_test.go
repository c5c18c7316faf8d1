package deliverer_test

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const org = "org_1"

// system is a Kafka, a ClickHouse, and one deliverer at a time.
type system struct {
	t        *testing.T
	kafka    kafka.Config
	client   *kgo.Client
	url      string
	conn     driver.Conn
	ring     *seal.Keyring
	stateDir string
}

func newSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, kafka: testenv.FakeKafka(t), url: testenv.ClickHouse(t), stateDir: t.TempDir()}
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	s.client = client
	require.NoError(t, clickhouse.Migrate(t.Context(), s.url, quiet()))
	s.conn, err = clickhouse.Open(t.Context(), s.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.conn.Close() })
	s.ring, err = seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	return s
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start runs a deliverer and returns what stops it and waits.
func (s *system) start() (stop func()) {
	s.t.Helper()
	reg := prometheus.NewRegistry()
	endpoints, err := table.New(table.Config{Kafka: s.kafka, StateDir: s.stateDir, Topic: schemas.Endpoints}, quiet(), reg)
	require.NoError(s.t, err)
	d, err := deliverer.New(deliverer.Config{
		Kafka: s.kafka, StateDir: s.stateDir, FlushInterval: 50 * time.Millisecond,
		Dispatch: dispatch.Config{
			Worker:  "w1",
			Retries: schedule.Policy{Delays: []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond}},
		},
	}, deliverer.Deps{
		Auth:       httpapi.AdminKey("key"),
		Endpoints:  endpoints,
		Guard:      netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}),
		Keys:       s.ring,
		ClickHouse: s.conn,
		Migrate:    func(ctx context.Context) error { return clickhouse.Migrate(ctx, s.url, quiet()) },
		Log:        quiet(), Registerer: reg,
	})
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	tableCtx, stopTable := context.WithCancel(context.Background())
	running.Go(func() { _ = endpoints.Run(tableCtx) })
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stopOnce := sync.OnceFunc(func() {
		cancel()
		err := <-done
		stopTable()
		running.Wait()
		_ = endpoints.Close()
		require.NoError(s.t, err)
	})
	s.t.Cleanup(stopOnce)
	testenv.Eventually(s.t, 30*time.Second, func() bool { return d.Check(ctx) == nil }, "deliverer ready")
	return stopOnce
}

func (s *system) produce(topic, routingKey string, key, value []byte) {
	s.t.Helper()
	r := &kgo.Record{
		Topic: s.kafka.Topic(topic), Partition: kafka.PartitionOf(routingKey, s.kafka.Partitions), Key: key, Value: value,
	}
	require.NoError(s.t, s.client.ProduceSync(s.t.Context(), r).FirstErr())
}

// endpoint writes an endpoint and returns its id and secret.
func (s *system) endpoint(name, url string, version uint64) (endpointID, secret string) {
	s.t.Helper()
	endpointID, secret = id.Derive(id.Endpoint, name), signing.NewSecret()
	sealed, err := s.ring.Seal([]byte(secret), seal.EndpointSecret(endpointID))
	require.NoError(s.t, err)
	ep, err := proto.Marshal(&webhooksv1.Endpoint{
		Id: endpointID, OrganizationId: org, Url: url, Enabled: true, EventTypes: []string{"*"}, Concurrency: 4, TimeoutMs: 5000, Version: 1,
		Secrets: []*webhooksv1.SigningSecret{{SealedSecret: sealed}},
	})
	require.NoError(s.t, err)
	s.produce(schemas.Endpoints, org, []byte(org+"/"+endpointID), ep)
	set, err := proto.Marshal(&webhooksv1.EndpointSet{Version: version})
	require.NoError(s.t, err)
	s.produce(schemas.Endpoints, org, []byte(org), set)
	return endpointID, secret
}

// event makes a delivery of one event for one endpoint.
func (s *system) event(name, endpoint string, setVersion uint64) {
	s.t.Helper()
	now := time.Now().UnixMilli()
	value, err := proto.Marshal(&webhooksv1.Deliveries{
		Event: &webhooksv1.OutboundEvent{
			Id: id.Derive(id.Event, name), OrganizationId: org, Type: "order.created", AcceptedUnixMs: now,
			Body: []byte(`{"id":"` + id.Derive(id.Event, name) + `","name":"` + name + `"}`),
		},
		EndpointSetVersion: setVersion, CreatedUnixMs: now,
		Targets: []*webhooksv1.Target{{DeliveryId: delivery(name, endpoint), EndpointId: endpoint, EndpointVersion: 1}},
	})
	require.NoError(s.t, err)
	s.produce(schemas.Deliveries, endpoint, []byte(name), value)
}

func delivery(event, endpoint string) string { return id.Derive(id.Delivery, event, endpoint, "") }

func (s *system) number(sql string, args ...any) uint64 {
	s.t.Helper()
	var n uint64
	require.NoError(s.t, s.conn.QueryRow(s.t.Context(), sql, args...).Scan(&n))
	return n
}

func TestDeliveredAndRecorded(t *testing.T) {
	s := newSystem(t)
	receiver := testenv.NewReceiver(t)
	s.start()
	endpoint, secret := s.endpoint("a", receiver.URL+"/hook", 1)
	s.event("e1", endpoint, 1)

	got := receiver.Wait(t, 20*time.Second, 1)[0]
	got.Verify(t, secret)
	require.NoError(t, signing.VerifyBetterData(got.Header.Get("x-betterdata-signature"), []string{secret}, got.Body, time.Now(), 300*time.Second))
	require.Equal(t, id.Derive(id.Event, "e1"), got.Header.Get("webhook-id"))
	require.Equal(t, delivery("e1", endpoint), got.Header.Get("x-betterdata-delivery"))

	testenv.Eventually(t, 20*time.Second, func() bool {
		return s.number("SELECT count() FROM deliveries FINAL WHERE status = 'delivered' AND attempt_count = 1") == 1
	}, "delivery recorded")
	testenv.Eventually(t, 20*time.Second, func() bool {
		return s.number("SELECT count() FROM delivery_attempts WHERE delivery_id = ? AND number = 1 AND outcome = 'success' AND status_code = 200 AND worker = 'w1'",
			delivery("e1", endpoint)) == 1
	}, "attempt recorded")
}

// Deliveries to a receiver that fails now and then go on over restarts: each one ends well, each attempt that the
// receiver saw is one row, and no row is of an attempt that it did not see.
func TestEveryDeliveryEndsAndEveryAttemptIsARow(t *testing.T) {
	s := newSystem(t)
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(r testenv.Received) int {
		// Not so often that a breaker opens: that takes ten failures in a row.
		draw := crc32.ChecksumIEEE([]byte(r.Header.Get("x-betterdata-delivery")))
		switch r.Header.Get("x-betterdata-attempt") {
		case "1":
			if draw%4 == 0 {
				return 503
			}
		case "2":
			if draw%8 == 0 {
				return 500
			}
		}
		return 200
	})
	stop := s.start()
	const events, endpoints = 40, 5
	ids := make([]string, endpoints)
	for i := range ids {
		ids[i], _ = s.endpoint(fmt.Sprint("ep", i), receiver.URL+"/hook", uint64(i+1))
	}
	for n := range events {
		for _, endpoint := range ids {
			s.event(fmt.Sprintf("e%03d", n), endpoint, endpoints)
		}
		if n == events/3 || n == 2*events/3 {
			stop()
			stop = s.start()
		}
	}
	testenv.Eventually(t, 60*time.Second, func() bool {
		return s.number("SELECT count() FROM deliveries FINAL WHERE status = 'delivered'") == events*endpoints
	}, "all delivered")

	seen := map[string]int{}
	for _, r := range receiver.Received() {
		seen[r.Header.Get("x-betterdata-delivery")+"/"+r.Header.Get("x-betterdata-attempt")]++
	}
	testenv.Eventually(t, 20*time.Second, func() bool {
		return s.number("SELECT count() FROM delivery_attempts") >= uint64(len(seen))
	}, "all attempts recorded")
	require.EqualValues(t, len(seen), s.number("SELECT count() FROM delivery_attempts"))
	require.EqualValues(t, len(seen), s.number("SELECT uniqExact(attempt_id) FROM delivery_attempts"))
	rows, err := s.conn.Query(t.Context(), "SELECT concat(delivery_id, '/', toString(number)), maybe_repeated FROM delivery_attempts")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var attempt string
		var maybe uint8
		require.NoError(t, rows.Scan(&attempt, &maybe))
		require.NotZero(t, seen[attempt])
		require.True(t, seen[attempt] == 1 || maybe == 1, "what was sent twice says so")
	}
	require.NoError(t, rows.Err())
}
