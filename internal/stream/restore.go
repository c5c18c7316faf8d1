package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/store"
)

// A restore brings the stores of some partitions to the end of their changelogs. The end is the high watermark, asked
// for read uncommitted before reading begins; reading is read committed and goes on until past it. So what a writer
// committed whose markers are still under way, or what a dead writer left open, is waited for, not missed.
type restore struct {
	g     *Group
	log   *slog.Logger
	tails map[tailKey]*tail
	lost  map[*owned]bool // to another session of this process
	count int64
	left  int64 // as last exported
}

type tailKey struct {
	topic     string // full name
	partition int32
}

// tail is what one store has to read.
type tail struct {
	o      *owned
	i      int // index of the store
	topic  string
	from   position
	target int64 // the first offset that need not be read
	moved  time.Time
	batch  *store.Batch
	// records were read and are not in the batch yet; bytes is their size.
	records []*kgo.Record
	bytes   int
	// began is from before the target was asked for: at the target the store is as current as the log was then. Until it
	// gets there it is no younger than it was.
	began, age time.Time
}

// restore runs beside the loop; a letter tells of each partition when it is ready.
func (s *session) restore(parts []*owned) {
	began := time.Now()
	starts, err := s.inputStarts(s.restoring)
	told := map[*owned]bool{}
	tell := func(o *owned, err error) {
		told[o] = true
		s.g.metrics.restoreTime.Add(time.Since(began).Seconds())
		s.mail.put(letter{restored: o, start: starts[o.id], err: err})
	}
	if err == nil {
		err = s.g.restoreTails(s.restoring, s.log, parts, func(o *owned) { tell(o, nil) })
	}
	for _, o := range parts {
		// Without an error the rest is given up, or another session of this process has it: its loss is under way.
		if !told[o] && err != nil {
			tell(o, err)
		}
	}
}

// restoreNow is the same within the loop, for partitions that are at work.
func (s *session) restoreNow(ctx context.Context, parts []*owned) error {
	return s.g.restoreTails(ctx, s.log, parts, func(*owned) {})
}

// inputStarts are the first offsets of the input's partitions.
func (s *session) inputStarts(ctx context.Context) (map[int32]int64, error) {
	listed, err := s.g.adm.ListStartOffsets(ctx, s.input)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list start offsets of %s: %w", s.input, err)
	}
	starts := map[int32]int64{}
	for id, o := range listed[s.input] {
		starts[id] = o.Offset
	}
	return starts, nil
}

// restoreTails calls ready for each partition whose stores are current. It returns when all are, or given up.
func (g *Group) restoreTails(ctx context.Context, log *slog.Logger, parts []*owned, ready func(*owned)) error {
	r := &restore{g: g, log: log, tails: map[tailKey]*tail{}, lost: map[*owned]bool{}}
	if err := r.plan(ctx, parts); err != nil {
		return err
	}
	began := time.Now()
	waiting := map[*owned]int{}
	for _, t := range r.tails {
		waiting[t.o]++
	}
	for _, o := range parts {
		if waiting[o] == 0 && !r.lost[o] {
			ready(o)
		}
	}
	if len(r.tails) == 0 {
		return nil
	}
	err := r.read(ctx, func(o *owned) {
		if waiting[o]--; waiting[o] == 0 {
			ready(o)
		}
	})
	if took := time.Since(began); took > 2*time.Second {
		log.Info("state restored", "records", r.count, "seconds", took.Seconds())
	}
	return err
}

// plan decides for each store what of it can be kept, and what is to be read. Stores that are current need no reading.
func (r *restore) plan(ctx context.Context, parts []*owned) error {
	spec := &r.g.spec
	if len(spec.Stores) == 0 {
		return nil
	}
	began := time.Now()
	names := make([]string, len(spec.Stores))
	for i := range spec.Stores {
		names[i] = r.g.cfg.Kafka.Topic(spec.Stores[i].Topic)
	}
	topics, err := r.g.adm.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("look up changelogs: %w", err)
	}
	if err := topics.Error(); err != nil {
		return fmt.Errorf("look up changelogs: %w; topics are made at start (kafka.EnsureTopics)", err)
	}
	ends, err := r.g.adm.ListEndOffsets(ctx, names...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets of changelogs: %w", err)
	}
	starts, err := r.g.adm.ListStartOffsets(ctx, names...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("list start offsets of changelogs: %w", err)
	}
	for _, o := range parts {
		o.topics = o.topics[:0]
		for i, name := range names {
			o.topics = append(o.topics, topics[name].ID)
			start, _ := starts.Lookup(name, o.id)
			end, _ := ends.Lookup(name, o.id)
			t := &tail{o: o, i: i, topic: name, target: end.Offset, moved: began, began: began, age: began}
			if err := r.begin(ctx, t, start.Offset); err != nil {
				return err
			}
			if t.from.offset < t.target {
				r.tails[tailKey{name, o.id}] = t
				continue
			}
			err := t.apply(t.began)
			if errors.Is(err, store.ErrSuperseded) {
				r.lost[o] = true
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// begin finds where to read from, wiping a store that cannot be trusted.
func (r *restore) begin(ctx context.Context, t *tail, start int64) error {
	pos, ok, err := t.o.store.Position(t.i)
	if err != nil {
		return err
	}
	t.batch = t.o.store.Batch()
	t.from = position{pos.Offset, pos.LeaderEpoch}
	reason := ""
	if ok {
		if reason, err = r.distrust(ctx, t, pos, start); err != nil {
			return err
		}
	}
	if ok && reason == "" {
		if pos.AppliedAt.Before(t.began) {
			t.age = pos.AppliedAt
		}
		return nil
	}
	if ok {
		r.log.Warn("local state cannot be trusted and is rebuilt", "topic", t.topic, "partition", t.o.id, "reason", reason)
		r.g.metrics.wiped.Inc()
	}
	t.wipe(start)
	return nil
}

func (t *tail) wipe(start int64) {
	t.batch.Wipe(t.i)
	t.from = position{start, -1}
}

// distrust says why a store is not a prefix of its changelog, or "".
func (r *restore) distrust(ctx context.Context, t *tail, pos store.Position, start int64) (string, error) {
	spec := &t.o.spec.Stores[t.i]
	log := store.Log{TopicID: t.o.topics[t.i], Start: start, End: t.target, ByAge: spec.ByAge}
	if why := pos.Distrust(log, t.began); why != "" {
		return why, nil
	}
	switch {
	case pos.IndexVersion != spec.IndexVersion:
		return "its index was made by other rules", nil
	case pos.LeaderEpoch < 0:
		return "", nil
	}
	// KIP-101: the log up to the offset is the one that was read if the epoch it was read in did not end before it.
	var req kadm.OffsetForLeaderEpochRequest
	req.Add(t.topic, t.o.id, pos.LeaderEpoch)
	resp, err := r.g.adm.OffsetForLeaderEpoch(ctx, req)
	if err != nil {
		return "", fmt.Errorf("check epoch %d of %s/%d: %w", pos.LeaderEpoch, t.topic, t.o.id, err)
	}
	end := resp[t.topic][t.o.id]
	if end.Err != nil {
		return "", fmt.Errorf("check epoch %d of %s/%d: %w", pos.LeaderEpoch, t.topic, t.o.id, end.Err)
	}
	if end.EndOffset < pos.Offset {
		return fmt.Sprintf("epoch %d ended at offset %d, before the store's %d", pos.LeaderEpoch, end.EndOffset, pos.Offset), nil
	}
	return "", nil
}

// apply writes what was read, where that brings the store, and when it was known to be current.
func (t *tail) apply(age time.Time) error {
	t.write()
	t.batch.Position(t.i, store.Position{
		TopicID: t.o.topics[t.i], LeaderEpoch: t.from.epoch, Offset: t.from.offset, AppliedAt: age,
		IndexVersion: t.o.spec.Stores[t.i].IndexVersion,
	})
	err := t.batch.Commit()
	t.batch = nil
	return err
}

const applyBytes = 1 << 20

// read follows all tails to their targets.
func (r *restore) read(ctx context.Context, done func(*owned)) error {
	from := map[string]map[int32]kgo.Offset{}
	for k, t := range r.tails {
		if from[k.topic] == nil {
			from[k.topic] = map[int32]kgo.Offset{}
		}
		from[k.topic][k.partition] = kgo.NewOffset().At(t.from.offset)
	}
	client, err := kgo.NewClient(append(kafka.Options(r.g.cfg.Kafka, r.log),
		kgo.ConsumePartitions(from),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(100*time.Millisecond),
		kgo.FetchMaxBytes(64<<20),
		kgo.FetchMaxPartitionBytes(4<<20),
	)...)
	if err != nil {
		return fmt.Errorf("read changelogs: %w", err)
	}
	defer client.Close()
	defer r.abandon()
	r.export()
	told := time.Now()
	for len(r.tails) > 0 {
		pctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		fetches := client.PollRecords(pctx, 20_000)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		before := r.count
		if err := r.take(fetches); err != nil {
			return err
		}
		r.g.metrics.restored.Add(float64(r.count - before))
		r.export()
		if err := r.finish(ctx, client, done); err != nil {
			return err
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			r.tell()
		}
	}
	return nil
}

// abandon drops what is not finished.
func (r *restore) abandon() {
	for k, t := range r.tails {
		if t.batch != nil {
			_ = t.batch.Close() // never committed
		}
		delete(r.tails, k)
	}
	r.export()
}

func (r *restore) take(fetches kgo.Fetches) error {
	var errs error
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if p.Err != nil && !errors.Is(p.Err, context.DeadlineExceeded) && !errors.Is(p.Err, context.Canceled) {
			// Out of range, truncated, deleted: the plan is void. The next attempt makes a new one.
			errs = errors.Join(errs, fmt.Errorf("read changelog %s/%d: %w", p.Topic, p.Partition, p.Err))
		}
		t := r.tails[tailKey{p.Topic, p.Partition}]
		if t == nil {
			return
		}
		for _, rec := range p.Records {
			t.add(rec)
			r.count++
		}
		if len(p.Records) > 0 {
			t.moved = time.Now()
		}
		if t.bytes >= applyBytes {
			if err := t.apply(t.age); err != nil && !errors.Is(err, store.ErrSuperseded) {
				errs = errors.Join(errs, err)
			}
			t.batch = t.o.store.Batch()
		}
	})
	return errs
}

func (t *tail) add(r *kgo.Record) {
	t.from = position{r.Offset + 1, r.LeaderEpoch}
	if !r.Attrs.IsControl() {
		t.records = append(t.records, r)
		t.bytes += len(r.Key) + len(r.Value)
	}
}

// write puts what was read into the batch: the newest record of each key, in key order, which costs the store a quarter
// less than the log's order.
func (t *tail) write() {
	slices.SortStableFunc(t.records, func(a, b *kgo.Record) int { return bytes.Compare(a.Key, b.Key) })
	for i, r := range t.records {
		if i+1 < len(t.records) && bytes.Equal(r.Key, t.records[i+1].Key) {
			continue
		}
		if r.Value == nil {
			t.batch.Delete(t.i, r.Key)
			continue
		}
		t.batch.Put(t.i, r.Key, r.Value)
		if index := t.o.spec.Stores[t.i].Index; index != nil {
			index(r.Key, r.Value, func(k []byte) { t.batch.PutIndex(t.i, k) })
		}
	}
	clear(t.records)
	t.records, t.bytes = t.records[:0], 0
}

// finish ends the tails that are at their target or whose partition is gone.
func (r *restore) finish(ctx context.Context, client *kgo.Client, done func(*owned)) error {
	for k, t := range r.tails {
		if t.o.part.ctx.Err() != nil {
			r.drop(client, k, t)
			continue
		}
		if t.from.offset < t.target && time.Since(t.moved) > stalled {
			if err := r.probe(ctx, t); err != nil {
				return err
			}
			t.moved = time.Now()
		}
		if t.from.offset < t.target {
			continue
		}
		err := t.apply(t.began)
		r.drop(client, k, t)
		if errors.Is(err, store.ErrSuperseded) {
			continue
		}
		if err != nil {
			return err
		}
		done(t.o)
	}
	return nil
}

func (r *restore) drop(client *kgo.Client, k tailKey, t *tail) {
	if t.batch != nil {
		_ = t.batch.Close() // never committed
		t.batch = nil
	}
	delete(r.tails, k)
	client.RemoveConsumePartitions(map[string][]int32{k.topic: {k.partition}})
}

// tell logs how far a long restore is.
func (r *restore) tell() {
	r.log.Info("restoring state", "stores", len(r.tails), "records", r.count, "offsets_left", r.left)
}

// export adds this restore's share to the gauge of what is left.
func (r *restore) export() {
	var left int64
	for _, t := range r.tails {
		left += max(0, t.target-t.from.offset)
	}
	r.g.metrics.left.Add(float64(left - r.left))
	r.left = left
}
