package sink

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

func TestEveryRecordIsOneRow(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.Kafka(t), testenv.ClickHouse(t))
	s := f.start(plainTable())
	for range 20 {
		f.produce(500)
	}
	f.exactlyOnce()
	f.settled()
	require.NoError(t, s.Check(t.Context()))
	require.Eventually(t, func() bool { return s.lag() == 0 }, 10*time.Second, 10*time.Millisecond)

	// The next start takes up where this one stopped.
	s.stop()
	f.start(plainTable())
	f.produce(100)
	f.exactlyOnce()
}

func TestOnlyCommittedRecordsBecomeRows(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.Kafka(t), testenv.ClickHouse(t))
	tx, err := kgo.NewClient(kgo.SeedBrokers(f.kafka.Brokers...), kgo.TransactionalID(f.kafka.Topic("t")),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer tx.Close()
	f.start(plainTable())
	for i := range 10 {
		require.NoError(t, tx.BeginTransaction())
		made := f.made
		require.NoError(t, tx.ProduceSync(t.Context(), f.record(0, f.now), f.record(1, f.now)).FirstErr())
		if i%2 == 0 {
			require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryAbort))
			f.made = made
			continue
		}
		require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryCommit))
	}
	f.exactlyOnce()
	// The markers after the last rows are passed, too.
	f.settled()
}

func TestRecordThatCannotBeDecodedDoesNotBlock(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(plainTable())
	poison := &kgo.Record{Topic: f.kafka.Topic(schemas.InboundRows), Value: []byte("\xff\xff not a row")}
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(0, f.now), poison, f.record(0, f.now)).FirstErr())
	f.exactlyOnce()
	f.settled()
	// Alone in a batch, too.
	require.NoError(t, f.producer.ProduceSync(t.Context(), poison).FirstErr())
	f.settled()
	require.NoError(t, s.Check(t.Context()))
}

func TestBatchesAreCutAtTablePartitions(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	week := 7 * 24 * time.Hour
	var records []*kgo.Record
	for i := range 60 {
		records = append(records, f.record(0, f.now.Add(-time.Duration(i/20)*week)))
	}
	require.NoError(t, f.producer.ProduceSync(t.Context(), records...).FirstErr())
	f.start(plainTable())
	f.exactlyOnce()
	require.Equal(t, uint64(3), f.query("SELECT uniqExact(_partition_id) FROM inbound_events"))
	require.Equal(t, uint64(3), f.query("SELECT uniqExact(_part) FROM inbound_events"))
}

func TestBatchIsOnePart(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	var records []*kgo.Record
	for range 30_000 {
		records = append(records, f.record(2, f.now))
	}
	require.NoError(t, f.conn.Exec(t.Context(), "SYSTEM STOP MERGES inbound_events"))
	require.NoError(t, f.producer.ProduceSync(t.Context(), records...).FirstErr())
	s := f.start(plainTable(), func(c *Config) { c.FlushInterval = time.Second })
	f.exactlyOnce()
	require.Equal(t, counted(s, resultInserted), float64(f.query("SELECT uniqExact(_part) FROM inbound_events")))
}

func TestReplacingTableKeepsTheNewestVersion(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(replacingTable())
	f.putDelivery("a", "waiting", 1, 0)
	f.proxy.breakNext(loseAnswer, 1, 0)
	f.putDelivery("a", "delivered", 2, f.now.UnixMilli())
	f.putDelivery("b", "waiting", 1, 0)
	require.Eventually(t, func() bool {
		return f.query("SELECT count() FROM deliveries FINAL WHERE status = 'delivered' AND ended_at IS NOT NULL OR status = 'waiting' AND ended_at IS NULL") == 2
	}, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, s.Check(t.Context()))
}

func TestStopInsertsWhatItHolds(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(plainTable(), func(c *Config) { c.FlushInterval = time.Hour })
	all := f.produce(100)
	require.Eventually(t, func() bool { return s.buffered.Load() == all }, 10*time.Second, time.Millisecond, "all of it is polled")
	s.stop()
	f.exactlyOnce()
	f.settled()
}

func TestRecordsThatTrickleInArePolledTogether(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(plainTable(), func(c *Config) { c.FlushInterval = time.Hour })
	began, all := time.Now(), f.produce(1)
	for range 100 {
		time.Sleep(5 * time.Millisecond)
		all += f.produce(int(f.kafka.Partitions))
	}
	require.Eventually(t, func() bool { return s.buffered.Load() == all }, 20*time.Second, time.Millisecond, "all of it is polled")
	most := int(time.Since(began)/pollPause) + 1
	for _, w := range s.allWorkers() {
		w.mu.Lock()
		require.LessOrEqual(t, len(w.polls), most)
		w.mu.Unlock()
	}
}

func TestWeekAndMonthAreClickHouses(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	for _, day := range []string{"2024-02-29", "2025-12-28", "2025-12-29", "2026-01-04", "2026-01-05", "2026-03-01", "1970-01-05"} {
		at, err := time.Parse(time.DateOnly, day)
		require.NoError(t, err)
		ms := at.UnixMilli()
		monday := f.query(fmt.Sprintf("SELECT toUInt64(toInt32(toMonday(fromUnixTimestamp64Milli(%d, 'UTC'))) + 3)", ms))
		require.Equal(t, int64(monday)/7, Week(ms), day)
		require.Equal(t, Week(ms), Week(ms+24*3600*1000-1), day)
		month := f.query(fmt.Sprintf("SELECT toUInt64(toYYYYMM(fromUnixTimestamp64Milli(%d, 'UTC')))", ms))
		require.Equal(t, int64(month), Month(ms), day)
	}
	require.Equal(t, int64(-1), Week(-4*24*3600*1000))
}
