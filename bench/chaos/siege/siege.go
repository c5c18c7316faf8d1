// Package siege runs several processes of the processor on a real Kafka, breaks them and it while they work, and judges
// what has become of every input. The program bench/chaos is its command line, its own test a minute of it.
//
// How it goes: load writes the lives of some thousands of organizations, as edges would; package fire kills, freezes, adds
// and removes the instances (each this program again, running the whole processor with a state folder of its own) and
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
	"sync/atomic"
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
	cluster *fire.Cluster
	keys    *seal.Keyring
	load    *load
	watch   *watch
	herd    *fire.Herd
	report  *Report
	inTimer atomic.Int64
}

// groups are the task groups under fire, in the order that events flow.
var groups = []string{schemas.GroupRouter, schemas.GroupInbound, schemas.GroupFanOut}

// Run makes topics, lets the siege go on and judges. An error is what kept it from a judgement; what it judges is in the
// report.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	if cfg.Logs != "" {
		if err := os.MkdirAll(cfg.Logs, 0o755); err != nil {
			return nil, err
		}
	}
	topics := kafka.Config{
		Brokers: cfg.Brokers.Addrs(), TopicPrefix: fmt.Sprintf("chaos-%d.", time.Now().UnixNano()), Partitions: cfg.Partitions,
		ReplicationFactor: int16(len(cfg.Brokers.Brokers)),
	}
	if err := kafka.EnsureTopics(ctx, topics, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	secretsKey := seal.NewKey()
	keys, err := seal.NewKeyring(secretsKey)
	if err != nil {
		return nil, err
	}
	cluster, err := fire.NewCluster(topics)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	r := &run{Config: cfg, cluster: cluster, keys: keys, report: &Report{Seed: cfg.Seed, Measured: fire.Measured{KillsOnly: cfg.KillsOnly, Compared: cfg.Peace > 0}}, watch: newWatch(cluster)}
	r.herd = &fire.Herd{
		Groups: groups, Variable: childVariable, Logs: cfg.Logs,
		Tell: func(in *fire.Instance) any { return child{Kafka: topics, StateDir: in.State, SecretsKey: secretsKey} },
	}
	defer func() { err = errors.Join(err, r.herd.Close()) }()
	if r.load, err = newLoad(topics, cfg.Orgs, cfg.Seed); err != nil {
		return nil, err
	}
	defer r.load.client.Close()
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
		if err := r.herd.Add(ctx); err != nil {
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
	faults := &fire.Faults{
		Herd: r.herd, Cluster: r.cluster, Brokers: r.Brokers, Rand: rand.New(rand.NewPCG(r.Seed, 0)),
		Interval: r.Interval, KeepState: r.KillsOnly, Out: r.Out, Began: time.Now(),
	}
	r.watch.ignite()
	burning, over := context.WithTimeout(ctx, r.Saturated+r.Steady)
	defer over()
	var burnt sync.WaitGroup
	var err error
	burnt.Go(func() { err = faults.Run(ctx, r.Saturated+r.Steady, r.deck(faults)) })
	r.report.Fire = r.saturate(burning, r.Saturated)
	r.watch.time()
	r.load.steady(burning, r.Rate)
	burnt.Wait()
	r.report.Counts, r.report.InTimer, r.report.Under = faults.Counts(), int(r.inTimer.Load()), time.Since(faults.Began)
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
	return r.herd.End()
}

// warmUp loads until every partition has been worked on for a while.
func (r *run) warmUp(ctx context.Context) error {
	load := func(ctx context.Context) { r.load.steady(ctx, r.Rate) }
	return r.herd.WarmUp(ctx, drainWithin, load, func() string {
		for p := range r.watch.taken {
			if n := r.watch.taken[p].Load(); n < 50 {
				return fmt.Sprintf("partition %d has been taken to offset %d", p, n)
			}
		}
		return ""
	})
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
func (r *run) assembled(ctx context.Context) (string, error) { return r.cluster.Assembled(ctx, r.herd) }

func (r *run) await(ctx context.Context, what string, missing func(context.Context) (string, error)) error {
	return r.herd.Await(ctx, drainWithin, what, missing)
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
	r.report.Rebalances, err = r.cluster.Rebalances(ctx, groups)
	return err
}
