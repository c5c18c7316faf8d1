package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/rig"
)

// each is how many deliveries an endpoint has in a storm: fewer than open its breaker before the third attempt.
const each = 3

// delays of the retry schedule in a storm.
var delays = []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second}

// storm has all endpoints fail from the first attempt on, and recover before the last.
func storm(ctx context.Context, o options, r *rig.Rig, m *rig.Merchants) error {
	fmt.Printf("%d endpoints that fail together, %d deliveries each, retried after %v; they recover together after the third attempt\n\n",
		o.endpoints, each, delays)
	endpoints := m.Endpoints("e", rig.Fails, o.endpoints, o.endpoints)
	d, err := r.Begin(ctx, "storm", "", endpoints, func(s *rig.Setup) { s.Retries = delays })
	if err != nil {
		return err
	}
	defer d.End()
	deliveries := each * o.endpoints
	if err := d.Feed(ctx, deliveries, 0, rig.Each(endpoints)); err != nil {
		return err
	}
	for attempts := 0; attempts < 3*deliveries; {
		var err error
		if attempts, err = m.Count(); err != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := m.Ask("recover", new(string)); err != nil {
		return err
	}
	if err := d.Await(ctx, deliveries); err != nil {
		return err
	}
	for _, q := range questions {
		if err := print(ctx, d, q.title, q.sql); err != nil {
			return err
		}
	}
	b, err := d.Balance(ctx)
	if err == nil {
		fmt.Printf("the ledger %s\n", b)
	}
	return err
}

var questions = []struct{ title, sql string }{
	{"attempts begun, by second from the first", `SELECT 'all', toInt64(dateDiff('second', (SELECT min(started_at) FROM delivery_attempts), started_at)) AS second, count()
		FROM delivery_attempts GROUP BY second ORDER BY second`},
	{"from the end of a failed attempt to when the next is due, by half a second", `SELECT concat('after attempt ', toString(number)),
		toInt64(intDiv(toUnixTimestamp64Milli(assumeNotNull(next_attempt_at)) - toUnixTimestamp64Milli(started_at) - duration_ms, 500)) AS half, count()
		FROM delivery_attempts WHERE next_attempt_at IS NOT NULL GROUP BY number, half ORDER BY number, half`},
	{"from when it was due to when it began, by tenth of a second", `SELECT concat('attempt ', toString(number + 1)),
		toInt64(intDiv(dateDiff('millisecond', assumeNotNull(due), next), 100)) AS tenth, count()
		FROM (SELECT number, next_attempt_at AS due, leadInFrame(started_at) OVER (PARTITION BY delivery_id ORDER BY number
			ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS next FROM delivery_attempts)
		WHERE due IS NOT NULL AND toUnixTimestamp64Milli(next) > 0 GROUP BY number, tenth ORDER BY number, tenth`},
}

// print shows a distribution: bars by what it is of.
func print(ctx context.Context, d *rig.Deliverer, title, sql string) error {
	rows, err := d.Rows.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	defer rows.Close()
	fmt.Println(title)
	for rows.Next() {
		var of string
		var at int64
		var count uint64
		if err := rows.Scan(&of, &at, &count); err != nil {
			return err
		}
		fmt.Printf("  %-16s %4d  %6d %s\n", of, at, count, strings.Repeat("*", int(count/50)))
	}
	fmt.Println()
	return rows.Err()
}
