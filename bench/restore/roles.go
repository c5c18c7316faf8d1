package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
)

const input = schemas.Inbound

// stateTopic is dedupe's, or one that does not drop records by age, as they have none.
func (o options) stateTopic() string {
	if o.dedupe {
		return schemas.InboundSeen
	}
	return schemas.Billing
}

// fill writes the state's changelog.
func fill(ctx context.Context, o options) error {
	if err := kafka.EnsureTopics(ctx, o.cluster(), slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	return produce(ctx, o, o.stateTopic(), o.keys, func(i int) *kgo.Record {
		r := &kgo.Record{Partition: int32(i % o.partitions)}
		if o.dedupe {
			r.Key, r.Value = remembered(i)
			return r
		}
		content := make([]byte, o.keyBytes+o.valueBytes)
		_, _ = random.Read(content) // never fails
		r.Key, r.Value = content[:o.keyBytes], content[o.keyBytes:]
		binary.LittleEndian.PutUint64(r.Key[o.keyBytes-8:], uint64(i)) // no key twice
		return r
	})
}

// produce writes records to a topic, each to the partition that it says.
func produce(ctx context.Context, o options, topic string, count int, record func(i int) *kgo.Record) error {
	cluster, log := o.cluster(), slog.New(slog.DiscardHandler)
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{Records: 100_000, Bytes: 256 << 20, Timeout: time.Minute, Linger: 5 * time.Millisecond}, log)
	if err != nil {
		return err
	}
	defer client.Close()
	promise := kgo.AbortingFirstErrPromise(client)
	for i := range count {
		r := record(i)
		r.Topic = cluster.Topic(topic)
		client.Produce(ctx, r, promise.Promise())
	}
	if err := promise.Err(); err != nil {
		return fmt.Errorf("fill %s: %w", topic, err)
	}
	return nil
}

// place writes where the group is in its input, the end: one that has state and no offset refuses to start.
func place(ctx context.Context, o options) error {
	cluster := o.cluster()
	client, err := kgo.NewClient(kafka.Options(cluster, slog.New(slog.DiscardHandler))...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	ends, err := admin.ListEndOffsets(ctx, cluster.Topic(input))
	if err != nil {
		return err
	}
	return admin.CommitAllOffsets(ctx, cluster.Topic(o.group), ends.Offsets())
}

// idle is a task that has state and nothing to do.
type idle struct{}

func (idle) Process(*stream.Tx, *kgo.Record) error { return nil }
func (idle) Advance(*stream.Tx, time.Time) error   { return nil }
func (idle) Settled(bool)                          {}
func (idle) Full() bool                            { return false }
func (idle) Close()                                {}
func (idle) Drain(context.Context)                 {}

// runGroup answers how long it took until the group was at work, and, asked again, how many of the events that were fed it
// knew and did not know.
func runGroup(ctx context.Context, o options) error {
	began := time.Now()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	spec, counts := stream.Spec{
		Group: o.group, Input: input, Stores: []stream.StoreSpec{{Topic: o.stateTopic()}},
		NewTask: func(*stream.Partition) (stream.Task, error) { return idle{}, nil },
	}, &met{}
	if o.dedupe {
		spec = dedupeSpec(o.group, counts, log)
	}
	registry := prometheus.NewRegistry()
	g, err := stream.New(spec, stream.Config{Kafka: o.cluster(), StateDir: o.state, Sessions: o.sessions}, log, registry)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- g.Run(ctx) }()
	alive := func() {
		select {
		case err := <-failed:
			panic(err)
		default:
		}
	}
	return measure.Obey("started", func(line string) (any, error) {
		if line == "recall" {
			err := await(ctx, func() error { alive(); return counts.of(o.events) })
			return fmt.Sprint(counts.known.Load(), " ", counts.fresh.Load()), err
		}
		var assigned, atWork, since time.Time
		err := await(ctx, func() error {
			alive()
			working, restoring := partitions(registry)
			now := time.Now()
			if assigned.IsZero() && working+restoring > 0 {
				assigned = now
			}
			if atWork.IsZero() && working == o.partitions {
				atWork = now
			}
			if err := g.Check(ctx); err != nil || working < o.partitions {
				since = now
				return fmt.Errorf("%d partitions at work: %w", working, err)
			}
			if now.Sub(since) < settled {
				return errors.New("partitions may be handed over still")
			}
			return nil
		})
		return start{restoring: atWork.Sub(assigned).Seconds(), all: atWork.Sub(began).Seconds()}, err
	})
}

// settled is how long all partitions are at work before it is answered, and the process killed. A session that joins first has
// all of them, and hands some over once another has joined: a group that is stopped in between starts by finishing that.
const settled = 200 * time.Millisecond

// partitions says how many are at work, and how many on their way to it.
func partitions(registry *prometheus.Registry) (working, restoring int) {
	families, _ := registry.Gather() // what fails is not among them
	for _, f := range families {
		switch n := int(f.Metric[0].GetGauge().GetValue()); f.GetName() {
		case "webhooks_stream_partitions":
			working = n
		case "webhooks_stream_partitions_restoring":
			restoring = n
		}
	}
	return working, restoring
}

// runConsumer answers, once, how long a plain consumer took to read it all.
func runConsumer(ctx context.Context, o options) error {
	began, cluster := time.Now(), o.cluster()
	from := map[int32]kgo.Offset{}
	for id := range cluster.Partitions {
		from[id] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(append(kafka.Options(cluster, slog.New(slog.DiscardHandler)),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{cluster.Topic(o.stateTopic()): from}), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(64<<20), kgo.FetchMaxPartitionBytes(4<<20))...)
	if err != nil {
		return err
	}
	defer client.Close()
	var read atomic.Int64
	go func() {
		for ctx.Err() == nil {
			read.Add(int64(client.PollRecords(ctx, 20_000).NumRecords()))
		}
	}()
	return measure.Obey("started", func(string) (any, error) {
		err := await(ctx, func() error {
			if n := read.Load(); n < int64(o.keys) {
				return fmt.Errorf("%d records read", n)
			}
			return nil
		})
		return start{all: time.Since(began).Seconds()}, err
	})
}
