package sink

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// plainTable is a small plain table of the contract.
func plainTable() Table {
	type row = *webhooksv1.InboundRow
	return Plain(schemas.InboundRows, "inbound_events",
		func() row { return &webhooksv1.InboundRow{} },
		func(r row) int64 { return Week(r.GetReceivedUnixMs()) },
		String("event_id", row.GetEventId),
		String("source", row.GetSource),
		Time("received_at", row.GetReceivedUnixMs),
	)
}

// replacingTable is the contract's ReplacingMergeTree, in part.
func replacingTable() Table {
	type row = *webhooksv1.DeliveryRow
	return Replacing(schemas.DeliveryRows, "deliveries",
		func() row { return &webhooksv1.DeliveryRow{} },
		String("delivery_id", row.GetDeliveryId),
		String("status", row.GetStatus),
		Time("accepted_at", row.GetAcceptedUnixMs),
		NullTime("ended_at", row.GetEndedUnixMs),
		UInt64("version", row.GetVersion),
	)
}

// TestMain lets more tests run at a time than there are cores: most of them wait, for a deadline or for a disk.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set(fmt.Sprint(2 * runtime.GOMAXPROCS(0)))
	}
	os.Exit(m.Run())
}

// fixture is a topic of rows, a table for them, and a proxy between sink and ClickHouse.
type fixture struct {
	t        *testing.T
	kafka    kafka.Config
	conn     driver.Conn
	proxy    *proxy
	proxied  driver.Conn
	producer *kgo.Client
	made     int
	now      time.Time
}

func newFixture(t *testing.T, cfg kafka.Config, url string) *fixture {
	t.Helper()
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	f := &fixture{t: t, kafka: cfg, now: time.Now()}
	addr := strings.Split(strings.TrimPrefix(url, "clickhouse://"), "/")
	f.proxy = newProxy(t, addr[0])
	f.conn = f.open(url)
	f.proxied = f.open("clickhouse://" + f.proxy.addr + "/" + addr[1])
	producer, err := kafka.NewProducer(cfg, kafka.ProducerLimits{Records: 100_000, Bytes: 256 << 20, Timeout: 30 * time.Second}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(producer.Close)
	f.producer = producer
	return f
}

func quickFixture(t *testing.T) *fixture {
	t.Helper()
	return newFixture(t, testenv.FakeKafka(t), testenv.ClickHouse(t))
}

func (f *fixture) open(url string) driver.Conn {
	conn, err := clickhouse.Open(f.t.Context(), url)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// config flushes quickly, and gives an insert one second.
func (f *fixture) config() Config {
	return Config{
		Kafka: f.kafka, ClickHouse: f.proxied, FlushInterval: 20 * time.Millisecond,
		InsertTimeout: time.Second, HandOver: time.Second, LagInterval: 50 * time.Millisecond,
		heartbeat: 100 * time.Millisecond, maxPause: 500 * time.Millisecond,
	}
}

// running is a sink at work.
type running struct {
	*Sink
	t    *testing.T
	end  context.CancelFunc
	done chan error
	once sync.Once
}

func (f *fixture) start(table Table, adjust ...func(*Config)) *running {
	f.t.Helper()
	cfg := f.config()
	for _, a := range adjust {
		a(&cfg)
	}
	s, err := New(table, cfg, slog.New(slog.NewTextHandler(f.t.Output(), nil)), prometheus.NewRegistry())
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Sink: s, t: f.t, end: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	f.t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	r.once.Do(func() {
		r.end()
		require.NoError(r.t, <-r.done)
	})
}

// kill ends a sink as a SIGKILL would: inserts are cut off, nothing more is committed, the group is not told.
func (r *running) kill() {
	r.once.Do(func() {
		for _, w := range r.allWorkers() {
			w.cancel()
		}
		r.end()
		require.NoError(r.t, <-r.done)
	})
}

// produce writes n rows, spread over the partitions, each with an id of its own.
// The result is the room that the records will take in a sink.
func (f *fixture) produce(n int) (held int64) {
	f.t.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = f.record(int32(f.made)%f.kafka.Partitions, f.now)
	}
	require.NoError(f.t, f.producer.ProduceSync(f.t.Context(), records...).FirstErr())
	for _, r := range records {
		held += int64(size(r))
	}
	return held
}

func (f *fixture) record(partition int32, at time.Time) *kgo.Record {
	value, err := proto.Marshal(&webhooksv1.InboundRow{
		EventId: fmt.Sprint("e-", f.made), Source: "stripe", ReceivedUnixMs: at.UnixMilli(),
	})
	require.NoError(f.t, err)
	f.made++
	return &kgo.Record{Topic: f.kafka.Topic(schemas.InboundRows), Partition: partition, Value: value}
}

// putDelivery writes a version of a row of the Replacing table.
func (f *fixture) putDelivery(id, status string, version uint64, ended int64) {
	f.t.Helper()
	value, err := proto.Marshal(&webhooksv1.DeliveryRow{
		DeliveryId: id, Status: status, Version: version, AcceptedUnixMs: f.now.UnixMilli(), EndedUnixMs: ended,
	})
	require.NoError(f.t, err)
	require.NoError(f.t, f.producer.ProduceSync(f.t.Context(), &kgo.Record{Topic: f.kafka.Topic(schemas.DeliveryRows), Value: value}).FirstErr())
}

// steady waits until a sink has stopped polling: it holds as much as it may, and, twenty looks long, no more.
func (f *fixture) steady(s *running) {
	f.t.Helper()
	held, since := int64(0), 0
	require.Eventually(f.t, func() bool {
		now := s.buffered.Load()
		if now != held || now < int64(s.cfg.MaxBuffered) {
			held, since = now, 0
			return false
		}
		since++
		return since >= 20
	}, 20*time.Second, 10*time.Millisecond, "polling stops")
}

func (f *fixture) query(sql string) (n uint64) {
	f.t.Helper()
	require.NoError(f.t, f.conn.QueryRow(context.Background(), sql).Scan(&n))
	return n
}

// exactlyOnce waits until all rows made are in the table, and the offsets committed, and finds each one once.
func (f *fixture) exactlyOnce() {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.query("SELECT uniqExact(event_id) FROM inbound_events") == uint64(f.made) },
		60*time.Second, 20*time.Millisecond, "all rows arrive")
	require.Equal(f.t, uint64(f.made), f.query("SELECT count() FROM inbound_events"))
	require.Equal(f.t, uint64(f.made), f.query("SELECT uniqExact(src_part, src_offset) FROM inbound_events"))
}

// settled waits until every partition's committed offset is its end, with no batch open.
func (f *fixture) settled() {
	f.t.Helper()
	admin := kadm.NewClient(f.producer)
	topic := f.kafka.Topic(schemas.InboundRows)
	require.Eventually(f.t, func() bool {
		ends, err := admin.ListCommittedOffsets(f.t.Context(), topic)
		require.NoError(f.t, err)
		commits, err := admin.FetchOffsets(f.t.Context(), f.kafka.Topic("sink.inbound_events"))
		require.NoError(f.t, err)
		all := true
		ends.Each(func(end kadm.ListedOffset) {
			at, ok := commits.Lookup(topic, end.Partition)
			all = all && (end.Offset == 0 || ok && at.At == end.Offset && at.Metadata == "")
		})
		return all
	}, 20*time.Second, 20*time.Millisecond, "all offsets are committed")
}

// leaveOpen commits what an owner leaves that dies after announcing a batch.
func (f *fixture) leaveOpen(partition int32, in intent) {
	f.t.Helper()
	f.commit(partition, in.first, mustEncode(f.t, in))
}

func (f *fixture) commit(partition int32, offset int64, metadata string) {
	f.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{
		Topic: f.kafka.Topic(schemas.InboundRows), Partition: partition, At: offset, LeaderEpoch: -1, Metadata: metadata,
	})
	resp, err := kadm.NewClient(f.producer).CommitOffsets(f.t.Context(), f.kafka.Topic("sink.inbound_events"), offsets)
	require.NoError(f.t, err)
	require.NoError(f.t, resp.Error())
}

func (f *fixture) topicID() string {
	f.t.Helper()
	topic := f.kafka.Topic(schemas.InboundRows)
	topics, err := kadm.NewClient(f.producer).ListTopics(f.t.Context(), topic)
	require.NoError(f.t, err)
	return topics[topic].ID.String()
}

// insertRow puts one row into the table, as an earlier owner's insert did.
func (f *fixture) insertRow(partition int32, offset int64, id string) {
	f.t.Helper()
	require.NoError(f.t, f.conn.Exec(f.t.Context(), fmt.Sprintf(
		"INSERT INTO inbound_events (event_id, received_at, src_topic, src_part, src_offset) SELECT '%s', fromUnixTimestamp64Milli(%d), '%s', %d, %d",
		id, f.now.UnixMilli(), f.topicID(), partition, offset)))
}

// fault is what a proxy does to a connection on which it sees an INSERT.
type fault int32

const (
	healthy fault = iota
	// loseAnswer lets the INSERT through and the answer vanish.
	loseAnswer
	// loseInsert lets nothing through.
	loseInsert
	// delayInsert lets it through after hold, when the client has long hung up.
	delayInsert
)

// proxy stands between the sink and ClickHouse.
type proxy struct {
	addr, target string
	fault        atomic.Int32
	hit          atomic.Int32
	hold         time.Duration
	// late counts the connections that were struck and whose bytes may still arrive.
	late atomic.Int32
}

func newProxy(t *testing.T, target string) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	p := &proxy{addr: ln.Addr().String(), target: target}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

// breakNext makes the next n inserts suffer the fault.
func (p *proxy) breakNext(what fault, n int32, hold time.Duration) {
	p.hold = hold
	p.hit.Store(n)
	p.fault.Store(int32(what))
}

// allCome waits until all that was struck has come to the server or never will.
func (p *proxy) allCome(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return p.hit.Load() <= 0 && p.late.Load() == 0 }, 30*time.Second, 10*time.Millisecond)
}

func (p *proxy) strike(chunk []byte) fault {
	what := fault(p.fault.Load())
	if what == healthy || !bytes.Contains(chunk, []byte("INSERT INTO")) || p.hit.Add(-1) < 0 {
		return healthy
	}
	return what
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	var mute atomic.Bool
	go func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			if !mute.Load() {
				if _, err := client.Write(buf[:n]); err != nil {
					return
				}
			}
		}
	}()
	late := &lateWriter{to: server}
	struck := false
	defer func() {
		late.close()
		if struck {
			p.late.Add(-1)
		}
	}()
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if n > 0 {
			what := p.strike(buf[:n])
			if what != healthy && !struck {
				struck = true
				p.late.Add(1)
			}
			switch what {
			case loseAnswer:
				mute.Store(true)
				// Long enough for the server to read it all and write the part.
				late.closeAfter = 500 * time.Millisecond
			case loseInsert:
				late.closeAfter = 0
				_ = server.Close()
				return
			case delayInsert:
				mute.Store(true)
				late.hold, late.closeAfter = p.hold, 500*time.Millisecond
			}
			if _, err := late.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// lateWriter passes bytes on, after hold where one is set, and outlives the client by closeAfter.
type lateWriter struct {
	to               net.Conn
	hold, closeAfter time.Duration
	held             bytes.Buffer
}

func (w *lateWriter) Write(b []byte) (int, error) {
	if w.hold > 0 {
		return w.held.Write(b)
	}
	return w.to.Write(b)
}

func (w *lateWriter) close() {
	if w.hold > 0 {
		time.Sleep(w.hold)
		_, _ = io.Copy(w.to, &w.held)
	}
	time.Sleep(w.closeAfter)
	_ = w.to.Close()
}
