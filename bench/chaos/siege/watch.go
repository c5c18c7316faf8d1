package siege

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// watch sees from outside how far the processors have come: what they have committed, and what a read committed reader
// sees, and when.
type watch struct {
	cluster *fire.Cluster

	// taken is what the group inbound has committed, by partition.
	taken []atomic.Int64

	mu    sync.Mutex
	moved []time.Time // when a partition last went on, or had nothing to do
	stall time.Duration
	// rows that were seen, and times from the acceptance of an input, not before from, until its row was.
	rows  int
	from  time.Time
	times []time.Duration
	// due has the timers that are set, by organization.
	due map[string]int64
	// timers has the newest output of a timer that was produced, committed or not, by the id of its producer.
	timers map[int64]place
	// quiet is how far the groups were when nothing was left to do.
	quiet string
}

// place is a record's.
type place struct {
	partition int32
	offset    int64
}

func newWatch(cluster *fire.Cluster) *watch {
	w := &watch{
		cluster: cluster, taken: make([]atomic.Int64, cluster.Partitions),
		moved: make([]time.Time, cluster.Partitions), due: map[string]int64{}, timers: map[int64]place{},
	}
	for p := range w.moved {
		w.moved[p] = time.Now()
	}
	return w
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context, l *load) error {
	var looking sync.WaitGroup
	errs := make([]error, 2)
	looking.Go(func() { w.sample(ctx, l) })
	looking.Go(func() {
		errs[0] = w.tail(ctx, kgo.ReadCommitted(), w.seen, schemas.InboundRows, schemas.Billing)
	})
	looking.Go(func() { errs[1] = w.tail(ctx, kgo.ReadUncommitted(), w.produced, schemas.Events) })
	looking.Wait()
	return errors.Join(errs...)
}

// sample asks for the committed offsets. A broker that is away answers nothing, and the clock of the stall runs on.
func (w *watch) sample(ctx context.Context, l *load) {
	input := w.cluster.Topic(schemas.Inbound)
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		ask, cancel := context.WithTimeout(ctx, time.Second)
		offsets, err := w.cluster.Admin.FetchOffsets(ask, w.cluster.Topic(schemas.GroupInbound))
		cancel()
		if err != nil {
			continue
		}
		now := time.Now()
		w.mu.Lock()
		for p := range w.cluster.Partitions {
			at := max(0, offsets[input][p].At)
			if w.taken[p].Swap(max(at, w.taken[p].Load())) < at || at >= l.head[schemas.Inbound][p].Load() {
				w.moved[p] = now
			}
			w.stall = max(w.stall, now.Sub(w.moved[p]))
		}
		w.mu.Unlock()
	}
}

// tail reads topics from their beginning until ctx ends. fn holds the lock.
func (w *watch) tail(
	ctx context.Context, level kgo.IsolationLevel, fn func(topic string, r *kgo.Record, now time.Time), topics ...string,
) error {
	return w.cluster.Tail(ctx, level, func(topic string, r *kgo.Record, now time.Time) {
		w.mu.Lock()
		defer w.mu.Unlock()
		fn(topic, r, now)
	}, topics...)
}

// seen is told what a read committed reader sees.
func (w *watch) seen(topic string, r *kgo.Record, now time.Time) {
	if topic == schemas.Billing {
		var record webhooksv1.BillingRecord
		if proto.Unmarshal(r.Value, &record) == nil {
			w.due[string(r.Key)] = record.DueUnixMs
		}
		return
	}
	w.rows++
	var row webhooksv1.InboundRow
	if w.from.IsZero() || proto.Unmarshal(r.Value, &row) != nil || row.ReceivedUnixMs < w.from.UnixMilli() {
		return
	}
	// What was held for a while says nothing.
	if n, ok := numberOf(row.OrganizationId); ok && wayOf(n) == direct {
		w.times = append(w.times, now.Sub(time.UnixMilli(row.ReceivedUnixMs)))
	}
}

// produced is told of every event that a transaction has written, whatever becomes of it.
func (w *watch) produced(_ string, r *kgo.Record, _ time.Time) {
	if isTimers(r) {
		w.timers[r.ProducerID] = place{r.Partition, r.Offset}
	}
}

// time measures the times of what is accepted from now on.
func (w *watch) time() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from = time.Now()
}

// visible is how many rows a read committed reader has seen.
func (w *watch) visible() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rows
}

// ignite forgets how long partitions stood still before there was fire.
func (w *watch) ignite() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stall = 0
	for p := range w.moved {
		w.moved[p] = time.Now()
	}
}

// longestStall is the longest time that a partition had work and did none.
func (w *watch) longestStall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stall
}

// percentile of the times that were measured; 0 when there is none.
func (w *watch) percentile(p float64) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.times) == 0 {
		return 0
	}
	slices.Sort(w.times)
	return w.times[min(len(w.times)-1, int(p*float64(len(w.times))))]
}

// timersSet counts the timers that have not run. Every one of the load's is due within seconds.
func (w *watch) timersSet() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, due := range w.due {
		if due > 0 {
			n++
		}
	}
	return n
}

// inputs of the groups.
var inputs = []string{schemas.InboundUnrouted, schemas.Inbound, schemas.Events}

// left says what the groups have still to do, "" when nothing is. One that was looked at may have been given something by another
// since: so nothing is left when it was so twice, and no group has gone on between.
func (w *watch) left(ctx context.Context) (string, error) {
	var at string
	for i, input := range inputs {
		offsets, err := w.cluster.Admin.FetchOffsets(ctx, w.cluster.Topic(groups[i]))
		if err != nil {
			return "", fmt.Errorf("see how far %s is: %w", groups[i], err)
		}
		for p := range w.cluster.Partitions {
			taken := int64(0)
			if o, ok := offsets.Lookup(w.cluster.Topic(input), p); ok {
				taken = max(0, o.At)
			}
			at += fmt.Sprintf("%d ", taken)
			// No group commits beyond the markers at the end of a log.
			waits := false
			err := w.cluster.Read(ctx, kgo.ReadCommitted(), input, p, taken, func(*kgo.Record) bool {
				waits = true
				return false
			})
			if err != nil {
				return "", err
			}
			if waits {
				return fmt.Sprintf("group %s has taken partition %d to offset %d", groups[i], p, taken), nil
			}
		}
	}
	if w.quiet != at {
		w.quiet = at
		return "a second look", nil
	}
	if n := w.timersSet(); n > 0 {
		return fmt.Sprint("timers that have not run: ", n), nil
	}
	return "", nil
}

// undecided reports that a producer's transaction is open, and whether an output of a timer is in it: one that stands where
// no read committed reader gets to.
func (w *watch) undecided(ctx context.Context, transactionalID string) (open, timers bool, err error) {
	open, producer, err := w.cluster.OpenTransaction(ctx, transactionalID)
	if !open || err != nil {
		return false, false, err
	}
	stable, err := w.cluster.Admin.ListCommittedOffsets(ctx, w.cluster.Topic(schemas.Events))
	if err != nil {
		return true, false, fmt.Errorf("ask for what is committed of %s: %w", schemas.Events, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	newest, ok := w.timers[producer]
	o, there := stable.Lookup(w.cluster.Topic(schemas.Events), newest.partition)
	return true, ok && there && newest.offset >= o.Offset, nil
}
