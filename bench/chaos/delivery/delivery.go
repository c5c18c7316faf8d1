// Package delivery runs several deliverers on a real Kafka and a real ClickHouse, breaks all three while they work, and
// judges what has become of every delivery. The program bench/chaos is its command line, its own test a minute of it.
//
// How it goes: load writes what fan-out would, for endpoints that it changes as their owners would; receivers, which
// answer well and badly, keep every request; package fire kills, freezes, adds and removes the instances (each this
// program again, running the whole deliverer with its sinks) and kills brokers, while ClickHouse is killed, frozen and
// kept away. When the fire is over, receivers answer well, and everything has ended, judge compares what was made, what
// the receivers saw, what is on the log and what ClickHouse has.
//
// What a run promises: a delivery that does not end, or not as its attempts say; an attempt that is no row or two; a row
// that no receiver saw; a request sent twice without being marked, or without a reason; a row that a sink lost, doubled
// or made up is found and told. What it must not do: use a hook in the code under fire.
package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

// Config is a run.
type Config struct {
	Seed       uint64
	Brokers    *testenv.KafkaCluster
	ClickHouse *testenv.ClickHouseServer
	Instances  int
	Partitions int32
	Endpoints  int
	// Rate is how many events a second are written while the load is steady.
	Rate int
	// Peace and Saturated are how long the load is as much as the instances deliver, undisturbed and under fire; Steady is how
	// long it is steady, under fire. The throughputs of the first two are compared.
	Peace, Saturated, Steady time.Duration
	// Interval is the mean time between two faults, of instances and brokers and of ClickHouse each.
	Interval time.Duration
	// Away is how long ClickHouse is down, once a round.
	Away time.Duration
	// KillsOnly leaves the faults at SIGKILLs of instances that keep what they had on disk, and of ClickHouse.
	KillsOnly bool
	// Out is told of each fault.
	Out io.Writer
	// Logs is a folder for what the instances write; "" keeps nothing.
	Logs string
}

// drainWithin bounds the wait, after the fire, for everything to end. A breaker may have opened for a minute.
const drainWithin = 4 * time.Minute

// groups are the task groups under fire.
var groups = []string{schemas.GroupDeliverer}

// run is one under way.
type run struct {
	Config
	cluster   *fire.Cluster
	rows      string // URL of the database
	herd      *fire.Herd
	load      *load
	receivers *receivers
	watch     *watch
	report    *Report
	strikes   []fire.Strike
}

// Run makes topics, lets the siege go on and judges. An error is what kept it from a judgement; what it judges is in the
// report.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	if cfg.Logs != "" {
		if err := os.MkdirAll(cfg.Logs, 0o755); err != nil {
			return nil, err
		}
	}
	name := fmt.Sprintf("chaos-%d", time.Now().UnixNano())
	topics := kafka.Config{
		Brokers: cfg.Brokers.Addrs(), TopicPrefix: name + ".", Partitions: cfg.Partitions,
		ReplicationFactor: int16(len(cfg.Brokers.Brokers)),
	}
	if err := kafka.EnsureTopics(ctx, topics, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	r := &run{Config: cfg, rows: "clickhouse://" + cfg.ClickHouse.Addr + "/" + name, report: &Report{Seed: cfg.Seed, Measured: fire.Measured{KillsOnly: cfg.KillsOnly, Compared: cfg.Peace > 0}}}
	if r.cluster, err = fire.NewCluster(topics); err != nil {
		return nil, err
	}
	defer r.cluster.Close()
	if r.receivers, err = listen(cfg.Seed, cfg.Partitions); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.receivers.close()) }()
	secretsKey := seal.NewKey()
	keys, err := seal.NewKeyring(secretsKey)
	if err != nil {
		return nil, err
	}
	if r.load, err = newLoad(cfg, topics, r.receivers.urls, keys); err != nil {
		return nil, err
	}
	defer r.load.client.Close()
	r.receivers.kindOf = r.load.kindOf
	r.herd = &fire.Herd{Groups: groups, Variable: childVariable, Logs: cfg.Logs, Tell: func(in *fire.Instance) any {
		return child{Kafka: topics, Name: in.Name, StateDir: in.State, SecretsKey: secretsKey, Rows: r.rows}
	}}
	defer func() { err = errors.Join(err, r.herd.Close()) }()
	r.watch = newWatch(r.cluster, r.herd, r.load, r.receivers)
	return r.report, r.run(ctx)
}

// run is the fight, watched, and the judgement.
func (r *run) run(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	var watched sync.WaitGroup
	var watchErr error
	watched.Go(func() { watchErr = r.watch.run(watching) })
	err := r.fight(ctx)
	stop()
	watched.Wait()
	if err := errors.Join(err, watchErr, ctx.Err()); err != nil {
		return err
	}
	return r.judge(ctx)
}

// fight is everything up to the judgement.
func (r *run) fight(ctx context.Context) error {
	for range r.Instances {
		if err := r.herd.Add(ctx); err != nil {
			return err
		}
	}
	if err := r.await(ctx, "every instance to be a member", r.assembled); err != nil {
		return err
	}
	if err := r.warmUp(ctx); err != nil {
		return err
	}
	r.report.Peace = r.saturate(ctx, r.Peace)
	if err := r.burn(ctx); err != nil {
		return err
	}
	r.receivers.heal()
	if err := r.load.finish(ctx); err != nil {
		return err
	}
	ended := time.Now()
	if err := r.await(ctx, "everything to end", r.watch.left); err != nil {
		return err
	}
	r.report.Drained, r.report.Stall = time.Since(ended), r.watch.longestStall()
	if err := r.await(ctx, "every instance to be a member again", r.assembled); err != nil {
		return err
	}
	return r.herd.End()
}

// burn is the time of the faults.
func (r *run) burn(ctx context.Context) error {
	began, d := time.Now(), r.Saturated+r.Steady
	faults := &fire.Faults{
		Herd: r.herd, Cluster: r.cluster, Brokers: r.Brokers, Rand: rand.New(rand.NewPCG(r.Seed, 0)),
		Interval: r.Interval, KeepState: r.KillsOnly, Out: r.Out, Began: began,
	}
	rows := &rowFaults{
		Faults: &fire.Faults{Rand: rand.New(rand.NewPCG(r.Seed, 2)), Interval: r.Interval, Out: r.Out, Began: began},
		server: r.ClickHouse, away: r.Away,
	}
	r.watch.ignite()
	burning, over := context.WithTimeout(ctx, d)
	defer over()
	var burnt sync.WaitGroup
	errs := make([]error, 2)
	burnt.Go(func() { errs[0] = faults.Run(ctx, d, r.deck(faults)) })
	burnt.Go(func() { errs[1] = rows.Run(ctx, d, r.rowDeck(rows)) })
	r.report.Fire = r.saturate(burning, r.Saturated)
	r.report.timedFrom = time.Now()
	r.load.steady(burning, r.Rate)
	// What takes long goes on, and so does the load: a fault that meets nothing shows nothing.
	loading, stop := context.WithCancel(ctx)
	var loaded sync.WaitGroup
	loaded.Go(func() { r.load.steady(loading, r.Rate) })
	burnt.Wait()
	stop()
	loaded.Wait()
	r.report.Counts, r.report.Under, r.strikes = faults.Counts(), time.Since(began), faults.Strikes()
	r.report.RowKills, r.report.RowFreezes, r.report.downs = rows.kills, rows.freezes, rows.downs
	return errors.Join(errs...)
}

// warmUp loads until every partition has been worked on for a while.
func (r *run) warmUp(ctx context.Context) error {
	load := func(ctx context.Context) { r.load.steady(ctx, r.Rate) }
	return r.herd.WarmUp(ctx, drainWithin, load, func() string {
		for p := range r.watch.ended {
			if n := r.watch.ended[p].Load(); n < 20 {
				return fmt.Sprintf("of partition %d %d deliveries have ended", p, n)
			}
		}
		return ""
	})
}

// saturate loads as much as is delivered, for a time, and gives the deliveries a second that ended.
func (r *run) saturate(ctx context.Context, d time.Duration) (perSecond float64) {
	if d == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began, before := time.Now(), r.watch.progress()
	r.load.saturate(ctx, func(p int32) int64 { return r.watch.ended[p].Load() })
	return float64(r.watch.progress()-before) / time.Since(began).Seconds()
}

func (r *run) assembled(ctx context.Context) (string, error) { return r.cluster.Assembled(ctx, r.herd) }

func (r *run) await(ctx context.Context, what string, missing func(context.Context) (string, error)) error {
	return r.herd.Await(ctx, drainWithin, what, missing)
}
