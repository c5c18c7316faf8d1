package delivery

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// evidence is all that is known of a run, once nobody writes any more.
type evidence struct {
	made    map[string]made
	events  map[string]int
	came    map[attempt][]request
	strikes []fire.Strike

	// On the log, as a read committed reader sees it: the rows of attempts and of events by their place, the newest row of
	// each delivery, and how often a delivery is among the dead, in an event that tells of it, in a command to disable.
	attemptLog, eventLog      map[place]row
	newest                    map[string]*webhooksv1.DeliveryRow
	dead, exhausted, disabled map[string]int

	// In ClickHouse: the same, and what its ledger says of organizations.
	attemptTable, eventTable map[place][]row
	ids, distinct            uint64 // of attempts
	newestTable              map[string]*webhooksv1.DeliveryRow
	ledger                   map[string]line
}

// place is a record's.
type place struct {
	partition int32
	offset    int64
}

// row is a record of a row topic, or a row of its table, as far as both are compared.
type row struct {
	id, text string
	// attempt is that of an attempt's row on the log, written when its transaction was about to be committed.
	attempt *webhooksv1.AttemptRow
	written time.Time
}

// line is what the ledger says, over all minutes. open counts the minutes that do not close.
type line struct{ accepted, delivered, waiting, dead, unmatched, open uint64 }

func (r *run) evidence(ctx context.Context) (*evidence, error) {
	ev := &evidence{
		made: r.load.made, events: r.load.events, came: r.receivers.all(), strikes: r.strikes,
		attemptLog: map[place]row{}, eventLog: map[place]row{}, newest: map[string]*webhooksv1.DeliveryRow{},
		dead: map[string]int{}, exhausted: map[string]int{}, disabled: map[string]int{},
		attemptTable: map[place][]row{}, eventTable: map[place][]row{}, newestTable: map[string]*webhooksv1.DeliveryRow{},
		ledger: map[string]line{},
	}
	for _, topic := range []string{
		schemas.Attempts, schemas.EventRows, schemas.DeliveryRows, schemas.DeliveriesDead, schemas.Events, schemas.Inbound,
	} {
		for p := range r.Partitions {
			var failed error
			err := r.cluster.Read(ctx, kgo.ReadCommitted(), topic, p, 0, func(in *kgo.Record) bool {
				failed = ev.read(topic, in)
				return failed == nil
			})
			if err != nil {
				return nil, err
			}
			if failed != nil {
				return nil, fmt.Errorf("%s/%d: %w", topic, p, failed)
			}
		}
	}
	conn, err := clickhouse.Open(ctx, r.rows)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return ev, ev.query(ctx, conn)
}

// read takes a record.
func (ev *evidence) read(topic string, in *kgo.Record) error {
	at := place{in.Partition, in.Offset}
	switch topic {
	case schemas.Attempts:
		m := &webhooksv1.AttemptRow{}
		if err := proto.Unmarshal(in.Value, m); err != nil {
			return err
		}
		ev.attemptLog[at] = row{id: m.AttemptId, attempt: m, written: in.Timestamp, text: attemptText(
			m.DeliveryId, uint16(m.Number), m.Outcome, uint16(m.StatusCode), m.ErrorClass, m.DeliveryStatus, m.Worker, m.MaybeRepeated)}
	case schemas.EventRows:
		m := &webhooksv1.EventRow{}
		if err := proto.Unmarshal(in.Value, m); err != nil {
			return err
		}
		ev.eventLog[at] = row{id: m.EventId, text: eventText(m.OrganizationId, uint16(m.Matched))}
	case schemas.DeliveryRows:
		m := &webhooksv1.DeliveryRow{}
		if err := proto.Unmarshal(in.Value, m); err != nil {
			return err
		}
		if old := ev.newest[m.DeliveryId]; old == nil || old.Version < m.Version {
			ev.newest[m.DeliveryId] = m
		}
	case schemas.DeliveriesDead:
		ev.dead[string(in.Key)]++
	case schemas.Events:
		if e := cloudevent.ReadEvent(in); e.Type == schemas.TypeDeliveryExhausted {
			ev.exhausted[e.Subject]++
		}
	case schemas.Inbound:
		m := &webhooksv1.Command{}
		if err := proto.Unmarshal(in.Value, m); err != nil {
			return err
		}
		ev.disabled[m.GetDisableEndpoint().GetEndpointId()]++
	}
	return nil
}

func attemptText(delivery string, number uint16, outcome string, status uint16, class, after, worker string, maybe bool) string {
	return fmt.Sprintf("%s/%d %s %d %s then %s by %s, repeated %t", delivery, number, outcome, status, class, after, worker, maybe)
}

func eventText(org string, matched uint16) string { return fmt.Sprintf("%s, matched %d", org, matched) }

// query takes what ClickHouse has.
func (ev *evidence) query(ctx context.Context, conn driver.Conn) error {
	var at place
	add := func(table map[place][]row, r row) { table[at] = append(table[at], r) }
	var a, b, c, d, e, f string
	var n, m uint16
	var maybe uint8
	err := each(ctx, conn, `SELECT src_part, src_offset, attempt_id, delivery_id, number, outcome, status_code, error_class,
		delivery_status, worker, maybe_repeated FROM delivery_attempts`,
		[]any{&at.partition, &at.offset, &a, &b, &n, &c, &m, &d, &e, &f, &maybe},
		func() { add(ev.attemptTable, row{id: a, text: attemptText(b, n, c, m, d, e, f, maybe == 1)}) })
	if err != nil {
		return err
	}
	err = each(ctx, conn, "SELECT src_part, src_offset, event_id, organization_id, matched FROM events",
		[]any{&at.partition, &at.offset, &a, &b, &n}, func() { add(ev.eventTable, row{id: a, text: eventText(b, n)}) })
	if err != nil {
		return err
	}
	var version uint64
	var ended *time.Time
	err = each(ctx, conn, "SELECT delivery_id, endpoint_id, status, reason, attempt_count, replay_id, version, ended_at FROM deliveries FINAL",
		[]any{&a, &b, &c, &d, &n, &e, &version, &ended}, func() {
			found := &webhooksv1.DeliveryRow{
				DeliveryId: a, EndpointId: b, Status: c, Reason: d, AttemptCount: uint32(n), ReplayId: e, Version: version,
			}
			if ended != nil {
				found.EndedUnixMs = ended.UnixMilli()
			}
			ev.newestTable[a] = found
		})
	if err != nil {
		return err
	}
	var l line
	err = each(ctx, conn, `SELECT organization_id, sum(accepted), sum(delivered), sum(waiting), sum(dead), sum(unmatched),
		countIf(accepted != delivered + waiting + dead + unmatched) FROM ledger GROUP BY organization_id`,
		[]any{&a, &l.accepted, &l.delivered, &l.waiting, &l.dead, &l.unmatched, &l.open}, func() { ev.ledger[a] = l })
	if err != nil {
		return err
	}
	return each(ctx, conn, "SELECT count(), uniqExact(attempt_id) FROM delivery_attempts", []any{&ev.ids, &ev.distinct}, func() {})
}

// each scans every row into the same values and calls fn.
func each(ctx context.Context, conn driver.Conn, sql string, into []any, fn func()) error {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		fn()
	}
	return rows.Err()
}
