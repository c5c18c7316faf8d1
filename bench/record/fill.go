package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// tables are what is filled, and compared.
var tables = []string{"events", "deliveries", "delivery_attempts", "rejected_requests", "billing_audit"}

// chunks is how many inserts a table is filled by, in order of time: enough that merges go on as in a table at work.
const chunks = 120

// Everything below depends only on numbers, so that the rows of a delivery agree and each run has the same. An id has
// the 26 random characters of ours, although of another alphabet.
const made = `
CREATE FUNCTION bench_id AS (prefix, x) -> concat(prefix, lower(substring(base32Encode(sipHash128(x)), 1, 26)));

CREATE VIEW bench_events AS
SELECT
    number AS n,
    toUInt32({organizations} * pow(cityHash64(n, 1) % 1000000 / 1e6, 3)) AS o,
    concat('org_', toString(o)) AS organization_id,
    bench_id('evt_', (n, 'event')) AS event_id,
    ['loop.transition.executed', 'loop.completed', 'inventory.updated', 'product.updated', 'order.allocation_succeeded',
     'subscription.updated', 'demand_signal.stockout_risk', 'loop.started'][1 + cityHash64(n, 2) % 8] AS type,
    fromUnixTimestamp64Milli(toInt64({since} + intDiv(n * {span}, {events})), 'UTC') AS accepted_at,
    if(cityHash64(n, 3) % 20 = 0, 0, least(1 + o % 4, 1 + cityHash64(n, 4) % 3)) AS matched
FROM numbers({events});

CREATE VIEW bench_deliveries AS
SELECT
    *,
    k,
    bench_id('dlv_', (n, k)) AS delivery_id,
    if(k = 0, '', bench_id('ep_', (o, k))) AS endpoint_id,
    cityHash64(o, k, 5) % 10 = 0 AS fails,
    [0, 5, 305, 2105, 9305, 27305, 63305, 113705, 185705, 272105] AS delays,
    multiIf(k = 0, 0, fails, arrayCount(d -> toUnixTimestamp64Milli(accepted_at) + d * 1000 < {now}, delays), cityHash64(n, k, 6) % 30 = 0, 2, 1) AS tries,
    multiIf(k = 0, 'unmatched', NOT fails, 'delivered', tries = 10, 'dead', 'waiting') AS status
FROM bench_events
ARRAY JOIN if(matched = 0, [0], range(1, matched + 1)) AS k;

CREATE VIEW bench_attempts AS
SELECT
    *,
    number,
    accepted_at + toIntervalMillisecond(delays[number] * (1 + cityHash64(n, k, number, 7) % 100 / 500) * 1000 + cityHash64(n, k, number, 8) % 40) AS started_at,
    NOT fails AND number = tries AS success,
    if(success, '', ['http_5xx', 'timeout_headers', 'refused', 'http_4xx'][1 + cityHash64(o, k, 9) % 4]) AS error_class,
    if(error_class = 'timeout_headers', 15000, toUInt32(20 + cityHash64(o, k, 10) % 100 + exp(cityHash64(n, k, number, 11) % 1000 / 150))) AS duration_ms
FROM bench_deliveries
ARRAY JOIN range(1, tries + 1) AS number`

const fillEvents = `INSERT INTO events
SELECT event_id, organization_id, type, 'betterdata', concat('loops/', lower(hex(cityHash64(n, 12)))),
	accepted_at - toIntervalMillisecond(cityHash64(n, 13) % 2000), accepted_at, '', '', lower(hex(cityHash64(n, 14))), '', 1, matched,
	format('{{"loopId":"scm.procurement","aggregateId":"agg-{0}","fromState":"requested","toState":"approved",' ||
		'"transitionId":"tr-{1}","actor":{{"type":"user","id":"usr_{1}","name":"Purchasing"}},' ||
		'"lines":[{{"sku":"SKU-{2}","quantity":"{3}","locationId":"loc-{4}"}},{{"sku":"SKU-{3}","quantity":"{4}","locationId":"loc-{4}"}}],' ||
		'"note":"Reordered after the weekly count","currency":"usd","total":"{2}.{4}"}}',
		toString(cityHash64(n, 15)), lower(hex(cityHash64(n, 16))), toString(cityHash64(n, 17) % 100000),
		toString(cityHash64(n, 18) % 5000), toString(10 + cityHash64(n, 19) % 90)),
	'topic', cityHash64(o) % 64, intDiv(n, 64)
FROM bench_events WHERE n >= {from} AND n < {to}`

// Two versions of each delivery: the first, of fan-out, and the last.
const fillDeliveries = `INSERT INTO deliveries
SELECT delivery_id, organization_id, endpoint_id, event_id, type, if(v = 1 AND k != 0, 'waiting', status),
	if(status = 'dead' AND v > 1, 'exhausted', ''), accepted_at,
	if(status = 'waiting' OR v = 1 AND k != 0, accepted_at + toIntervalSecond(delays[least(tries + 1, 10)]), NULL),
	if(v > 1 AND status != 'waiting',
		accepted_at + toIntervalSecond(delays[greatest(tries, 1)]) + toIntervalMillisecond(40 + cityHash64(n, k, 20) % 1000), NULL),
	if(v = 1, 0, tries), '', 0, v, accepted_at + toIntervalMillisecond(5)
FROM bench_deliveries ARRAY JOIN if(k = 0, [1], [1, 1 + tries]) AS v WHERE n >= {from} AND n < {to}`

const fillAttempts = `INSERT INTO delivery_attempts
SELECT bench_id('att_', (delivery_id, number)), delivery_id, event_id, endpoint_id, organization_id, type, number, 'schedule',
	started_at, duration_ms, cityHash64(n, k, number, 21) % 5, if(number = 1, 0, 3), if(number = 1, 0, 20), if(number = 1, 0, 30),
	duration_ms - 5, 1, if(success, 'success', 'failure'),
	multiIf(success, 200, error_class = 'http_5xx', 503, error_class = 'http_4xx', 404, 0), error_class,
	multiIf(success, ['', 'OK', '{"ok":true}'][1 + cityHash64(o, k, 22) % 3], error_class = 'http_4xx', '{"message":"no such hook"}',
		error_class = 'http_5xx', concat('<html><head><title>503 Service Temporarily Unavailable</title></head><body><center>' ||
			'<h1>503 Service Temporarily Unavailable</h1></center><hr><center>nginx</center><!-- ', hex(cityHash64(n, k, number, 23)),
			' --></body></html>'), ''),
	20 + cityHash64(o, k, 24) % 300, 700 + cityHash64(n, 25) % 200,
	if(success OR number = 10, NULL, accepted_at + toIntervalSecond(delays[least(number + 1, 10)])),
	multiIf(success, 'delivered', number = 10, 'dead', 'waiting'), '', 0, cityHash64(n, k, number, 26) % 100000 = 0,
	['host-a', 'host-b', 'host-c'][1 + cityHash64(endpoint_id) % 3], 'topic', cityHash64(endpoint_id) % 64, intDiv(n, 20)
FROM bench_attempts WHERE n >= {from} AND n < {to}`

// The small tables: a refusal for every tenth event, a change of billing for every hundredth.
const fillRefused = `INSERT INTO rejected_requests
SELECT accepted_at, ['stripe', 'shopify', 'square', 'unknown'][1 + cityHash64(n, 27) % 4],
	['signature_invalid', 'signature_missing', 'malformed_body', 'unknown_source'][1 + cityHash64(n, 28) % 4], 400,
	toIPv6(IPv4NumToString(toUInt32(cityHash64(n, 29) % 65536))), 'Stripe/1.0 (+https://stripe.com/docs/webhooks)',
	cityHash64(n, 30) % 4000, 1 + cityHash64(n, 31) % 3, 'host-a', 'topic', n % 64, intDiv(n, 64)
FROM bench_events WHERE n >= {from} AND n < {to} AND n % 10 = 0`

const fillAudit = `INSERT INTO billing_audit
SELECT bench_id('aud_', n), organization_id, 'customer.subscription.updated', concat('evt_1', hex(cityHash64(n, 32))),
	concat('cus_', toString(o)), concat('sub_', toString(o)), '', NULL, 'usd',
	['FREE', 'SCM_STARTER', 'SCM_PRO'][1 + cityHash64(n, 33) % 3], ['FREE', 'SCM_STARTER', 'SCM_PRO'][1 + cityHash64(n, 34) % 3],
	1, 1, accepted_at, accepted_at, 'topic', cityHash64(o) % 64, intDiv(n, 64)
FROM bench_events WHERE n >= {from} AND n < {to} AND n % 100 = 0`

// fill makes the rows, in both databases by the same inserts, and waits until merges are over.
func (b *bench) fill(ctx context.Context) error {
	events := b.deliveries * 100 / 163
	span := time.Duration(b.days) * 24 * time.Hour
	values := []string{
		"{organizations}", fmt.Sprint(b.organizations), "{events}", fmt.Sprint(events), "{span}", fmt.Sprint(span.Milliseconds()),
		"{since}", fmt.Sprint(b.now.Add(-span).UnixMilli()), "{now}", fmt.Sprint(b.now.UnixMilli()),
	}
	exec := func(sql string, more ...string) error {
		return b.exec(ctx, strings.NewReplacer(append(more, values...)...).Replace(sql))
	}
	for _, sql := range strings.Split(made, ";") {
		if err := exec(sql); err != nil {
			return fmt.Errorf("describe the rows: %w", err)
		}
	}
	if err := b.makePlain(ctx); err != nil {
		return err
	}
	for chunk := range chunks {
		from, to := fmt.Sprint(events*chunk/chunks), fmt.Sprint(events*(chunk+1)/chunks)
		for _, sql := range []string{fillEvents, fillDeliveries, fillAttempts, fillRefused, fillAudit} {
			for _, database := range []string{furnished, plain} {
				into := strings.Replace(sql, "INSERT INTO ", "INSERT INTO "+database+".", 1)
				if err := exec(into, "{from}", from, "{to}", to); err != nil {
					return fmt.Errorf("fill %s: %w", database, err)
				}
			}
		}
	}
	return b.settle(ctx)
}

func (b *bench) exec(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	return b.conn.Exec(ctx, sql)
}

// settle waits until no merge has run for a while.
func (b *bench) settle(ctx context.Context) error {
	for quiet := 0; quiet < 10; quiet++ {
		var merges uint64
		if err := b.conn.QueryRow(ctx, "SELECT count() FROM system.merges").Scan(&merges); err != nil {
			return fmt.Errorf("wait for merges: %w", err)
		}
		if merges > 0 {
			quiet = 0
		}
		time.Sleep(200 * time.Millisecond)
	}
	return nil
}

// makePlain makes the plain tables and the views over them. A table made by SELECT takes no codec and no index over.
func (b *bench) makePlain(ctx context.Context) error {
	engines := map[string]string{
		"events":            "MergeTree ORDER BY accepted_at",
		"deliveries":        "ReplacingMergeTree(version) ORDER BY (accepted_at, delivery_id)",
		"delivery_attempts": "MergeTree ORDER BY started_at",
		"rejected_requests": "MergeTree ORDER BY rejected_at",
		"billing_audit":     "MergeTree ORDER BY recorded_at",
	}
	statements := []string{"CREATE DATABASE " + plain}
	for _, table := range tables {
		statements = append(statements, fmt.Sprintf("CREATE TABLE %s.%s ENGINE = %s AS SELECT * FROM %s.%s LIMIT 0",
			plain, table, engines[table], furnished, table))
	}
	for _, view := range []string{"ledger", "attempts_per_minute", "endpoint_attempts_per_minute"} {
		var definition string
		err := b.conn.QueryRow(ctx, "SELECT as_select FROM system.tables WHERE database = $1 AND name = $2", furnished, view).Scan(&definition)
		if err != nil {
			return fmt.Errorf("read view %s: %w", view, err)
		}
		statements = append(statements, fmt.Sprintf("CREATE VIEW %s.%s AS %s", plain, view, strings.ReplaceAll(definition, furnished+".", plain+".")))
	}
	for _, sql := range statements {
		if err := b.exec(ctx, sql); err != nil {
			return fmt.Errorf("make the plain tables: %w", err)
		}
	}
	return nil
}
