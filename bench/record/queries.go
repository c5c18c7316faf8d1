package main

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"time"

	client "github.com/ClickHouse/clickhouse-go/v2"

	schema "github.com/betterdata/webhooks/schemas/clickhouse"
)

// question is a query that is timed.
type question struct {
	name, sql  string
	parameters client.Parameters
}

// reads are the API's, as deliverer/api asks them, and the roll-ups.
var reads = []question{
	{name: "GET deliveries", sql: `SELECT * FROM deliveries FINAL WHERE created_at >= {now:DateTime('UTC')} - toIntervalDay(1)
		AND organization_id = {organization:String} AND status != 'unmatched' ORDER BY created_at DESC, delivery_id DESC LIMIT 51`},
	{name: "GET deliveries/{id}", sql: "SELECT * FROM deliveries FINAL WHERE organization_id = {organization:String} AND delivery_id = {delivery:String} LIMIT 1"},
	{name: "its attempts", sql: "SELECT * FROM delivery_attempts WHERE organization_id = {organization:String} AND delivery_id = {delivery:String} ORDER BY number"},
	{name: "GET events", sql: `SELECT * FROM events WHERE accepted_at >= {now:DateTime('UTC')} - toIntervalDay(1)
		AND organization_id = {organization:String} ORDER BY accepted_at DESC, event_id DESC LIMIT 51`},
	{name: "GET events/{id}", sql: "SELECT * FROM events WHERE organization_id = {organization:String} AND event_id = {event:String} LIMIT 1"},
	{name: "GET ledger", sql: `SELECT minute, accepted, delivered, waiting, dead, unmatched FROM ledger WHERE organization_id = {organization:String}
		AND minute >= fromUnixTimestamp64Milli(toInt64(toUnixTimestamp({now:DateTime('UTC')}) - 86400) * 1000, 'UTC') ORDER BY minute DESC LIMIT 51`},
	{name: "GET ledger, all", sql: `SELECT minute, accepted, delivered, waiting, dead, unmatched FROM ledger WHERE organization_id = {organization:String} ORDER BY minute DESC LIMIT 51`},
	{name: "roll-up, one, a day", sql: `SELECT minute, outcome, error_class, sum(attempts), quantilesTimingMerge(0.5, 0.95, 0.99)(durations) FROM endpoint_attempts_per_minute
		WHERE organization_id = {organization:String} AND minute >= {now:DateTime('UTC')} - toIntervalDay(1) GROUP BY ALL ORDER BY minute`},
	{name: "roll-up, all, an hour", sql: `SELECT minute, outcome, error_class, sum(attempts) FROM attempts_per_minute
		WHERE minute >= {now:DateTime('UTC')} - toIntervalHour(1) GROUP BY ALL ORDER BY minute`},
	{name: "roll-up, all, a week", sql: `SELECT toStartOfHour(minute) AS hour, outcome, error_class, sum(attempts) FROM attempts_per_minute
		WHERE minute >= {now:DateTime('UTC')} - toIntervalDay(7) GROUP BY ALL ORDER BY hour`},
}

// queries are the reads and the questions, of the last week and of a middling organization and a delivery of its.
func (b *bench) queries(ctx context.Context) (list []question, err error) {
	organization := fmt.Sprint("org_", b.organizations/10)
	var delivery, event string
	if err := b.conn.QueryRow(ctx, "SELECT delivery_id, event_id FROM deliveries FINAL WHERE organization_id = $1 AND attempt_count > 0 ORDER BY accepted_at DESC LIMIT 1",
		organization).Scan(&delivery, &event); err != nil {
		return nil, fmt.Errorf("pick a delivery of %s: %w", organization, err)
	}
	at := func(t time.Time) string { return t.Format(time.DateTime) }
	values := client.Parameters{
		"organization": organization, "delivery": delivery, "event": event, "now": at(b.now),
		"since": at(b.now.Add(-7 * 24 * time.Hour)), "until": at(b.now),
	}
	for _, q := range reads {
		q.parameters = values
		list = append(list, q)
	}
	err = fs.WalkDir(schema.Questions, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		sql, err := schema.Questions.ReadFile(path)
		name, _ := strings.CutSuffix(entry.Name(), ".sql")
		list = append(list, question{name: name, sql: string(sql), parameters: values})
		return err
	})
	return list, err
}
