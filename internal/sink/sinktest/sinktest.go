// Package sinktest checks the tables that rooms describe for internal/sink: a record goes in at one end, and the row
// that comes out of ClickHouse is compared column by column.
package sinktest

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/sink"
	"github.com/betterdata/webhooks/internal/testenv"
)

// Partition is the one that records are produced to.
const Partition = 2

// Case is one record and the whole row it must become, as JSON shows it, but for src_topic, which differs each time.
type Case struct {
	Table  sink.Table
	Record proto.Message
	Row    map[string]any
}

// Now is the present in milliseconds since the epoch.
func Now() int64 { return time.Now().UnixMilli() }

// Time is how ClickHouse writes a time.
func Time(unixMS int64) string {
	return time.UnixMilli(unixMS).UTC().Format("2006-01-02 15:04:05.000")
}

// RowsOf runs the cases, which must be of all the tables, one at a time.
func RowsOf(t *testing.T, tables []sink.Table, cases map[string]Case) {
	t.Helper()
	for _, table := range tables {
		require.True(t, slices.ContainsFunc(values(cases), func(c Case) bool { return c.Table.Name == table.Name }),
			"no case for table %s", table.Name)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			want, err := json.Marshal(c.Row)
			require.NoError(t, err)
			require.JSONEq(t, string(want), c.row(t))
		})
	}
}

func values(cases map[string]Case) (list []Case) {
	for _, c := range cases {
		list = append(list, c)
	}
	return list
}

// row takes the record through Kafka and the sink.
func (c Case) row(t *testing.T) (row string) {
	log := slog.New(slog.DiscardHandler)
	cfg, url := testenv.FakeKafka(t), testenv.ClickHouse(t)
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close()
	s, err := sink.New(c.Table, sink.Config{
		Kafka: cfg, ClickHouse: conn, FlushInterval: 10 * time.Millisecond,
		Prepare: func(ctx context.Context) error { return clickhouse.Migrate(ctx, url, log) },
	}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(t, <-ended)
	}()
	value, err := proto.Marshal(c.Record)
	require.NoError(t, err)
	producer, err := kafka.NewProducer(cfg, kafka.ProducerLimits{Records: 10, Bytes: 1 << 20, Timeout: 10 * time.Second}, log)
	require.NoError(t, err)
	defer producer.Close()
	require.NoError(t, producer.ProduceSync(t.Context(),
		&kgo.Record{Topic: cfg.Topic(c.Table.Topic), Partition: Partition, Value: value}).FirstErr())
	testenv.Eventually(t, 30*time.Second, func() bool {
		return conn.QueryRow(t.Context(), "SELECT formatRowNoNewline('JSONEachRow', * EXCEPT '^src_topic$') FROM "+c.Table.Name+
			" SETTINGS output_format_json_quote_64bit_integers = 0").Scan(&row) == nil
	})
	return row
}
