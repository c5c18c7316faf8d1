// Command chaos shows that each half of the system does everything exactly once while everything around it breaks:
// several instances work at load, while they are killed, frozen past their sessions, added and removed, and brokers are
// killed; then every output is compared with what must have come of the same inputs.
//
//	go run ./bench/chaos [-what processor] [-duration 10m] [-brokers 1] [-rate 300] [-seed 0] [-instances 3] [-orgs 2000]
//	    [-partitions 8] [-interval 4s] [-kills-only] [-logs FOLDER]
//	go run ./bench/chaos -what delivery [-endpoints 400] [-away 1m] …
//
// Of the processor (package siege) every record is compared with a model's; of the deliverer (package delivery), for whom
// ClickHouse is killed, frozen and away for -away too, what receivers saw, the log and ClickHouse's tables with each other.
//
// A twentieth of the time the load is as much as the instances take, undisturbed; then a tenth of it the same under fire,
// and -rate a second for the rest. It exits with 1 when an output differs or a bar is missed, which is printed: the throughput
// under fire is half of that undisturbed, 99 in 100 take less than ten seconds where there is nothing but kills, and memory
// does not grow with what ClickHouse misses. The order of the faults follows from the seed, the moments at which they meet
// the instances do not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/delivery"
	"github.com/betterdata/webhooks/bench/chaos/siege"
	"github.com/betterdata/webhooks/internal/testenv"
)

// settings are of the command line.
type settings struct {
	what                                 string
	duration, interval, away             time.Duration
	brokers, instances, partitions, rate int
	orgs, endpoints                      int
	seed                                 uint64
	killsOnly                            bool
	logs                                 string
}

// report is what either siege has shown.
type report interface {
	Print(io.Writer)
	Equal() bool
	Missed() []string
}

func main() {
	for _, child := range []func() (int, bool){siege.Child, delivery.Child} {
		if exit, is := child(); is {
			os.Exit(exit)
		}
	}
	var s settings
	flag.StringVar(&s.what, "what", "processor", "what is under siege: processor or delivery")
	flag.DurationVar(&s.duration, "duration", 10*time.Minute, "of the load, from the first input to the last")
	flag.IntVar(&s.brokers, "brokers", 1, "brokers; topics are replicated to all of them")
	flag.Uint64Var(&s.seed, "seed", 0, "of load and faults; 0 draws one")
	flag.IntVar(&s.instances, "instances", 3, "processes of the service")
	flag.IntVar(&s.partitions, "partitions", 8, "KAFKA_PARTITIONS")
	flag.IntVar(&s.rate, "rate", 300, "inputs a second while the load is steady")
	flag.DurationVar(&s.interval, "interval", 4*time.Second, "mean time between two faults")
	flag.StringVar(&s.logs, "logs", "", "folder that what the instances write is kept in")
	flag.IntVar(&s.orgs, "orgs", 2000, "organizations, of the processor")
	flag.BoolVar(&s.killsOnly, "kills-only", false, "nothing but SIGKILLs of instances that keep what they had on disk, and of ClickHouse")
	flag.IntVar(&s.endpoints, "endpoints", 400, "endpoints, of the deliverer")
	flag.DurationVar(&s.away, "away", time.Minute, "how long ClickHouse is away, again and again, of the deliverer")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench/chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	for s.seed == 0 {
		s.seed = rand.Uint64N(1 << 32)
	}
	fmt.Printf("%s %s/%s, %d CPUs; Apache Kafka of %d brokers, %d partitions; %d instances of the %s; seed %d\n\n", runtime.Version(),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.brokers, s.partitions, s.instances, s.what, s.seed)
	brokers, err := testenv.StartKafka(ctx, s.brokers, "-Xmx1g")
	if err != nil {
		return err
	}
	defer brokers.Close()
	var r report
	switch s.what {
	case "processor":
		r, err = s.processor(ctx, brokers)
	case "delivery":
		r, err = s.delivery(ctx, brokers)
	default:
		return fmt.Errorf("-what %s: it is processor or delivery", s.what)
	}
	if err != nil {
		return fmt.Errorf("seed %d: %w", s.seed, err)
	}
	r.Print(os.Stdout)
	if !r.Equal() {
		return errors.New("the outputs differ from the model's")
	}
	if missed := r.Missed(); len(missed) > 0 {
		return errors.New(strings.Join(missed, "; "))
	}
	return nil
}

// phases are how long the load is as much as is taken, at peace and under fire, and how long it is steady.
func (s settings) phases() (peace, saturated, steady time.Duration) {
	peace, saturated = s.duration/20, s.duration/10
	return peace, saturated, s.duration - peace - saturated
}

func (s settings) processor(ctx context.Context, brokers *testenv.KafkaCluster) (report, error) {
	cfg := siege.Config{
		Seed: s.seed, Brokers: brokers, Instances: s.instances, Partitions: int32(s.partitions), Orgs: s.orgs, Rate: s.rate,
		Interval: s.interval, KillsOnly: s.killsOnly, Out: os.Stdout, Logs: s.logs,
	}
	cfg.Peace, cfg.Saturated, cfg.Steady = s.phases()
	return siege.Run(ctx, cfg)
}

func (s settings) delivery(ctx context.Context, brokers *testenv.KafkaCluster) (report, error) {
	rows, err := testenv.StartClickHouse(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	cfg := delivery.Config{
		Seed: s.seed, Brokers: brokers, ClickHouse: rows, Instances: s.instances, Partitions: int32(s.partitions),
		Endpoints: s.endpoints, Rate: s.rate, Interval: s.interval, Away: s.away, KillsOnly: s.killsOnly, Out: os.Stdout, Logs: s.logs,
	}
	cfg.Peace, cfg.Saturated, cfg.Steady = s.phases()
	return delivery.Run(ctx, cfg)
}
