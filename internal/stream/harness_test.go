package stream

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// onBoth runs a test on the embedded broker, for speed, and on Apache Kafka, for truth.
func onBoth(t *testing.T, test func(t *testing.T, cfg kafka.Config)) {
	t.Run("kfake", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.FakeKafka(t))
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.Kafka(t))
	})
}

// counter is a task that counts and sums by key: state, changelog and one output an input. The output says the count,
// so that a lost or doubled effect shows.
type counter struct{}

const (
	counterIn    = schemas.Inbound
	counterState = schemas.Billing
	counterOut   = schemas.Events
)

func counterSpec() Spec {
	return Spec{
		Group: "counter", Input: counterIn, Stores: []StoreSpec{{Topic: counterState}},
		NewTask: func(*Partition) (Task, error) { return &counter{}, nil },
	}
}

func (c *counter) Process(tx *Tx, in *kgo.Record) error {
	value, _, err := tx.Get(counterState, in.Key)
	if err != nil {
		return err
	}
	var count, sum int
	if len(value) > 0 {
		if _, err := fmt.Sscanf(string(value), "%d %d", &count, &sum); err != nil {
			return err
		}
	}
	n, err := strconv.Atoi(string(in.Value))
	if err != nil {
		return err
	}
	state := fmt.Appendf(nil, "%d %d", count+1, sum+n)
	tx.Put(counterState, in.Key, state)
	tx.Emit(counterOut, string(in.Key), &kgo.Record{Key: in.Key, Value: state})
	return nil
}
func (c *counter) Prefetch(in *kgo.Record, read func(string, []byte)) { read(counterState, in.Key) }
func (c *counter) Advance(*Tx, time.Time) error                       { return nil }
func (c *counter) Settled(bool)                                       {}
func (c *counter) Full() bool                                         { return false }
func (c *counter) Close()                                             {}
func (c *counter) Drain(context.Context)                              {}

// running is a group at work in this process.
type running struct {
	*Group
	t      *testing.T
	cancel context.CancelFunc
	ended  chan error
	once   sync.Once
}

func testLog(t *testing.T) *slog.Logger {
	level := slog.LevelWarn
	if os.Getenv("STREAM_TEST_LOG") != "" {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})).With("t", t.Name())
}

func config(cfg kafka.Config, dir string) Config {
	return Config{Kafka: cfg, StateDir: dir}
}

// begin runs a group until stop is called or the test ends.
func begin(t *testing.T, spec Spec, cfg Config, change ...func(*Group)) *running {
	t.Helper()
	g, err := New(spec, cfg, testLog(t), prometheus.NewRegistry())
	require.NoError(t, err)
	for _, f := range change {
		f(g)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Group: g, t: t, cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- g.Run(ctx) }()
	t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	r.once.Do(func() {
		r.cancel()
		select {
		case err := <-r.ended:
			require.NoError(r.t, err)
		case <-time.After(60 * time.Second):
			require.FailNow(r.t, "group does not stop")
		}
	})
}

func (r *running) ready() *running {
	r.t.Helper()
	testenv.Eventually(r.t, 60*time.Second, func() bool { return r.Check(context.Background()) == nil }, "ready")
	return r
}

// client produces and reads for tests.
type client struct {
	t   *testing.T
	cfg kafka.Config
	*kgo.Client
}

func newClient(t *testing.T, cfg kafka.Config) *client {
	t.Helper()
	cl, err := kafka.NewProducer(cfg, kafka.ProducerLimits{Records: 100_000, Bytes: 1 << 28, Timeout: 5 * time.Minute}, testLog(t))
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return &client{t, cfg, cl}
}

func (c *client) produce(topic string, records ...*kgo.Record) {
	c.t.Helper()
	for _, r := range records {
		r.Topic = c.cfg.Topic(topic)
		r.Partition = c.cfg.PartitionOf(string(r.Key))
	}
	require.NoError(c.t, c.ProduceSync(context.Background(), records...).FirstErr())
}

// numbers makes n records over some keys, with values that tell them apart by their sum.
func numbers(n, keys int) []*kgo.Record {
	out := make([]*kgo.Record, n)
	for i := range out {
		out[i] = &kgo.Record{Key: fmt.Appendf(nil, "org_%d", i%keys), Value: []byte(strconv.Itoa(i))}
	}
	return out
}

// committed reads a topic to its end as of now, read committed, and returns the values by key, in order.
func (c *client) committed(topic string) map[string][]string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	full := c.cfg.Topic(topic)
	ends, err := kadm.NewClient(c.Client).ListCommittedOffsets(ctx, full)
	require.NoError(c.t, err)
	from, left := map[int32]kgo.Offset{}, map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		require.NoError(c.t, o.Err)
		if o.Offset > 0 {
			from[o.Partition], left[o.Partition] = kgo.NewOffset().AtStart(), o.Offset
		}
	})
	out := map[string][]string{}
	if len(left) == 0 {
		return out
	}
	cl, err := kgo.NewClient(append(kafka.Options(c.cfg, testLog(c.t)),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{full: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	require.NoError(c.t, err)
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		require.NoError(c.t, fetches.Err())
		for r := range fetches.RecordsAll() {
			if end, ok := left[r.Partition]; ok && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				out[string(r.Key)] = append(out[string(r.Key)], string(r.Value))
			}
		}
	}
	return out
}

// effectsWithin bounds the wait for all effects, on a machine that does other things too.
const effectsWithin = 3 * time.Minute

// requireExact waits until n outputs are there and checks that each input had its effect once, in order.
func (c *client) requireExact(n int, records []*kgo.Record) {
	c.t.Helper()
	require.Len(c.t, records, n)
	want := map[string][]string{}
	sums := map[string]int{}
	for _, r := range records {
		key := string(r.Key)
		v, _ := strconv.Atoi(string(r.Value))
		sums[key] += v
		want[key] = append(want[key], fmt.Sprintf("%d %d", len(want[key])+1, sums[key]))
	}
	var got map[string][]string
	testenv.Eventually(c.t, effectsWithin, func() bool {
		got = c.committed(counterOut)
		total := 0
		for _, v := range got {
			total += len(v)
		}
		return total >= n
	}, "all outputs")
	require.Equal(c.t, want, got)
	for key, values := range c.committed(counterState) {
		require.Equal(c.t, want[key][len(want[key])-1], values[len(values)-1], key)
	}
}

// commitOffsets sets a group's offset in each partition of its input to 0; without meta as Kafka's own tools do.
func (c *client) commitOffsets(group, input string, meta *webhooksv1.CommitMetadata) {
	c.t.Helper()
	metadata := ""
	if meta != nil {
		var err error
		metadata, err = encodeMetadata(meta)
		require.NoError(c.t, err)
	}
	offsets := kadm.Offsets{}
	for id := range c.cfg.Partitions {
		offsets.Add(kadm.Offset{Topic: c.cfg.Topic(input), Partition: id, LeaderEpoch: -1, Metadata: metadata})
	}
	require.NoError(c.t, kadm.NewClient(c.Client).CommitAllOffsets(context.Background(), c.cfg.TopicPrefix+group, offsets))
}
