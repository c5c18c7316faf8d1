package table

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
)

const (
	topic      = "endpoints"
	partitions = 3
)

func TestReplaysThenTails(t *testing.T) {
	f := newFixture(t)
	f.put("a", "1")
	f.put("b", "2")
	f.put("a", "3")

	c := f.start(f.dir())
	f.current(c, "a", "b")
	require.Equal(t, "3", f.get(c, "a"))
	require.Equal(t, "2", f.get(c, "b"))

	f.put("c", "4")
	f.current(c, "c")
	require.Equal(t, "4", f.get(c, "c"))
	require.Eventually(t, func() bool { return c.Check(t.Context()) == nil && c.Age() < 5*time.Second }, 10*time.Second, 10*time.Millisecond)
}

func TestTombstoneDeletes(t *testing.T) {
	f := newFixture(t)
	f.put("a", "1")
	c := f.start(f.dir())
	f.current(c, "a")
	f.delete("a")
	f.current(c, "a")
	require.Empty(t, f.get(c, "a"))
}

func TestEmptyValueIsNotATombstone(t *testing.T) {
	f := newFixture(t)
	f.put("a", "")
	c := f.start(f.dir())
	f.current(c, "a")
	_, ok, err := c.Get([]byte("a"))
	require.NoError(t, err)
	require.True(t, ok)
}

func TestScanSeesOnlyThePrefixInOrder(t *testing.T) {
	f := newFixture(t)
	for _, key := range []string{"org1", "org1/ep2", "org1/ep1", "org10/ep3", "org2/ep4", "org1/\xff\xff"} {
		f.put(key, "x")
	}
	c := f.start(f.dir())
	f.current(c, "org1", "org1/ep2", "org1/ep1", "org10/ep3", "org2/ep4", "org1/\xff\xff")

	require.Equal(t, []string{"org1/ep1", "org1/ep2", "org1/\xff\xff"}, scan(t, c, "org1/"))
	require.Len(t, scan(t, c, ""), 6)
	var first []string
	require.NoError(t, c.Scan([]byte("org1/"), func(key, _ []byte) bool {
		first = append(first, string(key))
		return false
	}))
	require.Equal(t, []string{"org1/ep1"}, first)
}

func TestRestartReadsOnlyTheTail(t *testing.T) {
	f := newFixture(t)
	dir := f.dir()
	f.put("a", "1")
	f.put("b", "2")
	c := f.start(dir)
	f.current(c, "a", "b")
	f.stop(c)

	f.put("a", "3")
	f.delete("b")
	seen := &changes{}
	c = f.start(dir, seen.note)
	f.current(c, "a", "b")
	require.Equal(t, "3", f.get(c, "a"))
	require.Empty(t, f.get(c, "b"))
	// First what the local store held, then what the log brought.
	require.Equal(t, map[string][]string{"a": {"1", "3"}, "b": {"2", "deleted"}}, seen.all())
}

func TestChangesComeInOrderAndCanBeRead(t *testing.T) {
	f := newFixture(t)
	seen := &changes{}
	for i := range 50 {
		f.put("k", fmt.Sprint(i))
	}
	c := f.open(f.dir())
	c.OnChange(seen.note)
	c.OnChange(func(key, value []byte) {
		_, ok, err := c.Get(key)
		require.NoError(t, err)
		require.True(t, ok)
	})
	f.run(c)
	f.current(c, "k")
	want := make([]string, 50)
	for i := range want {
		want[i] = fmt.Sprint(i)
	}
	require.Equal(t, want, seen.all()["k"])
}

func TestBarrierOpensInSpiteOfATransactionThatStaysOpen(t *testing.T) {
	f := newFixture(t)
	c := f.start(f.dir())
	tx := f.transaction()
	require.NoError(t, tx.BeginTransaction())
	f.produce(tx, "a", []byte("uncommitted"))
	f.put("other", "1")

	// What is not committed is not shown, and a writer that is slow or dead holds reads up only for a while.
	f.current(c, "a", "other")
	require.Empty(t, f.get(c, "a"))

	require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryCommit))
	f.current(c, "a")
	require.Equal(t, "uncommitted", f.get(c, "a"))
}

func TestBarrierPassesAbortedTransactions(t *testing.T) {
	f := newFixture(t)
	c := f.start(f.dir())
	tx := f.transaction()
	require.NoError(t, tx.BeginTransaction())
	f.produce(tx, "a", []byte("aborted"))
	require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryAbort))

	f.current(c, "a")
	require.Empty(t, f.get(c, "a"))
}

func TestBarrierIsQuickAfterACommit(t *testing.T) {
	f := newFixture(t)
	c := f.start(f.dir())
	tx := f.transaction()
	f.current(c, "a")
	for i := range 20 {
		require.NoError(t, tx.BeginTransaction())
		f.produce(tx, "a", []byte(fmt.Sprint(i)))
		require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryCommit))
		began := time.Now()
		f.current(c, "a")
		require.Equal(t, fmt.Sprint(i), f.get(c, "a"))
		require.Less(t, time.Since(began), 3*time.Second)
	}
}

// What a fake broker could get wrong: markers, last stable offsets, offsets validated by epoch.
func TestOnRealKafka(t *testing.T) {
	cfg := testenv.Kafka(t)
	f := &fixture{t: t, cfg: cfg, stops: map[*Copy]func(){}}
	f.client = f.newClient()
	tx := f.transaction()
	dir := f.dir()
	c := f.start(dir)
	f.current(c, "a", "b")
	for i := range 20 {
		require.NoError(t, tx.BeginTransaction())
		f.produce(tx, "a", []byte(fmt.Sprint(i)))
		f.produce(tx, "b", []byte("aborted"))
		end := kgo.TryAbort
		if i%2 == 0 {
			end = kgo.TryCommit
		}
		require.NoError(t, tx.EndTransaction(t.Context(), end))
		began := time.Now()
		f.current(c, "a")
		require.Less(t, time.Since(began), 3*time.Second)
		require.Equal(t, fmt.Sprint(i/2*2), f.get(c, "a"))
	}
	require.NoError(t, tx.BeginTransaction())
	f.produce(tx, "a", []byte("open"))
	f.current(c, "a", "b")
	require.Equal(t, "18", f.get(c, "a"))
	f.stop(c)
	require.NoError(t, tx.EndTransaction(t.Context(), kgo.TryCommit))

	c = f.start(dir)
	f.current(c, "a")
	require.Equal(t, "open", f.get(c, "a"))
	f.put("a", "after")
	f.current(c, "a")
	require.Equal(t, "after", f.get(c, "a"))
}

func TestTopicMayComeAfterTheCopy(t *testing.T) {
	f := newCluster(t)
	var said bytes.Buffer
	c := f.openLogged(f.dir(), slog.New(slog.NewTextHandler(&said, nil)))
	f.run(c)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, c.WaitCurrent(ctx, "a"), context.DeadlineExceeded)
	require.ErrorContains(t, c.Check(t.Context()), "still being read")

	f.createTopic()
	f.put("a", "1")
	f.current(c, "a")
	require.Equal(t, "1", f.get(c, "a"))
	f.stop(c)
	// Said once, though asked for many times.
	require.Equal(t, 1, strings.Count(said.String(), "not found yet"))
}

func TestWaitAsksAgainAfterEachBatch(t *testing.T) {
	f := newFixture(t)
	c := f.start(f.dir())
	done := make(chan error, 1)
	go func() {
		done <- c.Wait(t.Context(), func() (bool, error) {
			_, ok, err := c.Get([]byte("late"))
			return ok, err
		})
	}()
	f.put("late", "1")
	require.NoError(t, <-done)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Wait(ctx, func() (bool, error) { return false, nil }), context.Canceled)
	broken := errors.New("broken")
	require.ErrorIs(t, c.Wait(t.Context(), func() (bool, error) { return false, broken }), broken)
}

func TestReadsAfterCloseSaySo(t *testing.T) {
	f := newFixture(t)
	c := f.start(f.dir())
	f.stop(c)
	_, _, err := c.Get([]byte("a"))
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, c.Scan(nil, nil), ErrClosed)
}

// fixture is a fake cluster with the table's topic, and a writer.
type fixture struct {
	t      *testing.T
	cfg    kafka.Config
	client *kgo.Client
	stops  map[*Copy]func()
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := newCluster(t)
	f.createTopic()
	return f
}

// newCluster is a fixture without the topic.
func newCluster(t *testing.T) *fixture {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	f := &fixture{t: t, stops: map[*Copy]func(){}, cfg: kafka.Config{
		Brokers: cluster.ListenAddrs(), TopicPrefix: "t.", Partitions: partitions, ReplicationFactor: 1,
	}}
	f.client = f.newClient()
	return f
}

func (f *fixture) newClient(opts ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(opts,
		kgo.SeedBrokers(f.cfg.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	require.NoError(f.t, err)
	f.t.Cleanup(client.Close)
	return client
}

func (f *fixture) createTopic() {
	compact := "compact"
	_, err := kadm.NewClient(f.client).CreateTopic(f.t.Context(), partitions, 1,
		map[string]*string{"cleanup.policy": &compact}, f.cfg.Topic(topic))
	require.NoError(f.t, err)
}

func (f *fixture) createTopicAnew() {
	name := f.cfg.Topic(topic)
	_, err := kadm.NewClient(f.client).DeleteTopics(f.t.Context(), name)
	require.NoError(f.t, err)
	f.client.PurgeTopicsFromClient(name)
	f.createTopic()
}

func (f *fixture) transaction() *kgo.Client {
	return f.newClient(kgo.TransactionalID(f.cfg.Topic("writer")))
}

func (f *fixture) dir() string { return f.t.TempDir() }

func (f *fixture) put(key, value string) { f.produce(f.client, key, []byte(value)) }
func (f *fixture) delete(key string)     { f.produce(f.client, key, nil) }

func (f *fixture) produce(client *kgo.Client, key string, value []byte) {
	f.t.Helper()
	require.NoError(f.t, client.ProduceSync(f.t.Context(), &kgo.Record{
		Topic: f.cfg.Topic(topic), Partition: f.cfg.PartitionOf(key), Key: []byte(key), Value: value,
	}).FirstErr())
}

func (f *fixture) open(dir string) *Copy {
	f.t.Helper()
	return f.openLogged(dir, slog.New(slog.DiscardHandler))
}

func (f *fixture) openLogged(dir string, log *slog.Logger) *Copy {
	f.t.Helper()
	c, err := New(Config{Kafka: f.cfg, StateDir: dir, Topic: topic}, log, prometheus.NewRegistry())
	require.NoError(f.t, err)
	f.t.Cleanup(func() { require.NoError(f.t, c.Close()) })
	return c
}

func (f *fixture) run(c *Copy) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	f.stops[c] = sync.OnceFunc(func() {
		cancel()
		require.NoError(f.t, <-ended)
	})
	f.t.Cleanup(f.stops[c])
}

func (f *fixture) start(dir string, watchers ...func(key, value []byte)) *Copy {
	f.t.Helper()
	c := f.open(dir)
	for _, fn := range watchers {
		c.OnChange(fn)
	}
	f.run(c)
	return c
}

func (f *fixture) stop(c *Copy) {
	f.t.Helper()
	f.stops[c]()
	require.NoError(f.t, c.Close())
}

// current passes the barrier of each key.
func (f *fixture) current(c *Copy, keys ...string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	for _, key := range keys {
		require.NoError(f.t, c.WaitCurrent(ctx, key))
	}
}

func (f *fixture) get(c *Copy, key string) string {
	f.t.Helper()
	value, _, err := c.Get([]byte(key))
	require.NoError(f.t, err)
	return string(value)
}

func scan(t *testing.T, c *Copy, prefix string) (keys []string) {
	t.Helper()
	require.NoError(t, c.Scan([]byte(prefix), func(key, _ []byte) bool {
		keys = append(keys, string(key))
		return true
	}))
	return keys
}

// changes collects what watchers are told, by key.
type changes struct {
	mu   sync.Mutex
	seen map[string][]string
}

func (c *changes) note(key, value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = map[string][]string{}
	}
	text := string(value)
	if value == nil {
		text = "deleted"
	}
	c.seen[string(key)] = append(c.seen[string(key)], text)
}

func (c *changes) all() map[string][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}
