package sink

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (r *running) inserts() float64 {
	var m dto.Metric
	require.NoError(r.t, r.metrics.inserts.Write(&m))
	return m.GetCounter().GetValue()
}

// slowly leaves batches of all partitions time to go together.
func slowly(c *Config) { c.FlushInterval = time.Second }

func TestBatchesOfSeveralPartitionsAreOnePart(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	require.NoError(t, f.conn.Exec(t.Context(), "SYSTEM STOP MERGES inbound_events"))
	f.produce(400)
	s := f.start(plainTable(), slowly)
	f.exactlyOnce()
	f.settled()
	require.Equal(t, s.inserts(), float64(f.query("SELECT uniqExact(_part) FROM inbound_events")))
	require.Less(t, s.inserts(), counted(s, resultInserted))
}

// An owner of all partitions freezes with an INSERT for several on the way. They go to two others, each of which finds out about its own.
func TestInsertOfSeveralPartitionsWhoseOwnersChange(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]time.Duration{
		"it arrives before its deadline": 400 * time.Millisecond,
		"it arrives after its deadline":  2 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := quickFixture(t)
			frozen := f.start(plainTable(), slowly)
			f.produce(40)
			f.exactlyOnce()
			f.proxy.breakNext(delayInsert, 1, hold)
			f.produce(400)
			require.Eventually(t, func() bool { return f.proxy.hit.Load() <= 0 }, 10*time.Second, time.Millisecond)
			frozen.kill()

			one, other := f.start(plainTable()), f.start(plainTable())
			f.exactlyOnce()
			f.proxy.allCome(t)
			f.produce(100)
			f.exactlyOnce()
			f.settled()
			judged := 0.0
			for _, s := range []*running{one, other} {
				judged += counted(s, resultFound) + counted(s, resultAbsent)
				require.Zero(t, counted(s, resultStopped))
			}
			require.Greater(t, judged, 1.0)
		})
	}
}

func TestKillEndsTheInsertsOfItsPartition(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(plainTable())
	require.Eventually(t, func() bool { return s.ready.Load() }, 20*time.Second, time.Millisecond)
	name := request(1, batchOf(1, 5)).with(request(14, batchOf(1, 5))).token(s.topicID)
	ended := make(chan error, 1)
	go func() {
		ctx := clickhouse.Context(context.Background(), clickhouse.WithQueryID(name))
		ended <- f.conn.Exec(ctx, "SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0")
	}()
	running := func() bool {
		return f.query("SELECT count() FROM system.processes WHERE query_id = '"+name+"'") == 1
	}
	require.Eventually(t, running, 10*time.Second, 10*time.Millisecond)
	for _, partition := range []int32{4, 5, 41} {
		require.NoError(t, s.Sink.kill(t.Context(), partition))
	}
	require.True(t, running(), "it is not of these partitions")
	require.NoError(t, s.Sink.kill(t.Context(), 14))
	var refused *clickhouse.Exception
	require.ErrorAs(t, <-ended, &refused)
	require.False(t, running())
}

// request is a first try; batchOf one row or more of a table partition.
func request(partition int32, b batch) *insertRequest {
	return &insertRequest{
		partition: partition, in: intent{first: b.first, last: b.last, try: 1, deadline: int64(partition)},
		rows: b.rows, unit: b.unit, bytes: b.bytes, ctx: context.Background(), result: make(chan error, 1),
	}
}

func batchOf(rows int, unit int64) batch {
	b := batch{rows: plainTable().newRows(), last: int64(rows) - 1, unit: unit, bytes: rows * 100}
	for offset := range rows {
		value, _ := proto.Marshal(&webhooksv1.InboundRow{EventId: fmt.Sprint("e-", offset), Source: "stripe"}) // plain values
		_, _ = b.rows.decode(value)
		b.rows.append(0, int64(offset))
	}
	return b
}

func (r *insertRequest) with(others ...*insertRequest) bundle { return append(bundle{r}, others...) }

func (r *insertRequest) tried(try uint32) *insertRequest {
	r.in.try = try
	return r
}

func TestWhichBatchesGoTogether(t *testing.T) {
	cfg := Config{MaxRows: 10, MaxBytes: 900}
	cases := map[string]struct {
		first, next *insertRequest
		together    bool
	}{
		"those of one table partition":         {request(1, batchOf(2, 5)), request(2, batchOf(3, 5)), true},
		"not of two table partitions":          {request(1, batchOf(2, 5)), request(2, batchOf(3, 6)), false},
		"not more rows than one INSERT takes":  {request(1, batchOf(2, 5)), request(2, batchOf(9, 5)), false},
		"not more bytes than one INSERT takes": {request(1, batchOf(4, 5)), request(2, batchOf(6, 5)), false},
		"not one that was tried before":        {request(1, batchOf(2, 5)), request(2, batchOf(3, 5)).tried(2), false},
		"not with one that was tried before":   {request(1, batchOf(2, 5)).tried(2), request(2, batchOf(3, 5)), false},
		"not with one that is full":            {request(1, batchOf(10, 5)), request(2, batchOf(0, 5)), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g := bundle{c.first}
			require.Equal(t, c.together, g.open(cfg) && g.takes(c.next, cfg))
		})
	}
}

// ClickHouse takes an INSERT for another whose token it has seen: that must have the same rows.
func TestATokenIsThatOfAllTheBatches(t *testing.T) {
	token := func(second batch, try uint32) string {
		return request(1, batchOf(1, 5)).with(request(2, second).tried(try)).token("T")
	}
	require.Equal(t, "T/1/2/0-0.1,0-1.1", token(batchOf(2, 5), 1))
	require.NotEqual(t, token(batchOf(2, 5), 1), token(batchOf(3, 5), 1), "it has grown since")
	require.NotEqual(t, token(batchOf(2, 5), 1), token(batchOf(2, 5), 2))
}

func TestBundleKeepsToTheEarliestDeadline(t *testing.T) {
	require.Equal(t, int64(3), request(7, batchOf(1, 5)).with(request(3, batchOf(1, 5)), request(9, batchOf(1, 5))).deadline())
}

func TestBundleIsAllOfItsRows(t *testing.T) {
	g := request(1, batchOf(2, 5)).with(request(2, batchOf(3, 5)))
	for range 2 {
		table, err := g[0].rows.external("batch", g.rows())
		require.NoError(t, err)
		ids := table.Block().Columns[0]
		require.Equal(t, 5, ids.Rows())
		require.Equal(t, "e-1", ids.Row(1, false))
		require.Equal(t, "e-0", ids.Row(2, false))
	}
}

// slowServer answers an INSERT when it is told to.
type slowServer struct {
	driver.Conn
	inserts chan context.Context
	answer  chan error
}

func (s *slowServer) Exec(ctx context.Context, _ string, _ ...any) error {
	s.inserts <- ctx
	select {
	case err := <-s.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// insertTogether has three partitions insert, of which the server has one INSERT, with ctx.
func insertTogether(t *testing.T) (server *slowServer, workers []*worker, results []chan error, ctx context.Context) {
	server = &slowServer{inserts: make(chan context.Context, 3), answer: make(chan error)}
	s, err := New(plainTable(), Config{ClickHouse: server, FlushInterval: time.Second}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	// All three are waited for, and no others.
	s.inserter.linger, s.cfg.MaxRows = time.Hour, 6
	running, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.inserter.run(running)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	for partition := range int32(3) {
		w := newWorker(s, partition, 0, "")
		w.batch = batchOf(2, 5)
		result := make(chan error, 1)
		go func() { result <- s.inserter.insert(w, intent{last: 1, rows: 2, try: 1, deadline: s.deadline()}) }()
		workers, results = append(workers, w), append(results, result)
	}
	return server, workers, results, <-server.inserts
}

func TestAPartitionTakenAwayLeavesTheOthersTheirInsert(t *testing.T) {
	t.Parallel()
	server, workers, results, ctx := insertTogether(t)
	workers[1].cancel()
	require.ErrorIs(t, <-results[1], context.Canceled, "it does not wait for the server")
	require.NoError(t, ctx.Err())
	// Its buffers are not lent to others: the INSERT may still read them.
	require.Nil(t, workers[1].batch.rows)
	server.answer <- nil
	require.NoError(t, <-results[0])
	require.NoError(t, <-results[2])
}

func TestInsertEndsWhenAllOfItsPartitionsAreTakenAway(t *testing.T) {
	t.Parallel()
	_, workers, results, ctx := insertTogether(t)
	for i, w := range workers {
		w.cancel()
		require.ErrorIs(t, <-results[i], context.Canceled)
	}
	<-ctx.Done()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
}
