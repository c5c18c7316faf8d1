package rig

import (
	"context"
	"fmt"
	"time"
)

// Record is what ClickHouse holds of everything that was fed.
type Record struct {
	// Attempts are rows; Ids, different ones; MaybeRepeated, those that say so.
	Attempts, IDs, MaybeRepeated, Failed uint64
	Events                               uint64
	// Of the view ledger.
	Accepted, Delivered, Waiting, Dead uint64
}

// Read asks for it.
func (d *Deliverer) Read(ctx context.Context) (r Record, err error) {
	err = d.Rows.QueryRow(ctx, "SELECT count(), uniqExact(attempt_id), countIf(maybe_repeated), countIf(outcome != 'success') FROM delivery_attempts").
		Scan(&r.Attempts, &r.IDs, &r.MaybeRepeated, &r.Failed)
	if err != nil {
		return r, fmt.Errorf("count attempts: %w", err)
	}
	if err := d.Rows.QueryRow(ctx, "SELECT count() FROM events").Scan(&r.Events); err != nil {
		return r, fmt.Errorf("count events: %w", err)
	}
	err = d.Rows.QueryRow(ctx, "SELECT sum(accepted), sum(delivered), sum(waiting), sum(dead) FROM ledger").
		Scan(&r.Accepted, &r.Delivered, &r.Waiting, &r.Dead)
	if err != nil {
		return r, fmt.Errorf("read the ledger: %w", err)
	}
	return r, nil
}

// Await returns once ClickHouse holds all events that were fed and so many of them delivered.
func (d *Deliverer) Await(ctx context.Context, delivered int) error {
	for {
		var attempts, events uint64
		err := d.Rows.QueryRow(ctx, "SELECT (SELECT count() FROM delivery_attempts), (SELECT count() FROM events)").Scan(&attempts, &events)
		if err != nil {
			return fmt.Errorf("see what is recorded: %w", err)
		}
		if attempts >= uint64(delivered) && events >= uint64(d.Fed()) {
			r, err := d.Read(ctx)
			if err != nil || r.Delivered >= uint64(delivered) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// AwaitHeld returns once the owners hold so many deliveries that wait.
func (d *Deliverer) AwaitHeld(ctx context.Context, held int) error {
	for {
		n, err := d.Metric("webhooks_retry_waiting")
		if err != nil || int(n) >= held {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Balance is the ledger beside what the owners say.
type Balance struct {
	Record
	// Held is what the owners of partitions count as waiting, by metric; Unread, the records of `deliveries` not taken yet;
	// Unrecorded, the rows that are not in ClickHouse yet.
	Held, Unread, Unrecorded float64
}

// Balance asks both, once all rows are known to be there.
func (d *Deliverer) Balance(ctx context.Context) (b Balance, err error) {
	for b, err = d.balance(ctx); err == nil && b.Unrecorded > 0; b, err = d.balance(ctx) {
		select {
		case <-ctx.Done():
			return b, ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return b, err
}

func (d *Deliverer) balance(ctx context.Context) (b Balance, err error) {
	for name, to := range map[string]*float64{
		"webhooks_retry_waiting": &b.Held, "webhooks_deliverer_lag_records": &b.Unread, "webhooks_sink_lag_records": &b.Unrecorded,
	} {
		if *to, err = d.Metric(name); err != nil {
			return b, err
		}
	}
	b.Record, err = d.Read(ctx)
	return b, err
}

// Closes reports that what was accepted has ended or waits, that what waits is held or unread, and that no attempt is two rows.
func (b Balance) Closes() bool {
	return b.Accepted == b.Delivered+b.Waiting+b.Dead && float64(b.Waiting) == b.Held+b.Unread && b.Attempts == b.IDs
}

func (b Balance) String() string {
	verdict := "closes"
	if !b.Closes() {
		verdict = "DOES NOT CLOSE"
	}
	return fmt.Sprintf("%s: accepted %d = delivered %d + waiting %d + dead %d; owners hold %.0f, unread %.0f, rows on their way %.0f; attempts %d, of %d ids, %d failed, %d may be repeats",
		verdict, b.Accepted, b.Delivered, b.Waiting, b.Dead, b.Held, b.Unread, b.Unrecorded, b.Attempts, b.IDs, b.Failed, b.MaybeRepeated)
}
