package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/inbound"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
)

// batch and age are when both the processor's transactions and the loop's close.
const (
	batch = 1000
	age   = 25 * time.Millisecond
)

// while runs a competitor until the parent goes away. It writes a profile from the line "profile" to the line "done".
func while(ctx context.Context, o options, run func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	err := measure.Obey("ready", func(line string) (any, error) {
		if line == "done" {
			pprof.StopCPUProfile()
			return "ok", nil
		}
		f, err := os.Create(o.profile)
		if err != nil {
			return nil, err
		}
		return "ok", pprof.StartCPUProfile(f)
	})
	cancel()
	<-done
	return err
}

// runProcessor is the group `inbound` as the service runs it.
func runProcessor(ctx context.Context, o options) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	keys, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		return err
	}
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 5000}, keys)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	in, err := inbound.New(inbound.Config{
		Plans: plans.Builtin(), DedupeRetention: 8 * 24 * time.Hour, DedupeBySource: map[string]time.Duration{"stripe": 32 * 24 * time.Hour},
	}, applier, log, reg)
	if err != nil {
		return err
	}
	group, err := stream.New(in.Spec(), stream.Config{
		Kafka: o.cluster(), StateDir: o.state, Sessions: o.sessions, BatchRecords: batch, BatchAge: age,
	}, log, reg)
	if err != nil {
		return err
	}
	return while(ctx, o, group.Run)
}

const groupLoop = "loop"

// runLoop is franz-go's own transactional session: consume, produce the same bytes, commit; no state.
func runLoop(ctx context.Context, o options) error {
	return while(ctx, o, func(ctx context.Context) error {
		var sessions errgroup.Group
		for i := range max(o.sessions, 1) {
			sessions.Go(func() error { return loop(ctx, o, i) })
		}
		return sessions.Wait()
	})
}

func loop(ctx context.Context, o options, n int) error {
	cluster := o.cluster()
	session, err := kgo.NewGroupTransactSession(append(kafka.Options(cluster, slog.New(slog.DiscardHandler)),
		kgo.ConsumerGroup(cluster.Topic(groupLoop)),
		kgo.ConsumeTopics(cluster.Topic(schemas.Inbound)),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.TransactionalID(fmt.Sprint(o.prefix, "loop-", n)),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(schemas.MaxRecordBytes),
		// What a processor that cares for its latency sets, too.
		kgo.ConcurrentTransactionsBackoff(5*time.Millisecond),
	)...)
	if err != nil {
		return err
	}
	defer session.Close()
	output := cluster.Topic(schemas.Events)
	for ctx.Err() == nil {
		fetches := session.PollRecords(ctx, batch)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		if err := session.Begin(); err != nil {
			return err
		}
		promise := kgo.AbortingFirstErrPromise(session.Client())
		send := func(fetches kgo.Fetches) (n int) {
			fetches.EachRecord(func(r *kgo.Record) {
				session.Produce(ctx, &kgo.Record{Topic: output, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}, promise.Promise())
				n++
			})
			return n
		}
		began := time.Now()
		for n := send(fetches); n < batch && time.Since(began) < age; {
			wait, cancel := context.WithDeadline(ctx, began.Add(age))
			n += send(session.PollRecords(wait, batch-n))
			cancel()
		}
		if _, err := session.End(ctx, kgo.TransactionEndTry(promise.Err() == nil)); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}
