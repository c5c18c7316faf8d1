package delivery

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// watch sees from outside how far the deliverers have come.
type watch struct {
	cluster   *fire.Cluster
	herd      *fire.Herd
	load      *load
	receivers *receivers

	// ended counts the deliveries to prompt endpoints that have, by partition.
	ended []atomic.Int64

	mu    sync.Mutex
	over  map[string]bool // deliveries that have ended
	moved []time.Time     // when a partition last went on, or had nothing to do
	seen  []int64         // arrivals by partition then
	stall time.Duration
	// memory has what instances held, a sample a second.
	memory []sample
}

// sample is what the processes held at a time.
type sample struct {
	at time.Time
	// most is the largest resident set of an instance, in bytes.
	most float64
}

func newWatch(cluster *fire.Cluster, h *fire.Herd, l *load, r *receivers) *watch {
	w := &watch{
		cluster: cluster, herd: h, load: l, receivers: r, over: map[string]bool{},
		ended: make([]atomic.Int64, cluster.Partitions), moved: make([]time.Time, cluster.Partitions), seen: make([]int64, cluster.Partitions),
	}
	w.ignite()
	return w
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) error {
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(func() { every(ctx, 50*time.Millisecond, w.sample) })
	looking.Go(func() { every(ctx, time.Second, w.weigh) })
	return w.cluster.Tail(ctx, kgo.ReadCommitted(), w.read, schemas.DeliveryRows, schemas.Inbound)
}

func every(ctx context.Context, d time.Duration, fn func(now time.Time)) {
	for tick := time.NewTicker(d); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case now := <-tick.C:
			fn(now)
		}
	}
}

// read is told what a read committed reader sees.
func (w *watch) read(topic string, r *kgo.Record, _ time.Time) {
	if topic == schemas.Inbound {
		command := &webhooksv1.Command{}
		if proto.Unmarshal(r.Value, command) == nil {
			w.load.commands <- command
		}
		return
	}
	row := &webhooksv1.DeliveryRow{}
	if proto.Unmarshal(r.Value, row) != nil || !ends(row.Status) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over[row.DeliveryId] {
		return
	}
	w.over[row.DeliveryId] = true
	if k, p := w.load.kindOf(row.EndpointId); k == prompt {
		w.ended[p].Add(1)
	}
}

// sample looks whether partitions go on.
func (w *watch) sample(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.moved {
		came := w.receivers.arrivals[p].Load()
		if came != w.seen[p] || w.load.sent[p].Load() <= w.ended[p].Load() {
			w.moved[p], w.seen[p] = now, came
		}
		w.stall = max(w.stall, now.Sub(w.moved[p]))
	}
}

// longestStall is how long a partition stood still.
func (w *watch) longestStall() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stall
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

func (w *watch) weigh(now time.Time) {
	most := 0.0
	w.each(func(name string, value float64) {
		if name == "process_resident_memory_bytes" {
			most = max(most, value)
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.memory = append(w.memory, sample{now, most})
}

// each gives fn what the instances that answer export, without labels.
func (w *watch) each(fn func(name string, value float64)) (answered int) {
	client := http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	w.herd.Each(func(in *fire.Instance) {
		addr, err := os.ReadFile(adminFile(in.State))
		if err != nil {
			return
		}
		resp, err := client.Get("http://" + string(addr) + "/metrics")
		if err != nil {
			return
		}
		defer resp.Body.Close()
		answered++
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			series, text, _ := strings.Cut(lines.Text(), " ")
			if at := strings.LastIndexByte(lines.Text(), ' '); at > 0 && strings.Contains(series, "{") {
				text = lines.Text()[at+1:]
			}
			if value, err := strconv.ParseFloat(text, 64); err == nil {
				name, _, _ := strings.Cut(series, "{")
				fn(name, value)
			}
		}
	})
	return answered
}

// progress is how many deliveries to prompt endpoints have ended.
func (w *watch) progress() (n int64) {
	for p := range w.ended {
		n += w.ended[p].Load()
	}
	return n
}

// left says what has still to be done, "" when nothing is: every delivery has ended, nothing waits, and the record is whole.
func (w *watch) left(context.Context) (string, error) {
	w.mu.Lock()
	over := len(w.over)
	w.mu.Unlock()
	if all := w.load.matched(); over < all {
		return fmt.Sprintf("%d deliveries of %d have ended", over, all), nil
	}
	sums := map[string]float64{}
	answered := w.each(func(name string, value float64) { sums[name] += value })
	if answered < w.herd.Size() {
		return fmt.Sprintf("%d instances of %d answer", answered, w.herd.Size()), nil
	}
	for _, name := range []string{"webhooks_retry_waiting", "webhooks_attempts_in_flight", "webhooks_deliverer_lag_records", "webhooks_sink_lag_records"} {
		if sums[name] != 0 {
			return fmt.Sprintf("%s is %v", name, sums[name]), nil
		}
	}
	return "", nil
}

// most is the largest resident set between two times, in MiB.
func (w *watch) most(from, to time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	most := 0.0
	for _, s := range w.memory {
		if !s.at.Before(from) && !s.at.After(to) {
			most = max(most, s.most)
		}
	}
	return most / (1 << 20)
}

// percentile of values; the zero value when there is none.
func percentile[T cmp.Ordered](values []T, p float64) (v T) {
	if len(values) == 0 {
		return v
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(p*float64(len(values))))]
}
