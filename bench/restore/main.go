// Command restore measures how long a group of tasks takes until all its partitions are at work, by the size of its state: cold,
// with an empty state folder, when all of the changelog is read; and warm, started again after a SIGKILL, when all of it is on disk.
// Both from the assignment of its partitions on, and from the start of the process, which joins the group first. Beside it,
// in the same run, a plain consumer reads the same changelog and keeps nothing.
//
//	go run ./bench/restore [-runs 3] [-keys 1000000] [-key 36] [-value 64] [-partitions 8] [-sessions 2]
//	go run ./bench/restore -dedupe [-runs 1] [-keys 100000000] [-events 1000000]
//
// The brokers of its own do not wait for members. In some runs one session joins before the other and restores everything, and some
// of that is handed over afterwards: then the cold start is the longer, and of the next one a session may wait half a second for the
// group to be balanced once more (the table of what breaks in internal/stream/DESIGN.md says why). The medians are without them.
//
// 36 and 64 bytes are a small state record of 100 B; -value 2000 is a state of payloads. With -dedupe the state is what the
// processor remembers of so many events, and the group, once it is at work, meets more of them: after the cold start one half
// is known and the other new, after the warm one the same are all known, and that must be what it says. The state is on a topic
// of a real Apache Kafka before anything is measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/internal/kafka"
)

// options are the flags; children get those of their parent.
type options struct {
	role, brokers, group, state                                    string
	runs, keys, keyBytes, valueBytes, events, partitions, sessions int
	dedupe                                                         bool
}

func main() {
	var o options
	flag.StringVar(&o.role, "role", "", "of a child")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of an Apache Kafka of its own")
	flag.StringVar(&o.group, "group", "", "of a child")
	flag.StringVar(&o.state, "state", "", "folder of a child's state")
	flag.IntVar(&o.runs, "runs", 3, "interleaved runs")
	flag.IntVar(&o.keys, "keys", 1_000_000, "state records")
	flag.IntVar(&o.keyBytes, "key", 36, "bytes of a key, 8 or more")
	flag.IntVar(&o.valueBytes, "value", 64, "bytes of a value")
	flag.BoolVar(&o.dedupe, "dedupe", false, "the state is the processor's memory of events; -key and -value are what they are there")
	flag.IntVar(&o.events, "events", 1_000_000, "events met after each start with -dedupe, no more than -keys")
	flag.IntVar(&o.partitions, "partitions", 8, "KAFKA_PARTITIONS")
	flag.IntVar(&o.sessions, "sessions", min(runtime.GOMAXPROCS(0), 4), "sessions of the group; the default is the processor's own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	roles := map[string]func(context.Context, options) error{"": compare, "group": runGroup, "consumer": runConsumer}
	if err := roles[o.role](ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/restore:", err)
		os.Exit(1)
	}
}

func (o options) cluster() kafka.Config {
	return kafka.Config{Brokers: strings.Split(o.brokers, ","), TopicPrefix: "restore.", Partitions: int32(o.partitions), ReplicationFactor: 1}
}

func compare(ctx context.Context, o options) error {
	brokers, where, stop, err := measure.Kafka(ctx, o.brokers)
	if err != nil {
		return err
	}
	defer stop()
	o.brokers = brokers
	fmt.Printf("%s %s/%s, %d CPUs; %s, %d partitions\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), where, o.partitions)
	if o.dedupe {
		key, value := remembered(0)
		o.keyBytes, o.valueBytes = len(key), len(value)
	}
	fmt.Printf("%d state records of %d B\n\n", o.keys, o.keyBytes+o.valueBytes)
	if err := fill(ctx, o); err != nil {
		return err
	}
	var cold, warm, reference []float64
	for run := range o.runs {
		// A group of its own: the last run's is waited for, ten seconds, since its member was killed and is not succeeded.
		o.group = fmt.Sprint("restore-", run+1)
		if err := place(ctx, o); err != nil {
			return err
		}
		f, err := race(ctx, o, run)
		if err != nil {
			return err
		}
		fmt.Printf("run %d  cold %6.2f s of %6.2f s  warm %6.2f s of %6.2f s  plain consumer %6.2f s; CPU cold %5.1f s, plain %5.1f s; memory cold %d MB, warm %d MB\n",
			run+1, f.cold.restoring, f.cold.all, f.warm.restoring, f.warm.all, f.consumer.all, f.cold.cpu, f.consumer.cpu, f.cold.memory>>20, f.warm.memory>>20)
		if o.dedupe {
			fmt.Printf("       %d events, half of them known: %s CPU an event; again: %s\n", o.events, f.cold.recall, f.warm.recall)
		}
		cold, warm, reference = append(cold, f.cold.restoring), append(warm, f.warm.restoring), append(reference, f.consumer.all)
	}
	c, megabytes := measure.Median(cold), float64(o.keys*(o.keyBytes+o.valueBytes))/1e6
	fmt.Printf("\nmedians, from assignment: cold %.2f s (%.0f keys/s, %.0f MB/s), %.2f times the plain consumer's; warm %.2f s\n",
		c, float64(o.keys)/c, megabytes/c, c/measure.Median(reference), measure.Median(warm))
	return nil
}

// start is what one start took, in seconds: from the assignment of partitions, and in all.
type start struct {
	restoring, all float64
	cpu            float64
	memory         int64
	recall         time.Duration // CPU an event met
}

// String is a child's answer.
func (s start) String() string { return fmt.Sprint(s.restoring, " ", s.all) }

type figures struct{ cold, warm, consumer start }

// race starts each once: the plain consumer, the group with nothing on disk, and the group again after a SIGKILL.
func race(ctx context.Context, o options, run int) (f figures, err error) {
	if o.state, err = os.MkdirTemp("", "webhooks-bench-"); err != nil {
		return f, err
	}
	defer os.RemoveAll(o.state)
	if f.consumer, err = begin(o, "consumer", 0); err != nil {
		return f, fmt.Errorf("plain consumer: %w", err)
	}
	for _, b := range []struct {
		name  string
		to    *start
		known int
	}{{"cold", &f.cold, o.events / 2}, {"warm", &f.warm, o.events}} {
		if o.dedupe {
			if err := feed(ctx, o, run); err != nil {
				return f, err
			}
		}
		if *b.to, err = begin(o, "group", b.known); err != nil {
			return f, fmt.Errorf("%s start: %w", b.name, err)
		}
	}
	return f, nil
}

// begin starts a child and kills it once it is at work, and, with -dedupe, has met the events that were fed.
func begin(o options, role string, known int) (s start, err error) {
	child, err := measure.Self("-role", role, "-brokers", o.brokers, "-group", o.group, "-state", o.state, "-partitions", fmt.Sprint(o.partitions),
		"-keys", fmt.Sprint(o.keys), "-events", fmt.Sprint(o.events), "-sessions", fmt.Sprint(o.sessions), fmt.Sprint("-dedupe=", o.dedupe))
	if err != nil {
		return s, err
	}
	defer child.Kill()
	if err := child.Ask("wait", &s.restoring, &s.all); err != nil {
		return s, err
	}
	cpu, err := child.CPU()
	if err != nil {
		return s, err
	}
	s.cpu = cpu.Seconds()
	if o.dedupe && role == "group" {
		if s.recall, err = recall(o, child, known); err != nil {
			return s, err
		}
	}
	s.memory, err = child.PeakMemory()
	return s, err
}

// await polls until check is nil.
func await(ctx context.Context, check func() error) error {
	for check() != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}
