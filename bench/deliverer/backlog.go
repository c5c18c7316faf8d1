package main

import (
	"context"
	"fmt"
	"time"

	"github.com/betterdata/webhooks/bench/rig"
)

// failing is the number of endpoints that have the backlog.
const failing = 100

// behind measures the deliverer without a backlog, lets one grow, and measures again: at rest, while it delivers to
// others, and as it starts, with its state and without.
func behind(ctx context.Context, o options, r *rig.Rig) error {
	fmt.Printf("%d deliveries to endpoints that answer, before and beside a backlog of %d for %d endpoints that fail\n\n", o.deliveries, o.backlog, failing)
	merchants, err := r.Merchants()
	if err != nil {
		return err
	}
	endpoints := merchants.Endpoints("e", rig.OK, o.endpoints, o.hosts)
	down := merchants.Endpoints("down", rig.Fails, failing, min(failing, 250))
	// One attempt is all that a failing delivery gets while this goes on.
	d, err := r.Begin(ctx, "deliverer", "", append(endpoints, down...), func(s *rig.Setup) { s.Retries = []time.Duration{time.Hour, time.Hour} })
	if err != nil {
		return err
	}
	defer d.End()
	delivered := 0
	load := func(when string) error {
		before, err := d.CPU()
		if err != nil {
			return err
		}
		if err := o.feed(ctx, merchants, d, endpoints); err != nil {
			return err
		}
		delivered += o.deliveries
		if err := d.Await(ctx, delivered); err != nil {
			return err
		}
		after, err := d.CPU()
		if err != nil {
			return err
		}
		fmt.Printf("%-28s %6.1f µs CPU a delivery", when, float64((after-before).Microseconds())/float64(o.deliveries))
		return memory(d)
	}
	for range 2 {
		if err := load("without a backlog"); err != nil {
			return err
		}
	}
	if err := grow(ctx, o, d, down); err != nil {
		return err
	}
	for range 2 {
		if err := load("beside the backlog"); err != nil {
			return err
		}
	}
	return restarts(ctx, o, d, load)
}

// memory ends a line with what is resident: now, and a while later, and at the peak.
func memory(d *rig.Deliverer) error {
	now, err := d.Memory()
	if err != nil {
		return err
	}
	time.Sleep(rest)
	later, err := d.Memory()
	if err != nil {
		return err
	}
	peak, err := d.PeakMemory()
	fmt.Printf("; memory %d MB, after %s %d MB, at most %d MB\n", now>>20, rest, later>>20, peak>>20)
	return err
}

// rest is how long a deliverer is left alone before its memory is taken again.
const rest = 10 * time.Second

// grow feeds the backlog and waits until the owners hold all of it.
func grow(ctx context.Context, o options, d *rig.Deliverer, down []rig.Endpoint) error {
	began := time.Now()
	if err := d.Feed(ctx, o.backlog, 0, rig.Each(down)); err != nil {
		return err
	}
	if err := d.AwaitHeld(ctx, o.backlog); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Printf("%-28s %6.0f deliveries/s", "the backlog grows", float64(o.backlog)/took.Seconds())
	return memory(d)
}

// restarts starts the deliverer again: with its state, and without.
func restarts(ctx context.Context, o options, d *rig.Deliverer, load func(string) error) error {
	for _, start := range []string{"warm", "cold"} {
		d.Stop()
		if start == "cold" {
			if err := d.Forget(); err != nil {
				return err
			}
		}
		took, err := d.Restart(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := d.AwaitHeld(ctx, o.backlog); err != nil {
			return err
		}
		fmt.Printf("%-28s ready after %.2f s, all of the backlog counted %.2f s later", start+" start", took.Seconds(), time.Since(began).Seconds())
		if err := memory(d); err != nil {
			return err
		}
		if err := load("after it"); err != nil {
			return err
		}
	}
	b, err := d.Balance(ctx)
	if err == nil {
		fmt.Printf("\nthe ledger %s\n", b)
	}
	return err
}
