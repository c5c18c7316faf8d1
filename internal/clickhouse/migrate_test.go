package clickhouse_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	client "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/testenv"
)

// contract is CONTRACT §8, and the roll-ups beside it: names and types as system.columns shows them.
var contract = map[string]string{
	"delivery_attempts": `attempt_id String, delivery_id String, event_id String, endpoint_id String,
		organization_id String, event_type L, number UInt16, trigger L, started_at T, duration_ms UInt32,
		queue_ms UInt32, dns_ms UInt32, connect_ms UInt32, tls_ms UInt32, first_byte_ms UInt32, body_ms UInt32,
		outcome L, status_code UInt16, error_class L, response_excerpt String, response_bytes UInt32,
		request_bytes UInt32, next_attempt_at Nullable(T), delivery_status L, replay_id String, test UInt8,
		maybe_repeated UInt8, worker L, src_topic L, src_part Int32, src_offset Int64`,
	"events": `event_id String, organization_id String, type L, source L, subject String, occurred_at T,
		accepted_at T, cause_source L, cause_event_id String, correlation_id String, causation_id String,
		schema_version UInt16, matched UInt16, data String, src_topic L, src_part Int32, src_offset Int64`,
	"deliveries": `delivery_id String, organization_id String, endpoint_id String, event_id String, event_type L,
		status L, reason L, accepted_at T, next_attempt_at Nullable(T), ended_at Nullable(T), attempt_count UInt16,
		replay_id String, test UInt8, version UInt64, created_at T`,
	"ledger": `organization_id String, minute DateTime, accepted UInt64, delivered UInt64, waiting UInt64,
		dead UInt64, unmatched UInt64`,
	"inbound_events": `source L, source_event_id String, event_id String, organization_id String, account String,
		type L, outcome L, reason L, received_at T, src_topic L, src_part Int32, src_offset Int64`,
	"billing_audit": `entry_id String, organization_id String, action L, source_event_id String,
		customer_id String, subscription_id String, invoice_id String, amount Nullable(Int64), currency L,
		plan_before L, plan_after L, snapshot_version UInt64, livemode UInt8, occurred_at T, recorded_at T,
		src_topic L, src_part Int32, src_offset Int64`,
	"attempts_per_minute": `minute DateTime, outcome L, error_class L, attempts UInt64, maybe_repeated_attempts UInt64, durations Q`,
	"endpoint_attempts_per_minute": `organization_id String, endpoint_id String, minute DateTime, outcome L, error_class L,
		attempts UInt64, maybe_repeated_attempts UInt64, durations Q`,
	"rejected_requests": `rejected_at T, source L, reason L, status UInt16, remote_ip IPv6, user_agent String,
		content_length UInt64, weight UInt32, worker L, src_topic L, src_part Int32, src_offset Int64`,
}

func TestTablesAreTheContract(t *testing.T) {
	conn := migrated(t)
	types := strings.NewReplacer("LowCardinality(String)", "L", "DateTime64(3, 'UTC')", "T",
		"AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)", "Q")
	for table, want := range contract {
		t.Run(table, func(t *testing.T) {
			rows, err := conn.Query(t.Context(),
				"SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = ? ORDER BY position", table)
			require.NoError(t, err)
			defer rows.Close()
			var got []string
			for rows.Next() {
				var name, typ string
				require.NoError(t, rows.Scan(&name, &typ))
				got = append(got, name+" "+types.Replace(typ))
			}
			require.Equal(t, strings.Fields(strings.ReplaceAll(want, ",", " ")), strings.Fields(strings.Join(got, " ")))
		})
	}
}

func TestMigrateFromManyInstancesAtOnce(t *testing.T) {
	url := testenv.ClickHouse(t) + "_new"
	var group errgroup.Group
	for range 8 {
		group.Go(func() error { return clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)) })
	}
	require.NoError(t, group.Wait())
	// And once more, as a later start does.
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))

	conn := open(t, url)
	var tables uint64
	require.NoError(t, conn.QueryRow(t.Context(),
		"SELECT count() FROM system.tables WHERE database = currentDatabase() AND name != 'goose_db_version'").Scan(&tables))
	require.Equal(t, uint64(len(contract)), tables)
	require.NoError(t, conn.Exec(t.Context(), "DROP DATABASE `"+url[strings.LastIndex(url, "/")+1:]+"`"))
}

func TestPlainTablesKeepAcknowledgedInserts(t *testing.T) {
	conn := migrated(t)
	rows, err := conn.Query(t.Context(), `SELECT name, engine_full FROM system.tables
		WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'goose_db_version'`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var name, engine string
		require.NoError(t, rows.Scan(&name, &engine))
		for _, setting := range []string{
			"non_replicated_deduplication_window = 100000", "fsync_after_insert = 1", "fsync_part_directory = 1",
		} {
			require.Contains(t, engine, setting, name)
		}
	}
}

func TestRetentionIsSetOnce(t *testing.T) {
	conn := migrated(t)
	engine := func(table string) (text string) {
		require.NoError(t, conn.QueryRow(t.Context(),
			"SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = ?", table).Scan(&text))
		return text
	}
	audit := engine("billing_audit")
	for range 2 {
		require.NoError(t, clickhouse.SetRetention(t.Context(), conn, 48*time.Hour))
		require.Contains(t, engine("events"), "TTL toDateTime(accepted_at) + toIntervalHour(48) ")
		require.Contains(t, engine("deliveries"), "toIntervalHour(48)")
		require.Equal(t, audit, engine("billing_audit"))
	}
	require.ErrorContains(t, clickhouse.SetRetention(t.Context(), conn, time.Minute), "RETENTION is 1m0s")
}

func TestLedgerCountsEachDeliveryOnceInItsMinute(t *testing.T) {
	conn := migrated(t)
	require.NoError(t, conn.Exec(t.Context(), `INSERT INTO deliveries
		(organization_id, delivery_id, accepted_at, status, version, replay_id, test)
		SELECT o, d, toStartOfMinute(now64(3, 'UTC')) + toIntervalMinute(m), s, v, r, t FROM values(
			'o String, d String, m Int32, s String, v UInt64, r String, t UInt8',
			('org_1', 'a', 0, 'waiting', 1, '', 0), ('org_1', 'a', 0, 'delivered', 2, '', 0),
			('org_1', 'b', 0, 'dead', 3, '', 0), ('org_1', 'b', 0, 'waiting', 2, '', 0), ('org_1', 'b', 0, 'dead', 3, '', 0),
			('org_1', 'c', 0, 'unmatched', 1, '', 0), ('org_1', 'd', 0, 'waiting', 1, '', 0),
			('org_1', 'e', 0, 'dead', 1, 'rpl_1', 0), ('org_1', 'f', 0, 'dead', 1, '', 1),
			('org_1', 'g', 1, 'delivered', 2, '', 0), ('org_2', 'h', 0, 'waiting', 1, '', 0))`))
	rows, err := conn.Query(t.Context(), `SELECT organization_id, accepted, delivered, waiting, dead, unmatched FROM ledger
		ORDER BY organization_id, minute`)
	require.NoError(t, err)
	defer rows.Close()
	type line struct {
		org                                           string
		accepted, delivered, waiting, dead, unmatched uint64
	}
	var got []line
	for rows.Next() {
		var l line
		require.NoError(t, rows.Scan(&l.org, &l.accepted, &l.delivered, &l.waiting, &l.dead, &l.unmatched))
		got = append(got, l)
	}
	require.Equal(t, []line{
		{org: "org_1", accepted: 4, delivered: 1, waiting: 1, dead: 1, unmatched: 1},
		{org: "org_1", accepted: 1, delivered: 1},
		{org: "org_2", accepted: 1, waiting: 1},
	}, got)
}

// What a query asks of the ledger has to reach the sort key and the partitions of the deliveries: the view sums up months.
func TestLedgerReadsNoMoreThanIsAsked(t *testing.T) {
	conn := migrated(t)
	// Four weeks of 40 organizations, a delivery of each a minute.
	require.NoError(t, conn.Exec(t.Context(), `INSERT INTO deliveries (organization_id, delivery_id, accepted_at, status, version)
		SELECT concat('org_', toString(number % 40)), toString(number),
			toStartOfDay(now64(3, 'UTC')) - toIntervalMinute(intDiv(number, 40)), 'delivered', 1
		FROM numbers(40 * 60 * 24 * 28)`))
	var read uint64
	ctx := client.Context(t.Context(), client.WithProgress(func(p *client.Progress) { read += p.Rows }))
	rows, err := conn.Query(ctx, `SELECT minute, accepted FROM ledger WHERE organization_id = 'org_7'
		AND minute >= toStartOfDay(now64(3, 'UTC')) - toIntervalDay(10) AND minute < toStartOfDay(now64(3, 'UTC')) - toIntervalDay(9)`)
	require.NoError(t, err)
	minutes := 0
	for rows.Next() {
		minutes++
	}
	require.NoError(t, rows.Err())
	require.Equal(t, 60*24, minutes)
	require.Less(t, read, uint64(4*8192), "rows of 1.6 million")
}

// A roll-up that kept sums would miss the late row, count the repeated batch twice, or go on without what was deleted.
func TestRollUpsFollowTheAttempts(t *testing.T) {
	conn := migrated(t)
	insert := func(token string, values string) {
		require.NoError(t, conn.Exec(t.Context(), `INSERT INTO delivery_attempts
			(organization_id, endpoint_id, attempt_id, started_at, outcome, error_class, duration_ms, maybe_repeated, test)
			SELECT 'org_1', e, a, toStartOfDay(now64(3, 'UTC')) + toIntervalMillisecond(at), if(c = '', 'success', 'failure'), c, ms, r, t
			FROM values('e String, a String, at UInt32, c String, ms UInt32, r UInt8, t UInt8', `+values+`)
			SETTINGS async_insert = 0, insert_deduplication_token = '`+token+`', deduplicate_insert_select = 'enable_even_for_bad_queries'`))
	}
	type line struct {
		minute             time.Time
		class              string
		attempts, repeated uint64
		median             float32
	}
	read := func(view, where string) (lines []line) {
		rows, err := conn.Query(t.Context(), `SELECT minute, error_class, sum(attempts), sum(maybe_repeated_attempts),
			quantilesTimingMerge(0.5, 0.95, 0.99)(durations)[1] FROM `+view+` WHERE `+where+` GROUP BY ALL ORDER BY ALL`)
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var l line
			require.NoError(t, rows.Scan(&l.minute, &l.class, &l.attempts, &l.repeated, &l.median))
			l.minute = l.minute.UTC()
			lines = append(lines, l)
		}
		require.NoError(t, rows.Err())
		return lines
	}
	day := time.Now().UTC().Truncate(24 * time.Hour)
	const batch = `('ep_1', '1', 0, '', 100, 0, 0), ('ep_1', '2', 59999, '', 300, 0, 0), ('ep_2', '3', 30000, '', 200, 0, 0),
		('ep_2', '4', 60000, 'dns', 5, 1, 0), ('ep_1', '5', 0, 'tls', 9, 0, 1)`
	insert("1", batch)
	insert("1", batch)
	first := line{minute: day, attempts: 3, median: 200}
	second := line{minute: day.Add(time.Minute), class: "dns", attempts: 1, repeated: 1, median: 5}
	require.Equal(t, []line{first, second}, read("attempts_per_minute", "1"))
	require.Equal(t, []line{{minute: day, attempts: 2, median: 300}}, read("endpoint_attempts_per_minute", "organization_id = 'org_1' AND endpoint_id = 'ep_1'"))

	insert("2", `('ep_1', '6', 1000, '', 150, 1, 0), ('ep_3', '7', 2000, '', 160, 0, 0)`)
	late := line{minute: day, attempts: 5, repeated: 1, median: 160}
	require.Equal(t, []line{late, second}, read("attempts_per_minute", "1"))
	require.Equal(t, []line{late, second}, read("endpoint_attempts_per_minute", "1"))

	require.NoError(t, conn.Exec(t.Context(), "DELETE FROM delivery_attempts WHERE attempt_id IN ('6', '7')"))
	require.Equal(t, []line{first, second}, read("attempts_per_minute", "1"))
}

func TestURLErrorsKeepThePasswordToThemselves(t *testing.T) {
	_, err := clickhouse.Open(t.Context(), "clickhouse://user:hunter2@host:notaport/db%zz")
	require.ErrorContains(t, err, "CLICKHOUSE_URL")
	require.NotContains(t, err.Error(), "hunter2")
}

func TestUnavailable(t *testing.T) {
	conn := open(t, "clickhouse://127.0.0.1:1/webhooks")
	require.True(t, clickhouse.Unavailable(conn.Exec(t.Context(), "SELECT 1")))

	there := migrated(t)
	require.False(t, clickhouse.Unavailable(there.Exec(t.Context(), "SELECT nonsense")))
	require.True(t, clickhouse.Unavailable(there.Exec(t.Context(), "SELECT 1 FROM absent")))
	require.False(t, clickhouse.Unavailable(nil))
}

func migrated(t *testing.T) driver.Conn {
	t.Helper()
	url := testenv.ClickHouse(t)
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	return open(t, url)
}

func open(t *testing.T, url string) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
