// Command deliverer measures what a delivered webhook costs the deliverer: CPU of its process from the record on
// `deliveries` to the rows in ClickHouse, those that fan-out makes included, on a real Apache Kafka and ClickHouse. Beside it, in
// the same run, a loop of signed POSTs by fasthttp's client to the same merchants, of which nothing is recorded.
//
//	go run ./bench/deliverer [-runs 5] [-deliveries 50000] [-window 1000] [-partitions 8] [-with old=/path/of/another/bench/deliverer]
//	go run ./bench/deliverer -endpoints 100000    # flat? beside -endpoints 10
//	go run ./bench/deliverer -tls                 # ten thousand hosts
//	go run ./bench/deliverer -backlog 1000000     # memory and start while so many deliveries wait
//
// Events are of 1 to 3 kB, one for each delivery. The deliverer is as fast as it can be, as the loop is: -window is how many
// deliveries are on their way to the merchants at a time; 0 puts all on the log at once, more than ten endpoints take, so
// that most have to wait on the topic `retries`; -rate puts so many a second there. At the end what is recorded must agree:
// rows of attempts, their ids, what the merchants counted, and the ledger with what the owners hold.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/bench/rig"
	"github.com/betterdata/webhooks/deploy/local/engine"
)

// options are the flags.
type options struct {
	role, setup, brokers, with, profile string
	runs, deliveries, endpoints, hosts  int
	partitions, connections             int
	window, backlog                     int
	rate                                float64
	tls                                 bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == engine.Command {
		os.Exit(engine.Main(os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.role, "role", "", "of a child")
	flag.StringVar(&o.setup, "setup", "", "of a child")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of an Apache Kafka of its own")
	flag.StringVar(&o.with, "with", "", "NAME=PROGRAM,…: this bench built elsewhere, whose deliverers are measured in the same run")
	flag.StringVar(&o.profile, "profile", "", "file for a CPU profile of the deliverer in the last of two runs or more, and one for its allocations")
	flag.IntVar(&o.runs, "runs", 5, "interleaved runs of each competitor")
	flag.IntVar(&o.deliveries, "deliveries", 50_000, "deliveries of a run")
	flag.IntVar(&o.endpoints, "endpoints", 0, "endpoints; 10, with -tls as many as hosts")
	flag.IntVar(&o.hosts, "hosts", 0, "merchants' hosts; 10, with -tls 10000")
	flag.IntVar(&o.connections, "connections", 160, "of the loop, each with a request open: as many as ten endpoints allow")
	flag.IntVar(&o.partitions, "partitions", 8, "KAFKA_PARTITIONS")
	flag.IntVar(&o.backlog, "backlog", 0, "deliveries that wait for endpoints that fail")
	flag.IntVar(&o.window, "window", 1000, "deliveries that have not reached the merchants at a time; 0 is all")
	flag.Float64Var(&o.rate, "rate", 0, "deliveries a second; 0 is as fast as the window allows")
	flag.BoolVar(&o.tls, "tls", false, "over TLS")
	flag.Parse()
	o.defaults()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	roles := map[string]func(context.Context, options) error{
		"": start, "loop": runLoop,
		"deliverer": func(ctx context.Context, o options) error { return rig.RunDeliverer(ctx, o.setup) },
		"merchants": func(ctx context.Context, o options) error { return rig.RunMerchants(ctx, o.setup) },
	}
	if err := roles[o.role](ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/deliverer:", err)
		os.Exit(1)
	}
}

func (o *options) defaults() {
	if o.hosts == 0 {
		o.hosts = 10
		if o.tls {
			o.hosts = 10_000
		}
	}
	if o.endpoints == 0 {
		o.endpoints = o.hosts
	}
	o.hosts = min(o.hosts, o.endpoints)
}

func start(ctx context.Context, o options) error {
	r, err := rig.Start(ctx, rig.Options{Brokers: o.brokers, Partitions: o.partitions, TLS: o.tls})
	if err != nil {
		return err
	}
	defer r.Close()
	protocol := "http"
	if o.tls {
		protocol = "https"
	}
	fmt.Printf("%s\n%s, %d endpoints on %d hosts; bodies of 1 to 3 kB\n", r, protocol, o.endpoints, o.hosts)
	if o.backlog > 0 {
		return behind(ctx, o, r)
	}
	return compare(ctx, o, r)
}

// competitor is a deliverer, or, without one, the loop.
type competitor struct {
	name      string
	merchants *rig.Merchants
	d         *rig.Deliverer
	endpoints []rig.Endpoint
	child     *measure.Child
	each      []figures
}

// figures are those of one run.
type figures struct {
	rate   float64 // deliveries a second
	micros float64 // CPU a delivery
	waited float64 // records a delivery, of those that had to wait
	memory int64   // bytes resident at the end
}

func compare(ctx context.Context, o options, r *rig.Rig) error {
	fmt.Printf("%d deliveries a run, %s; loop of %d connections; %d interleaved runs after one to warm up\n\n",
		o.deliveries, o.pace(), o.connections, o.runs)
	all, err := field(ctx, o, r)
	if err != nil {
		return err
	}
	for run := range o.runs + 1 {
		for _, c := range all {
			f, err := c.run(ctx, o, run == o.runs)
			if err != nil {
				return fmt.Errorf("run %d of %s: %w", run, c.name, err)
			}
			if run > 0 {
				c.each = append(c.each, f)
				fmt.Printf("run %d  %s\n", run, f.of(c.name))
			}
		}
	}
	return report(ctx, all)
}

func (o options) pace() string {
	switch {
	case o.rate > 0:
		return fmt.Sprintf("%.0f a second", o.rate)
	case o.window > 0:
		return fmt.Sprintf("%d at a time", o.window)
	}
	return "all at once"
}

func (f figures) of(name string) string {
	return fmt.Sprintf("%-10s %7.0f deliveries/s  %6.1f µs CPU a delivery  %5d MB  %5.2f records on `retries` a delivery",
		name, f.rate, f.micros, f.memory>>20, f.waited)
}

// field starts the competitors: this deliverer, those of other builds, the loop.
func field(ctx context.Context, o options, r *rig.Rig) (all []*competitor, err error) {
	entries := []string{"deliverer="}
	if o.with != "" {
		entries = append(entries, strings.Split(o.with, ",")...)
	}
	for _, entry := range append(entries, "loop=") {
		c := &competitor{}
		var program string
		c.name, program, _ = strings.Cut(entry, "=")
		if c.merchants, err = r.Merchants(); err != nil {
			return nil, err
		}
		if c.name == "loop" {
			c.child, err = startLoop(o, r, c.merchants)
		} else {
			c.endpoints = c.merchants.Endpoints("e", rig.OK, o.endpoints, o.hosts)
			if c.d, err = r.Begin(ctx, c.name, program, c.endpoints, nil); err == nil {
				c.child = c.d.Child
			}
		}
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", c.name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// run has a competitor deliver, and takes its CPU time around it.
func (c *competitor) run(ctx context.Context, o options, last bool) (f figures, err error) {
	before, err := c.child.CPU()
	if err != nil {
		return f, err
	}
	began := time.Now()
	if c.d == nil {
		err = c.child.Ask("go", new(string))
	} else {
		f.waited, err = c.deliver(ctx, o, last)
	}
	if err != nil {
		return f, err
	}
	after, err := c.child.CPU()
	if err != nil {
		return f, err
	}
	f.rate = float64(o.deliveries) / time.Since(began).Seconds()
	f.micros = float64((after - before).Microseconds()) / float64(o.deliveries)
	f.memory, err = c.child.Memory()
	return f, err
}

func (c *competitor) deliver(ctx context.Context, o options, last bool) (waited float64, err error) {
	before, err := c.d.Waited(ctx)
	if err != nil {
		return 0, err
	}
	if o.profile != "" && last && len(c.each) > 0 && c.name == "deliverer" {
		took := float64(o.deliveries) / c.each[len(c.each)-1].rate
		profiled := make(chan error, 1)
		go func() { profiled <- c.d.Profile(o.profile, max(1, int(took*0.8))) }()
		defer func() { err = errors.Join(err, <-profiled) }()
	}
	if err := o.feed(ctx, c.merchants, c.d, c.endpoints); err != nil {
		return 0, err
	}
	if err := c.d.Await(ctx, c.d.Fed()); err != nil {
		return 0, err
	}
	after, err := c.d.Waited(ctx)
	return float64(after-before) / float64(o.deliveries), err
}

// feed puts a run's deliveries on the log.
func (o options) feed(ctx context.Context, m *rig.Merchants, d *rig.Deliverer, endpoints []rig.Endpoint) error {
	if o.window == 0 || o.rate > 0 {
		return d.Feed(ctx, o.deliveries, o.rate, rig.Each(endpoints))
	}
	return d.FeedWindow(ctx, m, o.deliveries, o.window, rig.Each(endpoints))
}

func report(ctx context.Context, all []*competitor) error {
	fmt.Println("\nmedians:")
	loop := medians(all[len(all)-1].each)
	for _, c := range all {
		m := medians(c.each)
		fmt.Printf("  %s", m.of(c.name))
		if c.d != nil {
			fmt.Printf("   %.2f times the loop's CPU", m.micros/loop.micros)
		}
		fmt.Println()
	}
	fmt.Println()
	var wrong []error
	for _, c := range all {
		counted, err := c.merchants.Count()
		if err != nil {
			return err
		}
		if c.d == nil {
			c.child.Stop()
			continue
		}
		b, err := c.d.Balance(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s: merchants counted %d requests; the ledger %s\n", c.name, counted, b)
		c.d.End()
		if !b.Closes() || uint64(counted) != b.Attempts {
			wrong = append(wrong, fmt.Errorf("%s: what is recorded is not what was delivered", c.name))
		}
	}
	return errors.Join(wrong...)
}

func medians(runs []figures) (m figures) {
	of := func(value func(figures) float64) float64 {
		var values []float64
		for _, f := range runs {
			values = append(values, value(f))
		}
		return measure.Median(values)
	}
	m.rate = of(func(f figures) float64 { return f.rate })
	m.micros = of(func(f figures) float64 { return f.micros })
	m.waited = of(func(f figures) float64 { return f.waited })
	m.memory = int64(of(func(f figures) float64 { return float64(f.memory) }))
	return m
}
