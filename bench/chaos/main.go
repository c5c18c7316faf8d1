// Command chaos shows that the processor does everything exactly once while everything around it breaks: several instances
// work on real events, at load, while they are killed, frozen past their sessions, added and removed, and brokers are
// killed; then every output is compared with what a model of one thread makes of the same inputs.
//
//	go run ./bench/chaos [-duration 10m] [-brokers 1] [-rate 300] [-seed 0] [-instances 3] [-orgs 2000] [-partitions 8]
//	    [-interval 4s] [-kills-only] [-logs FOLDER]
//
// A twentieth of the time the load is as much as the instances take, undisturbed; then a tenth of it the same under fire,
// and -rate a second for the rest. It exits with 1 when an output differs, which is printed with its organization, or when
// the throughput under fire is less than half of that undisturbed. The order of the faults follows from the seed, the
// moments at which they meet the instances do not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/betterdata/webhooks/bench/chaos/siege"
	"github.com/betterdata/webhooks/internal/testenv"
)

// bar is the least throughput under fire, of that undisturbed.
const bar = 0.5

func main() {
	if exit, is := siege.Child(); is {
		os.Exit(exit)
	}
	var cfg siege.Config
	duration := flag.Duration("duration", 10*time.Minute, "of the load, from the first input to the last")
	brokers := flag.Int("brokers", 1, "brokers; topics are replicated to all of them")
	flag.Uint64Var(&cfg.Seed, "seed", 0, "of histories and faults; 0 draws one")
	flag.IntVar(&cfg.Instances, "instances", 3, "processes of the processor")
	flag.IntVar(&cfg.Rate, "rate", 300, "inputs a second while the load is steady")
	flag.IntVar(&cfg.Orgs, "orgs", 2000, "organizations")
	flag.DurationVar(&cfg.Interval, "interval", 4*time.Second, "mean time between two faults")
	flag.BoolVar(&cfg.KillsOnly, "kills-only", false, "nothing but SIGKILLs of instances that keep what they had on disk")
	flag.StringVar(&cfg.Logs, "logs", "", "folder that what the instances write is kept in")
	partitions := flag.Int("partitions", 8, "KAFKA_PARTITIONS")
	flag.Parse()
	cfg.Partitions, cfg.Out = int32(*partitions), os.Stdout
	cfg.Peace, cfg.Saturated = *duration/20, *duration/10
	cfg.Steady = *duration - cfg.Peace - cfg.Saturated
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, cfg, *brokers); err != nil {
		fmt.Fprintln(os.Stderr, "bench/chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg siege.Config, brokers int) error {
	for cfg.Seed == 0 {
		cfg.Seed = rand.Uint64N(1 << 32)
	}
	fmt.Printf("%s %s/%s, %d CPUs; Apache Kafka of %d brokers, %d partitions; %d instances, %d organizations; seed %d\n\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), brokers, cfg.Partitions, cfg.Instances, cfg.Orgs, cfg.Seed)
	var err error
	if cfg.Brokers, err = testenv.StartKafka(ctx, brokers, "-Xmx1g"); err != nil {
		return err
	}
	defer cfg.Brokers.Close()
	report, err := siege.Run(ctx, cfg)
	if err != nil {
		return fmt.Errorf("seed %d: %w", cfg.Seed, err)
	}
	report.Print(os.Stdout)
	switch {
	case !report.Equal():
		return errors.New("the outputs differ from the model's")
	case report.Ratio() < bar:
		return fmt.Errorf("the throughput under fire is %.0f %% of that undisturbed, the bar is %.0f %%", 100*report.Ratio(), 100*bar)
	}
	return nil
}
