// Command processor measures the billing processor, exactly once and with state, on a real Kafka: events a second, CPU an
// event and memory. Beside it, in the same run and on the same events, it runs franz-go's own transactional consume →
// produce loop without state, and the same job in Kafka Streams (exactly-once v2, RocksDB).
//
//	go run ./bench/processor [-runs 5] [-events 200000] [-orgs 1000] [-partitions 8] [-sessions 2] [-only processor,loop,streams]
//
// Every run has topics of its own, filled before the competitor starts. A competitor is measured from the time that it
// has committed a third of the events until it has committed all, so that neither its start nor, with Kafka Streams, the
// compiler's first work is in the figure. CPU is that of the competitor's process, not the broker's. -orgs may be larger
// than a third of -events: then each organization's first event is applied before, and the figures are those of
// events that find state.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// options are the flags; children get those of their parent.
type options struct {
	role, brokers, prefix, only  string
	runs, events, orgs, sessions int
	partitions                   int
	state, profile               string
}

func main() {
	var o options
	flag.StringVar(&o.role, "role", "", "the process to be (processor, loop); empty starts them all")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of an Apache Kafka of its own")
	flag.StringVar(&o.prefix, "prefix", "", "of a child's topics")
	flag.StringVar(&o.state, "state", "", "folder of a child's state")
	flag.StringVar(&o.profile, "profile", "", "file for a CPU profile of what is measured; the last run of the processor or the loop stands")
	flag.StringVar(&o.only, "only", "processor,loop,streams", "competitors, by name")
	flag.IntVar(&o.runs, "runs", 5, "interleaved runs of each competitor")
	flag.IntVar(&o.events, "events", 200_000, "events of a run")
	flag.IntVar(&o.orgs, "orgs", 1000, "organizations")
	flag.IntVar(&o.sessions, "sessions", min(runtime.GOMAXPROCS(0), 4), "sessions of the processor and of the loop, threads of Kafka Streams; the default is the service's own")
	flag.IntVar(&o.partitions, "partitions", 8, "KAFKA_PARTITIONS")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	roles := map[string]func(context.Context, options) error{"": compare, "processor": runProcessor, "loop": runLoop}
	if err := roles[o.role](ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/processor:", err)
		os.Exit(1)
	}
}

// competitor is a program that consumes the topic inbound in the group of that name.
type competitor struct {
	name, group string
	start       func(ctx context.Context, o options) (*measure.Child, error)
}

var competitors = []competitor{
	{"processor", schemas.GroupInbound, func(_ context.Context, o options) (*measure.Child, error) { return self("processor", o) }},
	{"loop", groupLoop, func(_ context.Context, o options) (*measure.Child, error) { return self("loop", o) }},
	{"streams", groupStreams, startStreams},
}

func self(role string, o options) (*measure.Child, error) {
	return measure.Self("-role", role, "-brokers", o.brokers, "-prefix", o.prefix, "-state", o.state, "-profile", o.profile,
		"-partitions", fmt.Sprint(o.partitions), "-sessions", fmt.Sprint(o.sessions))
}

func (o options) cluster() kafka.Config {
	return kafka.Config{Brokers: strings.Split(o.brokers, ","), TopicPrefix: o.prefix, Partitions: int32(o.partitions), ReplicationFactor: 1}
}

// figures are those of one run.
type figures struct {
	rate   float64 // events a second
	micros float64 // CPU an event
	memory int64   // bytes, at the peak
}

func compare(ctx context.Context, o options) error {
	brokers, where, stop, err := measure.Kafka(ctx, o.brokers)
	if err != nil {
		return err
	}
	defer stop()
	o.brokers = brokers
	fmt.Printf("%s %s/%s, %d CPUs; %s, %d partitions\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), where, o.partitions)
	fmt.Printf("Stripe events of %d B, %d of them, %d organizations; %d interleaved runs after one to warm up\n\n", eventBytes, o.events, o.orgs, o.runs)
	each := map[string][]figures{}
	for run := range o.runs + 1 {
		for _, c := range competitors {
			if !slices.Contains(strings.Split(o.only, ","), c.name) {
				continue
			}
			f, err := race(ctx, o, c)
			if err != nil {
				return fmt.Errorf("run %d of %s: %w", run, c.name, err)
			}
			if run > 0 {
				each[c.name] = append(each[c.name], f)
				fmt.Printf("run %d  %-9s  %7.0f events/s  %6.1f µs CPU an event  %5d MB\n", run, c.name, f.rate, f.micros, f.memory>>20)
			}
		}
	}
	report(each)
	return nil
}

func report(each map[string][]figures) {
	fmt.Println("\nmedians:")
	own := medians(each["processor"])
	for _, c := range competitors {
		if len(each[c.name]) == 0 {
			continue
		}
		m := medians(each[c.name])
		fmt.Printf("  %-9s  %7.0f events/s  %6.1f µs CPU an event  %5d MB", c.name, m.rate, m.micros, m.memory>>20)
		if c.name != "processor" && len(each["processor"]) > 0 {
			fmt.Printf("   the processor has %.2f times its rate and takes %.2f times its CPU", own.rate/m.rate, own.micros/m.micros)
		}
		fmt.Println()
	}
}

func medians(runs []figures) (m figures) {
	if len(runs) == 0 {
		return m
	}
	of := func(value func(figures) float64) float64 {
		var values []float64
		for _, f := range runs {
			values = append(values, value(f))
		}
		return measure.Median(values)
	}
	m.rate = of(func(f figures) float64 { return f.rate })
	m.micros = of(func(f figures) float64 { return f.micros })
	m.memory = int64(of(func(f figures) float64 { return float64(f.memory) }))
	return m
}

// race fills new topics, runs one competitor over them, and removes them.
func race(ctx context.Context, o options, c competitor) (f figures, err error) {
	o.prefix = fmt.Sprintf("bench-%s-%d.", c.name, time.Now().UnixNano())
	if o.state, err = os.MkdirTemp("", "webhooks-bench-"); err != nil {
		return f, err
	}
	defer os.RemoveAll(o.state)
	cluster := o.cluster()
	if err := kafka.EnsureTopics(ctx, cluster, slog.New(slog.DiscardHandler)); err != nil {
		return f, err
	}
	w, err := newWatch(cluster, c.group)
	if err != nil {
		return f, err
	}
	defer w.close()
	// What every competitor must have behind it before it is measured.
	lead := o.events / 3
	input := corpus{orgs: o.orgs, events: o.events}
	if lead < o.orgs {
		lead = o.orgs
		o.events += o.orgs
	}
	if err := input.write(ctx, cluster, 0, o.events, time.Now().Add(-time.Hour)); err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.removeTopics(ctx)) }()
	child, err := c.start(ctx, o)
	if err != nil {
		return f, err
	}
	defer child.Stop()
	from, err := mark(ctx, w, child, lead)
	if err != nil {
		return f, err
	}
	if err := o.tell(c, child, "profile"); err != nil {
		return f, err
	}
	to, err := mark(ctx, w, child, o.events)
	if err != nil {
		return f, err
	}
	if err := o.tell(c, child, "done"); err != nil {
		return f, err
	}
	f.memory, err = child.PeakMemory()
	done := float64(to.done - from.done)
	f.rate, f.micros = done/to.at.Sub(from.at).Seconds(), float64((to.cpu-from.cpu).Microseconds())/done
	return f, err
}

// tell a child of ours where a profile begins and ends, when one is asked for.
func (o options) tell(c competitor, child *measure.Child, line string) error {
	if o.profile == "" || c.group == groupStreams {
		return nil
	}
	return child.Ask(line, new(string))
}

// point is where a competitor stood at a time.
type point struct {
	at   time.Time
	done int
	cpu  time.Duration
}

// mark waits until a competitor has committed so many events.
func mark(ctx context.Context, w *watch, child *measure.Child, events int) (p point, err error) {
	for p.done < events {
		if p.done, err = w.committed(ctx); err != nil {
			return p, err
		}
		p.at = time.Now()
		if p.cpu, err = child.CPU(); err != nil {
			return p, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return p, nil
}
