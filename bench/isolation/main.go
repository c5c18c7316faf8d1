// Command isolation measures what an endpoint in trouble costs the others: a hundred endpoints, and how long the events of all
// but one take from the log to the merchant, while that one gets a tenth of the traffic and is in trouble, beside the same
// traffic without it, in one run on a real Apache Kafka and ClickHouse.
//
//	go run ./bench/isolation [-case hangs] [-runs 3] [-seconds 40] [-rate 500] [-endpoints 100]
//	go run ./bench/isolation -case storm [-endpoints 1000]
//
// The cases: it hangs until the time-out, drips a byte a second, hangs up (closes), its name is never resolved (dns), or it
// has recovered with a -backlog of deliveries (backlog). In a storm all endpoints fail and recover together: what is printed is
// how many attempts there are by second, and how far apart the waiting ones are put.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/betterdata/webhooks/bench/rig"
	"github.com/betterdata/webhooks/deploy/local/engine"
)

// options are the flags.
type options struct {
	role, setup, brokers, trouble                string
	runs, seconds, endpoints, partitions, behind int
	rate                                         float64
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == engine.Command {
		os.Exit(engine.Main(os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.role, "role", "", "of a child")
	flag.StringVar(&o.setup, "setup", "", "of a child")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of an Apache Kafka of its own")
	flag.StringVar(&o.trouble, "case", "hangs", "hangs, drips, closes, dns, backlog or storm")
	flag.IntVar(&o.runs, "runs", 3, "interleaved runs with and without the endpoint")
	flag.IntVar(&o.seconds, "seconds", 40, "of a run")
	flag.IntVar(&o.endpoints, "endpoints", 0, "endpoints; 100, in a storm 1000")
	flag.IntVar(&o.partitions, "partitions", 8, "KAFKA_PARTITIONS")
	flag.IntVar(&o.behind, "backlog", 100_000, "deliveries that wait in the case backlog")
	flag.Float64Var(&o.rate, "rate", 500, "events a second, for all endpoints")
	flag.Parse()
	if o.endpoints == 0 {
		o.endpoints = 100
		if o.trouble == "storm" {
			o.endpoints = 1000
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	roles := map[string]func(context.Context, options) error{
		"":          start,
		"deliverer": func(ctx context.Context, o options) error { return rig.RunDeliverer(ctx, o.setup) },
		"merchants": func(ctx context.Context, o options) error { return rig.RunMerchants(ctx, o.setup) },
	}
	if err := roles[o.role](ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/isolation:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, o options) error {
	r, err := rig.Start(ctx, rig.Options{Brokers: o.brokers, Partitions: o.partitions})
	if err != nil {
		return err
	}
	defer r.Close()
	m, err := r.Merchants()
	if err != nil {
		return err
	}
	fmt.Println(r)
	if o.trouble == "storm" {
		return storm(ctx, o, r, m)
	}
	return compare(ctx, o, r, m)
}
