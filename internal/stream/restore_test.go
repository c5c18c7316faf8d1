package stream

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/store"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// meddle changes what a stopped group has on disk: each store's position, and a record that the log never had.
func meddle(t *testing.T, cfg kafka.Config, dir string, change func(*store.Position)) {
	t.Helper()
	db, err := store.Open(filepath.Join(dir, "counter", "db"), store.Options{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for id := range cfg.Partitions {
		p, err := db.Acquire(id, []string{counterState})
		require.NoError(t, err)
		pos, ok, err := p.Position(0)
		require.NoError(t, err)
		require.True(t, ok)
		change(&pos)
		b := p.Batch()
		b.Put(0, []byte("ghost"), []byte("1 1"))
		b.Position(0, pos)
		require.NoError(t, b.Commit())
	}
	require.NoError(t, db.Close())
}

// haunted reports whether the record that the log never had is on disk, in each partition.
func haunted(t *testing.T, cfg kafka.Config, dir string) bool {
	t.Helper()
	db, err := store.Open(filepath.Join(dir, "counter", "db"), store.Options{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	n := 0
	for id := range cfg.Partitions {
		p, err := db.Acquire(id, []string{counterState})
		require.NoError(t, err)
		_, ok, err := p.AppendGet(nil, 0, []byte("ghost"))
		require.NoError(t, err)
		if ok {
			n++
		}
	}
	require.True(t, n == 0 || n == int(cfg.Partitions), "%d partitions", n)
	return n > 0
}

func TestLocalStateIsTrustedOnlyWhenItIsAPrefixOfTheLog(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*store.Position)
		byAge  bool // the store's records
		wiped  bool
	}{
		"as it was left":     {change: func(*store.Position) {}},
		"behind":             {change: func(p *store.Position) { p.Offset = 0 }},
		"of another topic":   {change: func(p *store.Position) { p.TopicID[3]++ }, wiped: true},
		"ahead of the log":   {change: func(p *store.Position) { p.Offset += 1000 }, wiped: true},
		"too old":            {change: func(p *store.Position) { p.AppliedAt = time.Now().Add(-schemas.TombstoneRetention/2 - time.Minute) }, wiped: true},
		"too old, by age":    {change: func(p *store.Position) { p.AppliedAt = time.Now().Add(-schemas.MaxDedupeRetention) }, byAge: true},
		"before it, by age":  {change: func(p *store.Position) { p.Offset = -5 }, byAge: true, wiped: true},
		"from the future":    {change: func(p *store.Position) { p.AppliedAt = time.Now().Add(2 * time.Hour) }, wiped: true},
		"before the log":     {change: func(p *store.Position) { p.Offset = -5 }, wiped: true},
		"indexed otherwise":  {change: func(p *store.Position) { p.IndexVersion++ }, wiped: true},
		"of a later history": {change: func(p *store.Position) { p.LeaderEpoch += 7 }, wiped: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, cfg kafka.Config) {
				c, dir := newClient(t, cfg), t.TempDir()
				in := numbers(400, 20)
				spec := counterSpec()
				spec.Stores[0].ByAge = test.byAge
				g := begin(t, spec, config(cfg, dir)).ready()
				c.produce(counterIn, in[:200]...)
				c.requireExact(200, in[:200])
				g.stop()
				meddle(t, cfg, dir, test.change)
				g = begin(t, spec, config(cfg, dir)).ready()
				c.produce(counterIn, in[200:]...)
				c.requireExact(400, in)
				g.stop()
				require.Equal(t, test.wiped, !haunted(t, cfg, dir))
			})
		})
	}
}

// A dead owner's transaction may be open on a changelog when the next owner restores. How it ends decides whether its
// records are state, so it is waited for.
func TestRestoreWaitsForAnOpenTransaction(t *testing.T) {
	for name, commit := range map[string]kgo.TransactionEndTry{"committed": kgo.TryCommit, "aborted": kgo.TryAbort} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, cfg kafka.Config) {
				ctx := context.Background()
				c, dir := newClient(t, cfg), t.TempDir()
				c.commitOffsets("counter", counterIn, &webhooksv1.CommitMetadata{Transaction: 1})
				dead, err := kgo.NewClient(append(kafka.Options(cfg, testLog(t)),
					kgo.TransactionalID(cfg.TopicPrefix+"dead"), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
				require.NoError(t, err)
				defer dead.Close()
				require.NoError(t, dead.BeginTransaction())
				for _, key := range []string{"org_0", "org_1"} {
					require.NoError(t, dead.ProduceSync(ctx, &kgo.Record{
						Topic: cfg.Topic(counterState), Partition: cfg.PartitionOf(key), Key: []byte(key), Value: []byte("1000 1"),
					}).FirstErr())
				}
				in := numbers(2, 2)
				c.produce(counterIn, in...)
				g := begin(t, counterSpec(), config(cfg, dir))
				time.Sleep(stalled + time.Second) // long enough to be asked why
				require.ErrorIs(t, g.Check(ctx), errRestoring)
				require.NoError(t, dead.EndTransaction(ctx, commit))
				g.ready()
				want := map[kgo.TransactionEndTry]string{kgo.TryCommit: "1001 1", kgo.TryAbort: "1 0"}[commit]
				testenv.Eventually(t, 20*time.Second, func() bool {
					got := c.committed(counterOut)["org_0"]
					return len(got) == 1 && got[0] == want
				}, "org_0 is ", want)
			})
		})
	}
}

// With the newest records of a changelog compacted away there is nothing to read up to its end.
func TestRestoreEndsWhereNothingIsLeftToRead(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		ctx := context.Background()
		c := newClient(t, cfg)
		in := numbers(100, 20)
		g := begin(t, counterSpec(), config(cfg, t.TempDir())).ready()
		c.produce(counterIn, in...)
		c.requireExact(100, in)
		ends, err := g.adm.ListEndOffsets(ctx, cfg.Topic(counterState))
		require.NoError(t, err)
		end, _ := ends.Lookup(cfg.Topic(counterState), 0)
		r := &restore{g: g.Group, log: g.log}
		o := &owned{id: 0}
		at := func(from int64) *tail {
			return &tail{o: o, topic: cfg.Topic(counterState), from: position{from, -1}, target: end.Offset}
		}
		there := at(0)
		require.NoError(t, r.probe(ctx, there))
		require.Zero(t, there.from.offset, "all of it is there")

		gone := at(end.Offset)
		gone.target++ // as if one more record had been written, and cleaned away, marker and all
		require.NoError(t, r.probe(ctx, gone))
		require.Equal(t, end.Offset, gone.target, "the log ends before the target: it was truncated")
	})
}

func TestOfTheRecordsOfAKeyTheNewestIsRestored(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	st, err := db.Acquire(0, []string{counterState})
	require.NoError(t, err)
	spec := counterSpec()
	restoring := &tail{o: &owned{spec: &spec, store: st, topics: make([][16]byte, 1)}, load: st.Load(0, nil)}
	for i, r := range []struct{ key, value string }{
		{"b", "1"}, {"gone", "1"}, {"a", "1"}, {"back", ""}, {"b", "2"}, {"gone", ""}, {"back", "2"}, {"b", "3"},
	} {
		record := &kgo.Record{Offset: int64(i), Key: []byte(r.key)}
		if r.value != "" {
			record.Value = []byte(r.value)
		}
		restoring.add(record)
	}
	require.NoError(t, restoring.apply(context.Background(), time.Now()))
	it, err := st.Scan(0, nil, nil)
	require.NoError(t, err)
	var got []string
	for ; it.Valid(); it.Next() {
		got = append(got, string(it.Key())+"="+string(it.Value()))
	}
	require.NoError(t, it.Close())
	require.Equal(t, []string{"a=1", "b=3", "back=2"}, got)
}

// A large state is written as files, and its partitions take turns; overwritten and deleted keys lie far from one another.
func TestALargeStateIsRestored(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, dir := newClient(t, cfg), t.TempDir()
		c.commitOffsets("counter", counterIn, &webhooksv1.CommitMetadata{Transaction: 1})
		want, records := map[string]string{}, []*kgo.Record{}
		for i := range 4 * underWay / 2 {
			key, value := fmt.Sprintf("org_%d", i*7919%30_000), fmt.Sprintf("%0300d", i)
			r := &kgo.Record{Key: []byte(key)}
			if i%5 == 0 {
				delete(want, key)
			} else {
				r.Value, want[key] = []byte(value), value
			}
			records = append(records, r)
		}
		c.produce(counterState, records...)
		g := begin(t, counterSpec(), config(cfg, dir)).ready()
		require.GreaterOrEqual(t, valueOf(t, g.metrics.restored), float64(len(records)))
		require.Zero(t, valueOf(t, g.metrics.left))
		g.stop()
		require.Equal(t, want, onDisk(t, cfg, dir))

		g = begin(t, counterSpec(), config(cfg, dir)).ready()
		require.Zero(t, valueOf(t, g.metrics.restored), "it is current")
	})
}

// onDisk is all records that a stopped group has, of all partitions.
func onDisk(t *testing.T, cfg kafka.Config, dir string) map[string]string {
	t.Helper()
	db, err := store.Open(filepath.Join(dir, "counter", "db"), store.Options{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	found := map[string]string{}
	for id := range cfg.Partitions {
		p, err := db.Acquire(id, []string{counterState})
		require.NoError(t, err)
		it, err := p.Scan(0, nil, nil)
		require.NoError(t, err)
		for ; it.Valid(); it.Next() {
			found[string(it.Key())] = string(it.Value())
		}
		require.NoError(t, it.Close())
	}
	return found
}

// However many tails are read, what is held of them is bounded, and what is written first is what there is most of.
func TestARestoreHoldsOnlySoMuch(t *testing.T) {
	ctx := context.Background()
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	spec := counterSpec()
	r := &restore{tails: map[tailKey]*tail{}}
	for id := range int32(4) {
		st, err := db.Acquire(id, []string{counterState})
		require.NoError(t, err)
		o := &owned{id: id, spec: &spec, store: st, topics: make([][16]byte, 1)}
		r.tails[tailKey{counterState, id}] = &tail{o: o, topic: counterState, load: st.Load(0, nil)}
	}
	written := func(id int32) int64 {
		pos, _, err := r.tails[tailKey{counterState, id}].o.store.Position(0)
		require.NoError(t, err)
		return pos.Offset
	}
	feed := func(id int32, offset int64, bytes int) {
		record := &kgo.Record{Offset: offset, Key: fmt.Append(nil, offset), Value: make([]byte, bytes)}
		require.NoError(t, r.take(ctx, kgo.Fetches{{Topics: []kgo.FetchTopic{{
			Topic: counterState, Partitions: []kgo.FetchPartition{{Partition: id, Records: []*kgo.Record{record}}},
		}}}}))
	}
	feed(0, 0, heldBytes/8)
	feed(1, 0, heldBytes/2)
	feed(2, 0, heldBytes/8)
	require.Equal(t, []int64{0, 0, 0}, []int64{written(0), written(1), written(2)})
	feed(3, 0, heldBytes/4)
	require.Equal(t, []int64{0, 1, 0, 0}, []int64{written(0), written(1), written(2), written(3)})
	require.Less(t, r.held, heldBytes*5/8)
	for i := range int64(40) {
		feed(int32(i%4), i+1, heldBytes/3)
		require.Less(t, r.held, heldBytes)
	}
}

// A store that is being brought up to date is as old as it was until it is.
func TestAnInterruptedRestoreMakesAStoreNoYounger(t *testing.T) {
	ctx := context.Background()
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	st, err := db.Acquire(0, []string{counterState})
	require.NoError(t, err)
	began := time.UnixMilli(time.Now().UnixMilli())
	former := began.Add(-50 * time.Hour)
	b := st.Batch()
	b.Position(0, store.Position{LeaderEpoch: -1, Offset: 3, AppliedAt: former})
	require.NoError(t, b.Commit())

	spec := counterSpec()
	o := &owned{id: 0, spec: &spec, store: st, topics: make([][16]byte, 1)}
	restoring := &tail{o: o, topic: counterState, target: 10, began: began, age: began}
	r := &restore{tails: map[tailKey]*tail{{counterState, 0}: restoring}}
	require.NoError(t, r.begin(ctx, restoring, 0))
	age := func() time.Time {
		pos, ok, err := st.Position(0)
		require.NoError(t, err)
		require.True(t, ok)
		return pos.AppliedAt
	}
	half := &kgo.Record{Topic: counterState, Offset: 3, Key: []byte("k"), Value: make([]byte, heldBytes)}
	require.NoError(t, r.take(ctx, kgo.Fetches{{Topics: []kgo.FetchTopic{{
		Topic: counterState, Partitions: []kgo.FetchPartition{{Records: []*kgo.Record{half}}},
	}}}}))
	_, ok, err := st.AppendGet(nil, 0, []byte("k"))
	require.NoError(t, err)
	require.True(t, ok, "some of it is on disk")
	require.Equal(t, former, age())
	require.NoError(t, restoring.apply(ctx, restoring.began))
	require.Equal(t, began, age(), "at its target it is as current as the log was when reading began")
}

func valueOf(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	require.NoError(t, m.Write(&out))
	return out.GetCounter().GetValue() + out.GetGauge().GetValue() // it is one of them
}

func TestAPartitionThatComesBackIsNotRestoredAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c := newClient(t, cfg)
		in := numbers(2000, 100)
		first := begin(t, counterSpec(), config(cfg, t.TempDir())).ready()
		c.produce(counterIn, in[:1900]...)
		c.requireExact(1900, in[:1900])
		require.Zero(t, valueOf(t, first.metrics.restored), "there was nothing to restore")

		second := begin(t, counterSpec(), config(cfg, t.TempDir())).ready()
		testenv.Eventually(t, time.Minute, func() bool { return valueOf(t, second.metrics.partitions) > 0 }, "some partitions to move")
		require.Positive(t, valueOf(t, second.metrics.restored), "they were new there")
		c.produce(counterIn, in[1900:]...)
		c.requireExact(2000, in)
		second.stop()

		testenv.Eventually(t, time.Minute, func() bool { return valueOf(t, first.metrics.partitions) == float64(cfg.Partitions) }, "them to come back")
		// A state record and a marker, or a few, for each of the inputs meanwhile.
		require.Less(t, valueOf(t, first.metrics.restored), 300.0, "only what was written elsewhere is read")
		require.Zero(t, valueOf(t, first.metrics.wiped))
	})
}
