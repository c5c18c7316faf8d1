// Package siege runs several processes of the processor on a real Kafka, breaks them and it while they work, and judges
// what has become of every input. The program bench/chaos is its command line, its own test a minute of it.
//
// How it goes: load writes the lives of some thousands of organizations, as edges would; faults kills, freezes, adds and
// removes the instances (herd, each this program again, running the whole processor with a state folder of its own) and
// kills brokers; watch sees from outside how fast rows become visible. When the fire is over and everything has been
// taken, judge reads every topic as a read committed reader and compares it, record by record, with what a model makes of
// the inputs in the order in which they stand on the log: one thread, the pure domain, nothing of the runtime.
//
// What a run promises: a record that is lost, doubled, out of its organization's order, or of another content is found and
// told, and so is an instance that ends by itself or does not stop when it is told to. What it must not do: use a hook in
// the code under fire.
package siege

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

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/testenv"
)

// Config is a run.
type Config struct {
	Seed       uint64
	Brokers    *testenv.KafkaCluster
	Instances  int
	Partitions int32
	Orgs       int
	// Rate is how many inputs a second are written while the load is steady.
	Rate int
	// Peace and Saturated are how long the load is as much as the instances take, undisturbed and under fire; Steady is how
	// long it is steady, under fire. The throughputs of the first two are compared.
	Peace, Saturated, Steady time.Duration
	// Interval is the mean time between two faults.
	Interval time.Duration
	// KillsOnly leaves the faults at SIGKILLs of instances that keep what they had on disk.
	KillsOnly bool
	// Out is told of each fault.
	Out io.Writer
	// Logs is a folder for what the instances write; "" keeps nothing.
	Logs string
}

// drainWithin bounds the wait, after the fire, for everything to be taken.
const drainWithin = 4 * time.Minute

// run is one under way.
type run struct {
	Config
	cluster kafka.Config
	keys    *seal.Keyring
	load    *load
	watch   *watch
	herd    *herd
	report  *Report
}

// Run makes topics, lets the siege go on and judges. An error is what kept it from a judgement; what it judges is in the
// report.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	if cfg.Logs != "" {
		if err := os.MkdirAll(cfg.Logs, 0o755); err != nil {
			return nil, err
		}
	}
	cluster := kafka.Config{
		Brokers: cfg.Brokers.Addrs(), TopicPrefix: fmt.Sprintf("chaos-%d.", time.Now().UnixNano()), Partitions: cfg.Partitions,
		ReplicationFactor: int16(len(cfg.Brokers.Brokers)),
	}
	if err := kafka.EnsureTopics(ctx, cluster, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	secretsKey := seal.NewKey()
	keys, err := seal.NewKeyring(secretsKey)
	if err != nil {
		return nil, err
	}
	r := &run{Config: cfg, cluster: cluster, keys: keys, report: &Report{Seed: cfg.Seed}}
	r.herd = &herd{cluster: cluster, secretsKey: secretsKey, logs: cfg.Logs}
	defer func() { err = errors.Join(err, r.herd.close()) }()
	if r.load, err = newLoad(cluster, cfg.Orgs, cfg.Seed); err != nil {
		return nil, err
	}
	defer r.load.client.Close()
	if r.watch, err = newWatch(cluster); err != nil {
		return nil, err
	}
	defer r.watch.close()
	watching, stop := context.WithCancel(ctx)
	var watched sync.WaitGroup
	var watchErr error
	watched.Go(func() { watchErr = r.watch.run(watching, r.load) })
	err = r.fight(ctx)
	stop()
	watched.Wait()
	if err := errors.Join(err, watchErr, ctx.Err()); err != nil {
		return nil, err
	}
	return r.report, r.judge(ctx)
}

// fight is everything up to the judgement.
func (r *run) fight(ctx context.Context) error {
	for range r.Instances {
		if err := r.herd.add(ctx); err != nil {
			return err
		}
	}
	if err := r.await(ctx, "every instance to be a member of every group", r.assembled); err != nil {
		return err
	}
	if err := r.warmUp(ctx); err != nil {
		return err
	}
	r.report.Peace = r.saturate(ctx, r.Peace)
	fire := &faults{
		herd: r.herd, watch: r.watch, brokers: r.Brokers, rng: rand.New(rand.NewPCG(r.Seed, 0)),
		interval: r.Interval, killsOnly: r.KillsOnly, out: r.Out, began: time.Now(),
	}
	r.watch.ignite()
	burning, over := context.WithTimeout(ctx, r.Saturated+r.Steady)
	defer over()
	var burnt sync.WaitGroup
	var err error
	burnt.Go(func() { err = fire.run(ctx, r.Saturated+r.Steady) })
	r.report.Fire = r.saturate(burning, r.Saturated)
	r.watch.time()
	r.load.steady(burning, r.Rate)
	burnt.Wait()
	r.report.Counts, r.report.Under = fire.counts, time.Since(fire.began)
	if err != nil {
		return err
	}
	if err := r.load.finish(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := r.await(ctx, "everything to be taken", r.watch.left); err != nil {
		return err
	}
	r.report.Drained = time.Since(began)
	r.report.P50, r.report.P99 = r.watch.percentile(.5), r.watch.percentile(.99)
	r.report.Longest, r.report.Timed = r.watch.percentile(1), len(r.watch.times)
	r.report.Stall = r.watch.longestStall()
	if err := r.await(ctx, "every instance to be a member again", r.assembled); err != nil {
		return err
	}
	return r.herd.end()
}

// warmUp loads until every partition has been worked on for a while.
func (r *run) warmUp(ctx context.Context) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var loaded sync.WaitGroup
	loaded.Go(func() { r.load.steady(loading, r.Rate) })
	err := r.await(ctx, "every partition to be worked on", func(context.Context) (string, error) {
		for p := range r.watch.taken {
			if n := r.watch.taken[p].Load(); n < 50 {
				return fmt.Sprintf("partition %d has been taken to offset %d", p, n), nil
			}
		}
		return "", nil
	})
	stop()
	loaded.Wait()
	return err
}

// saturate loads as much as is taken, for a time, and gives the rows a second that became
// visible.
func (r *run) saturate(ctx context.Context, d time.Duration) (rowsASecond float64) {
	if d == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began, before := time.Now(), r.watch.visible()
	r.load.saturate(ctx, func(p int32) int64 { return r.watch.taken[p].Load() })
	return float64(r.watch.visible()-before) / time.Since(began).Seconds()
}

// assembled says which group does not have every instance for a member.
func (r *run) assembled(ctx context.Context) (string, error) {
	for _, group := range groups {
		members, err := r.watch.members(ctx, group)
		if err != nil {
			return "", err
		}
		if len(members) != r.herd.size() {
			return fmt.Sprintf("group %s has %d members of %d", group, len(members), r.herd.size()), nil
		}
	}
	return "", nil
}

// await asks again and again until nothing is missing.
func (r *run) await(ctx context.Context, what string, missing func(context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	for {
		left, err := missing(ctx)
		if left == "" && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited %s for %s: %s", drainWithin, what, left), err, r.herd.lastWords())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// judge compares, once nobody writes any more.
func (r *run) judge(ctx context.Context) error {
	applier, err := newApplier(r.keys)
	if err != nil {
		return err
	}
	written := func(topic string, p int32) int { return int(r.load.written[topic][p].Load()) }
	if r.report.verdict, err = newJudge(logOf(ctx, r.cluster), written, r.Partitions, applier).run(); err != nil {
		return err
	}
	if r.report.Aborted, err = abortedTimers(ctx, r.cluster); err != nil {
		return err
	}
	r.report.Rebalances, err = rebalances(ctx, r.cluster)
	return err
}
