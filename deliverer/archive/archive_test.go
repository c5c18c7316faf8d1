package archive_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/rows"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org       = "org_1"
	partition = 1
	dlv, ep   = "dlv_1", "ep_1"
)

// record is a log and a ClickHouse, with an archive over both.
type record struct {
	*archive.Archive
	t      *testing.T
	kafka  kafka.Config
	client *kgo.Client
	url    string
	conn   driver.Conn
}

func newRecord(t *testing.T) *record {
	r := &record{t: t, kafka: testenv.FakeKafka(t), url: testenv.ClickHouse(t)}
	var err error
	r.client, err = kgo.NewClient(kgo.SeedBrokers(r.kafka.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(r.client.Close)
	require.NoError(t, clickhouse.Migrate(t.Context(), r.url, slog.New(slog.DiscardHandler)))
	r.conn, err = clickhouse.Open(t.Context(), r.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.conn.Close() })
	r.Archive, err = archive.New(r.kafka, r.conn, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r
}

// log produces a row's record.
func (r *record) log(topic string, partition int32, m proto.Message) {
	r.t.Helper()
	value, err := proto.Marshal(m)
	require.NoError(r.t, err)
	require.NoError(r.t, r.client.ProduceSync(r.t.Context(), &kgo.Record{Topic: r.kafka.Topic(topic), Partition: partition, Value: value}).FirstErr())
}

// insert is what the sink of deliveries does with a row, but for its commit.
func (r *record) insert(row *webhooksv1.DeliveryRow) {
	r.t.Helper()
	require.NoError(r.t, r.conn.Exec(r.t.Context(), `INSERT INTO deliveries (delivery_id, organization_id, endpoint_id, event_id, status,
		accepted_at, attempt_count, test, version, created_at) VALUES (?, ?, ?, ?, ?, fromUnixTimestamp64Milli(?), ?, ?, ?, now64(3))`,
		row.DeliveryId, row.OrganizationId, row.EndpointId, row.EventId, row.Status, row.AcceptedUnixMs, row.AttemptCount, row.Test, row.Version))
}

func (r *record) commit(offset int64) { r.t.Helper(); r.commitOf(partition, offset) }

func (r *record) commitOf(partition int32, offset int64) {
	r.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: r.kafka.Topic(schemas.DeliveryRows), Partition: partition, At: offset})
	require.NoError(r.t, kadm.NewClient(r.client).CommitAllOffsets(r.t.Context(), r.kafka.Topic("sink.deliveries"), offsets))
}

// sinks fills the tables from the log.
func (r *record) sinks() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, table := range []sink.Table{rows.Deliveries(), rows.Events()} {
		s, err := sink.New(table, sink.Config{Kafka: r.kafka, ClickHouse: r.conn, FlushInterval: 10 * time.Millisecond},
			slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.NoError(r.t, err)
		running.Go(func() { _ = s.Run(ctx) })
	}
	r.t.Cleanup(func() { cancel(); running.Wait() })
}

type result struct {
	*archive.Delivery
	err error
}

func (r *record) find(delivery string) <-chan result { return r.findOf(partition, delivery) }

func (r *record) findOf(partition int32, delivery string) <-chan result {
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	done := make(chan result, 1)
	go func() {
		defer cancel()
		d, err := r.Find(ctx, partition, org, delivery)
		done <- result{d, err}
	}()
	return done
}

// accepted is recent: what is older than the table keeps is gone as it is inserted.
var accepted = time.Now().UnixMilli()

func row(version uint64) *webhooksv1.DeliveryRow {
	return &webhooksv1.DeliveryRow{
		DeliveryId: dlv, OrganizationId: org, EndpointId: ep, EventId: "evt_1", Status: "dead", Test: true,
		AcceptedUnixMs: accepted, AttemptCount: uint32(version - 1), Version: version,
	}
}

func TestWhatIsFoundIsWholeAsOfTheQuestion(t *testing.T) {
	r := newRecord(t)
	for version := range uint64(3) {
		r.log(schemas.DeliveryRows, partition, row(version+1))
	}
	r.insert(row(2))
	r.commit(2)
	found := r.find(dlv)
	select {
	case got := <-found:
		require.Fail(t, "a row that is not the newest was taken for it", "%+v", got)
	case <-time.After(time.Second):
	}
	// What is written after the question is not waited for.
	r.log(schemas.DeliveryRows, partition, row(9))
	r.insert(row(3))
	r.commit(3)
	got := <-found
	require.NoError(t, got.err)
	require.EqualValues(t, 3, got.Row.Version)
	require.EqualValues(t, 2, got.Row.AttemptCount)
	require.Equal(t, ep, got.Row.EndpointId)
	require.True(t, got.Row.Test)
}

func TestASinkThatStandsStillHoldsUpNoOtherPartition(t *testing.T) {
	r := newRecord(t)
	r.log(schemas.DeliveryRows, partition, row(1))
	var stuck []<-chan result
	for range 8 {
		stuck = append(stuck, r.find(dlv))
	}
	time.Sleep(300 * time.Millisecond) // all of them have looked
	r.log(schemas.DeliveryRows, partition+1, row(1))
	r.insert(row(1))
	r.commitOf(partition+1, 1)
	select {
	case got := <-r.findOf(partition+1, dlv):
		require.NoError(t, got.err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "it waits for those whose sink is behind")
	}
	r.commit(1)
	for _, done := range stuck {
		require.NoError(t, (<-done).err)
	}
}

// What the log has let go of is in the table, or was never of interest: no sink comes to commit that it passed it.
func TestTheStartOfTheLogIsPassed(t *testing.T) {
	r := newRecord(t)
	r.log(schemas.DeliveryRows, partition, row(1))
	gone := kadm.Offsets{}
	gone.Add(kadm.Offset{Topic: r.kafka.Topic(schemas.DeliveryRows), Partition: partition, At: 1})
	deleted, err := kadm.NewClient(r.client).DeleteRecords(t.Context(), gone)
	require.NoError(t, err)
	require.NoError(t, deleted.Error())
	r.insert(row(1))
	require.NoError(t, (<-r.find(dlv)).err)
}

func TestAnEventIsMadeAsItWasSent(t *testing.T) {
	r := newRecord(t)
	r.sinks()
	for name, e := range map[string]cloudevent.Event{
		"plain":             {Type: "loop.completed", Source: "/billing", OccurredUnixMS: 1_700_000_000_001, Data: []byte(`{"a":1}`)},
		"everything":        {Type: "loop.completed", Source: "/x", Subject: `a"b` + "\u2028", CorrelationID: "c", CausationID: "evt_0", OccurredUnixMS: 1, Data: []byte(`{"a":1}`)},
		"data as it came":   {Type: "x", Source: "/x", OccurredUnixMS: 1_700_000_000_000, Data: []byte("{ \"n\" : 1.50,\n\t\"h\":\"<&>\\u00e9é\" }")},
		"before the epoch":  {Type: "x", Source: "/x", OccurredUnixMS: -86_400_000*365*60 - 1, Data: []byte(`{}`)},
		"in the far future": {Type: "x", Source: "/x", OccurredUnixMS: 253_402_300_799_999, Data: []byte(`{}`)},
		"nothing but data":  {Data: []byte(`{}`)},
	} {
		t.Run(name, func(t *testing.T) {
			e.ID, e.Organization = "evt_"+name, org
			d := &webhooksv1.DeliveryRow{
				DeliveryId: "dlv_" + name, OrganizationId: org, EndpointId: ep, EventId: e.ID, EventType: e.Type, Status: "delivered",
				AcceptedUnixMs: time.Now().UnixMilli(), AttemptCount: 7, Version: 8, ReplayId: "rpl_1", CreatedUnixMs: 1_700_000_000_000, EndedUnixMs: 5,
			}
			r.log(schemas.DeliveryRows, partition, d)
			r.log(schemas.EventRows, r.kafka.PartitionOf(org), &webhooksv1.EventRow{
				EventId: e.ID, OrganizationId: org, Type: e.Type, Source: e.Source, Subject: e.Subject, OccurredUnixMs: e.OccurredUnixMS,
				AcceptedUnixMs: d.AcceptedUnixMs, CorrelationId: e.CorrelationID, CausationId: e.CausationID, SchemaVersion: 1, Matched: 1, Data: e.Data,
			})
			got := <-r.find(d.DeliveryId)
			require.NoError(t, got.err)
			require.True(t, proto.Equal(d, got.Row), "%v", got.Row)
			require.Equal(t, string(outbound.Body(&e, outbound.SchemaVersion)), string(got.Event.Body))
			require.Equal(t, []any{e.ID, org, e.Type, d.AcceptedUnixMs},
				[]any{got.Event.Id, got.Event.OrganizationId, got.Event.Type, got.Event.AcceptedUnixMs})
		})
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	r := newRecord(t)
	_, err := r.Find(t.Context(), partition, org, dlv)
	require.ErrorIs(t, err, archive.ErrNotFound, "nothing was ever written")
	r.sinks()
	other := row(1)
	other.OrganizationId = "org_2"
	r.log(schemas.DeliveryRows, partition, other)
	got := <-r.find(dlv)
	require.ErrorIs(t, got.err, archive.ErrNotFound, "another organization's")

	gone := row(1)
	gone.DeliveryId, gone.Test = "dlv_2", false
	r.log(schemas.DeliveryRows, partition, gone)
	got = <-r.find("dlv_2")
	require.ErrorIs(t, got.err, archive.ErrNotFound, "its event is not in the record")
}

func TestASearchEndsWithItsContext(t *testing.T) {
	r := newRecord(t)
	r.log(schemas.DeliveryRows, partition, row(1))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := r.Find(ctx, partition, org, dlv)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
