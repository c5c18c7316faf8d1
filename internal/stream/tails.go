package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/store"
)

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
	// moved is when records last came, asked when it was last asked why none do.
	moved, asked time.Time
	load         *store.Load
	// reading tells that its turn has come.
	reading bool
	// began is from before the target was asked for: at the target the store is as current as the log was then. Until it
	// gets there it is no younger than it was.
	began, age time.Time
}

// apply writes what was read, where that brings the store, and when it was known to be current.
func (t *tail) apply(ctx context.Context, age time.Time) error {
	return t.load.Commit(ctx, store.Position{
		TopicID: t.o.topics[t.i], LeaderEpoch: t.from.epoch, Offset: t.from.offset, AppliedAt: age,
		IndexVersion: t.o.spec.Stores[t.i].IndexVersion,
	})
}

const (
	// heldBytes is how much a restore holds in memory before it writes. A piece of a store that is read and written whole
	// is written once; of several pieces with keys between one another's, all but the first are merged.
	heldBytes = 32 << 20
	// underWay is how many offsets are to be read, at least, of the tails whose turn it is: enough for full fetches. They
	// take turns so that what is held is of few of them.
	underWay = 50_000
)

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
		kgo.FetchMaxBytes(16<<20),
		kgo.FetchMaxPartitionBytes(8<<20),
	)...)
	if err != nil {
		return fmt.Errorf("read changelogs: %w", err)
	}
	defer client.Close()
	defer r.abandon()
	queue := r.queue()
	client.PauseFetchPartitions(partitions(queue...))
	r.export()
	told := time.Now()
	for len(r.tails) > 0 {
		queue = r.turns(client, queue)
		pctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		fetches := client.PollRecords(pctx, 20_000)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		before := r.count
		if err := r.take(ctx, fetches); err != nil {
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
		t.load.Close()
		delete(r.tails, k)
	}
	r.export()
}

func (r *restore) take(ctx context.Context, fetches kgo.Fetches) error {
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
			before := t.load.Bytes()
			t.add(rec)
			r.count++
			if r.held += t.load.Bytes() - before; r.held >= heldBytes {
				errs = errors.Join(errs, r.relieve(ctx))
			}
		}
		if len(p.Records) > 0 {
			t.moved = time.Now()
		}
	})
	return errs
}

func (t *tail) add(r *kgo.Record) {
	t.from = position{r.Offset + 1, r.LeaderEpoch}
	switch {
	case r.Attrs.IsControl():
	case r.Value == nil:
		t.load.Delete(r.Key)
	default:
		t.load.Put(r.Key, r.Value)
	}
}

// relieve writes what is held of the tail that has most. No tail is blamed for the time that takes.
func (r *restore) relieve(ctx context.Context) error {
	var most *tail
	began := time.Now()
	defer func() {
		for _, t := range r.tails {
			t.moved = t.moved.Add(time.Since(began))
		}
	}()
	for _, t := range r.tails {
		if most == nil || t.load.Bytes() > most.load.Bytes() {
			most = t
		}
	}
	r.held -= most.load.Bytes()
	if err := most.apply(ctx, most.age); !errors.Is(err, store.ErrSuperseded) {
		return err
	}
	return nil
}

// queue is all tails in the order of their turns: partitions are ready one after the other.
func (r *restore) queue() []*tail {
	return slices.SortedFunc(maps.Values(r.tails), func(a, b *tail) int {
		return cmp.Or(cmp.Compare(a.o.id, b.o.id), cmp.Compare(a.i, b.i))
	})
}

// turns has tails read as long as there is little left to read of those whose turn it is and that get on.
func (r *restore) turns(client *kgo.Client, queue []*tail) []*tail {
	var left int64
	for _, t := range r.tails {
		if t.reading && time.Since(t.moved) < stalled {
			left += t.target - t.from.offset
		}
	}
	for len(queue) > 0 && left < underWay {
		t := queue[0]
		queue = queue[1:]
		if r.tails[t.key()] != t {
			continue // its partition is gone
		}
		t.reading, t.moved = true, time.Now()
		left += t.target - t.from.offset
		client.ResumeFetchPartitions(partitions(t))
	}
	return queue
}

func (t *tail) key() tailKey { return tailKey{t.topic, t.o.id} }

// partitions is how the client wants them named.
func partitions(tails ...*tail) map[string][]int32 {
	ids := map[string][]int32{}
	for _, t := range tails {
		ids[t.topic] = append(ids[t.topic], t.o.id)
	}
	return ids
}

// finish ends the tails that are at their target or whose partition is gone.
func (r *restore) finish(ctx context.Context, client *kgo.Client, done func(*owned)) error {
	for k, t := range r.tails {
		if t.o.part.ctx.Err() != nil {
			r.drop(client, k, t)
			continue
		}
		if t.from.offset < t.target && t.reading && time.Since(t.moved) > stalled && time.Since(t.asked) > stalled {
			if err := r.probe(ctx, t); err != nil {
				return err
			}
			t.asked = time.Now()
		}
		if t.from.offset < t.target {
			continue
		}
		r.held -= t.load.Bytes()
		err := t.apply(ctx, t.began)
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
	r.held -= t.load.Bytes()
	t.load.Close()
	delete(r.tails, k)
	client.RemoveConsumePartitions(partitions(t))
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
