package clickhouse_test

import (
	"context"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/testenv"
	schema "github.com/betterdata/webhooks/schemas/clickhouse"
)

// answers are what the questions answer of the day below, a row a line. {day} is the day.
var answers = map[string]string{
	"attempts_of_delivery": `
		1	schedule	{day} 10:00:00.060	200	failure	503	http_5xx	0	waiting	{day} 10:05:00.000	busy
		2	schedule	{day} 10:05:00.000	15000	failure	0	timeout_headers	1	waiting	{day} 10:35:00.000	
		3	schedule	{day} 10:35:00.000	300	success	200		0	delivered	\N	`,
	"biggest_merchants": `
		acme	2	2	7	700	140
		globex	1	1	1	100	20`,
	"endpoint_latency": `
		ep_flaky	5	1	300	15000	15000
		ep_good	2	0	300	300	300`,
	"failing_endpoints": `
		acme	ep_flaky	5	4	{'http_5xx':2,'refused':1,'timeout_headers':1}	{day} 10:35:00.000	
		globex	ep_gone	1	1	{'http_410':1}	\N	go away`,
	"maybe_repeated": `
		{day} 10:05:00.000	acme	ep_flaky	evt_1	dlv_2	2	failure	host-a`,
	"oldest_waiting": `
		globex	ep_paused	1	{day} 09:00:00.000	0	{day} 09:00:00.000
		acme	ep_flaky	1	{day} 11:00:00.000	2	{day} 11:35:00.000`,
	"plan_changes": `
		{day}	0	FREE	SCM_PRO	1	1
		{day}	1	FREE	SCM_STARTER	2	2
		{day}	1	SCM_STARTER	SCM_PRO	1	1`,
	"refused_requests": `
		stripe	signature_invalid	400	21	2	{day} 08:00:00.000	{day} 08:01:00.000
		unknown	unknown_source	404	3	1	{day} 08:02:00.000	{day} 08:02:00.000`,
	"saved_by_retries": `
		{day}	6	2	1	0.1667	0.5`,
	"success_rate": `
		ep_flaky	{day} 10:00:00	3	0.3333
		ep_flaky	{day} 11:00:00	2	0
		ep_good	{day} 10:00:00	1	1
		ep_good	{day} 11:00:00	1	1`,
	"time_to_delivery": `
		{day} 10:00:00	2	150	150	150	2100300	2100300	2100300
		{day} 11:00:00	1	310	310	310	310	310	310`,
	"unwanted_events": `
		product.created	shopify	2	1	{day} 12:30:00.000	evt_4
		loop.started	betterdata	1	0	{day} 12:00:00.000	evt_5`,
}

// rows is the day, of two merchants. Each question has something in it that it must leave out: a test, a replay, an older
// version of a delivery, another day.
const rows = `
INSERT INTO delivery_attempts (attempt_id, delivery_id, event_id, endpoint_id, organization_id, number, started_at, duration_ms,
	outcome, status_code, error_class, response_excerpt, next_attempt_at, delivery_status, maybe_repeated, test, trigger, request_bytes, response_bytes, worker)
SELECT a, d, e, ep, org, n, concat('{day} ', at), ms, if(s = 200, 'success', 'failure'), s, c, x, if(next = '', NULL, concat('{day} ', next)), st, rep, t,
	if(t, 'test', 'schedule'), 100, 20, 'host-a'
FROM values('a String, d String, e String, ep String, org String, n UInt16, at String, ms UInt32, s UInt16, c String, x String, next String, st String, rep UInt8, t UInt8',
	('a1', 'dlv_1', 'evt_1', 'ep_good',  'acme',   1, '10:00:00.050', 100,   200, '', 'OK', '', 'delivered', 0, 0),
	('a2', 'dlv_2', 'evt_1', 'ep_flaky', 'acme',   1, '10:00:00.060', 200,   503, 'http_5xx', 'busy', '10:05:00.000', 'waiting', 0, 0),
	('a4', 'dlv_2', 'evt_1', 'ep_flaky', 'acme',   3, '10:35:00.000', 300,   200, '', '', '', 'delivered', 0, 0),
	('a3', 'dlv_2', 'evt_1', 'ep_flaky', 'acme',   2, '10:05:00.000', 15000, 0,   'timeout_headers', '', '10:35:00.000', 'waiting', 1, 0),
	('a5', 'dlv_3', 'evt_2', 'ep_good',  'acme',   1, '11:00:00.010', 300,   200, '', 'OK', '', 'delivered', 0, 0),
	('a6', 'dlv_4', 'evt_2', 'ep_flaky', 'acme',   1, '11:00:00.010', 400,   503, 'http_5xx', 'busy', '11:05:00.000', 'waiting', 0, 0),
	('a7', 'dlv_4', 'evt_2', 'ep_flaky', 'acme',   2, '11:05:00.000', 1,     0,   'refused', '', '11:35:00.000', 'waiting', 0, 0),
	('a8', 'dlv_5', 'evt_6', 'ep_gone',  'globex', 1, '10:00:00.000', 50,    410, 'http_410', 'go away', '', 'dead', 0, 0),
	('a9', 'dlv_9', 'evt_9', 'ep_good',  'acme',   1, '10:10:00.000', 900,   404, 'http_4xx', 'a test', '', 'dead', 0, 1));

INSERT INTO delivery_attempts (attempt_id, delivery_id, event_id, endpoint_id, organization_id, number, started_at, outcome, error_class, maybe_repeated)
SELECT 'b1', 'dlv_8', 'evt_8', 'ep_good', 'acme', 1, toDateTime64('{day} 00:00:00', 3, 'UTC') - toIntervalMillisecond(1), 'failure', 'dns', 1;

INSERT INTO deliveries (delivery_id, organization_id, endpoint_id, event_id, status, accepted_at, next_attempt_at, ended_at, attempt_count, version, replay_id, test, created_at)
SELECT d, org, ep, e, st, concat('{day} ', acc), if(next = '', NULL, concat('{day} ', next)), if(ended = '', NULL, concat('{day} ', ended)), n, v, r, t, concat('{day} ', acc)
FROM values('d String, org String, ep String, e String, st String, acc String, next String, ended String, n UInt16, v UInt64, r String, t UInt8',
	('dlv_1', 'acme', 'ep_good', 'evt_1', 'delivered', '10:00:00.000', '', '10:00:00.150', 1, 2, '', 0),
	('dlv_1', 'acme', 'ep_good', 'evt_1', 'waiting', '10:00:00.000', '10:00:00.000', '', 0, 1, '', 0),
	('dlv_2', 'acme', 'ep_flaky', 'evt_1', 'waiting', '10:00:00.000', '10:05:00.000', '', 1, 2, '', 0),
	('dlv_2', 'acme', 'ep_flaky', 'evt_1', 'delivered', '10:00:00.000', '', '10:35:00.300', 3, 4, '', 0),
	('dlv_3', 'acme', 'ep_good', 'evt_2', 'delivered', '11:00:00.000', '', '11:00:00.310', 1, 2, '', 0),
	('dlv_4', 'acme', 'ep_flaky', 'evt_2', 'waiting', '11:00:00.000', '11:35:00.000', '', 2, 3, '', 0),
	('dlv_5', 'globex', 'ep_gone', 'evt_6', 'dead', '10:00:00.000', '', '10:00:00.050', 1, 2, '', 0),
	('dlv_6', 'globex', 'ep_paused', 'evt_7', 'waiting', '09:00:00.000', '09:00:00.000', '', 0, 1, '', 0),
	('dlv_7', 'acme', 'ep_flaky', 'evt_1', 'delivered', '10:00:00.000', '', '23:00:00.000', 2, 2, 'rpl_1', 0),
	('dlv_9', 'acme', 'ep_good', 'evt_9', 'delivered', '10:10:00.000', '', '10:10:00.900', 2, 2, '', 1),
	('dlv_u3', 'acme', '', 'evt_3', 'unmatched', '12:00:00.000', '', '', 0, 1, '', 0),
	('dlv_u4', 'acme', 'ep_off', 'evt_4', 'unmatched', '12:30:00.000', '', '', 0, 1, '', 0),
	('dlv_u5', 'acme', '', 'evt_5', 'unmatched', '12:00:00.000', '', '', 0, 1, '', 0),
	('dlv_u2', 'acme', 'ep_off', 'evt_2', 'unmatched', '11:00:00.000', '', '', 0, 1, '', 0));

INSERT INTO events (event_id, organization_id, type, source, accepted_at, matched)
SELECT e, org, type, source, concat('{day} ', at), m FROM values('e String, org String, type String, source String, at String, m UInt16',
	('evt_1', 'acme', 'loop.completed', 'betterdata', '10:00:00.000', 2),
	('evt_2', 'acme', 'loop.completed', 'betterdata', '11:00:00.000', 2),
	('evt_3', 'acme', 'product.created', 'shopify', '12:00:00.000', 0),
	('evt_4', 'acme', 'product.created', 'shopify', '12:30:00.000', 0),
	('evt_5', 'acme', 'loop.started', 'betterdata', '12:00:00.000', 0),
	('evt_0', 'globex', 'loop.started', 'betterdata', '12:00:00.000', 0));

INSERT INTO rejected_requests (rejected_at, source, reason, status, remote_ip, weight)
SELECT concat('{day} ', at), source, reason, status, ip, w FROM values('at String, source String, reason String, status UInt16, ip String, w UInt32',
	('08:00:00.000', 'stripe', 'signature_invalid', 400, '::ffff:192.0.2.1', 1),
	('08:01:00.000', 'stripe', 'signature_invalid', 400, '::ffff:192.0.2.2', 20),
	('08:02:00.000', 'unknown', 'unknown_source', 404, '2001:db8::1', 3));

INSERT INTO billing_audit (entry_id, organization_id, action, plan_before, plan_after, livemode, occurred_at, recorded_at)
SELECT e, org, action, b, a, live, concat('{day} ', at), '{day} 23:00:00.000' FROM values('e String, org String, action String, b String, a String, live UInt8, at String',
	('1', 'acme', 'customer.subscription.created', 'FREE', 'SCM_STARTER', 1, '09:00:00.000'),
	('2', 'globex', 'customer.subscription.created', 'FREE', 'SCM_STARTER', 1, '09:30:00.000'),
	('3', 'acme', 'customer.subscription.updated', 'SCM_STARTER', 'SCM_PRO', 1, '10:00:00.000'),
	('4', 'acme', 'invoice.paid', 'SCM_PRO', 'SCM_PRO', 1, '10:00:01.000'),
	('5', 'initech', 'customer.subscription.created', 'FREE', 'SCM_PRO', 0, '11:00:00.000'));`

func TestQuestionsAreAnswered(t *testing.T) {
	url := testenv.ClickHouse(t)
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close()
	yesterday := time.Now().UTC().Truncate(24 * time.Hour).Add(-24 * time.Hour)
	day := strings.NewReplacer("{day}", yesterday.Format(time.DateOnly))
	for _, insert := range strings.Split(strings.TrimSuffix(rows, ";"), ";\n") {
		require.NoError(t, conn.Exec(t.Context(), day.Replace(insert)))
	}
	asking := func(sql string) context.Context {
		given := client.Parameters{
			"organization": "acme", "delivery": "dlv_2",
			"since": yesterday.Format(time.DateTime), "until": yesterday.Add(24 * time.Hour).Format(time.DateTime),
		}
		maps.DeleteFunc(given, func(name, _ string) bool { return !strings.Contains(sql, "{"+name+":") })
		return client.Context(t.Context(), client.WithParameters(given))
	}
	asked := questions(t)
	require.Equal(t, slices.Sorted(maps.Keys(answers)), slices.Sorted(maps.Keys(asked)), "each question has its answer here")
	for name, sql := range asked {
		t.Run(name, func(t *testing.T) {
			rows, err := conn.Query(asking(sql), "SELECT formatRowNoNewline('TSV', *) FROM ("+sql+")")
			require.NoError(t, err)
			defer rows.Close()
			var got strings.Builder
			for rows.Next() {
				var line string
				require.NoError(t, rows.Scan(&line))
				got.WriteString("\n\t\t" + line)
			}
			require.NoError(t, rows.Err())
			require.Equal(t, day.Replace(answers[name]), got.String())
		})
	}
}

// TestQuestionsSayWhatTheyTake holds the form that makes the folder readable: the question, then the parameters.
func TestQuestionsSayWhatTheyTake(t *testing.T) {
	question, parameter := regexp.MustCompile(`^-- [A-Z].*\?\n`), regexp.MustCompile(`\{(\w+):`)
	for name, sql := range questions(t) {
		require.Regexp(t, question, sql, name)
		comment, _, _ := strings.Cut(sql, "\nSELECT")
		for _, used := range parameter.FindAllStringSubmatch(sql, -1) {
			require.Regexp(t, `(?m)^--   .*\b`+used[1]+`\b.*`, comment, "%s takes %s", name, used[1])
		}
	}
}

func questions(t *testing.T) map[string]string {
	files, err := fs.Glob(schema.Questions, "questions/*.sql")
	require.NoError(t, err)
	asked := map[string]string{}
	for _, file := range files {
		sql, err := schema.Questions.ReadFile(file)
		require.NoError(t, err)
		asked[strings.TrimSuffix(path.Base(file), ".sql")] = string(sql)
	}
	return asked
}
