// Command ingest measures what an accepted Stripe event costs the edge, beside the same HTTP server answering 200 and
// doing nothing, in one run.
//
//	go run ./bench/ingest [-runs 5] [-seconds 3] [-connections 64] [-partitions 64] [-brokers host:port,…]
//
// A broker (kfake, unless -brokers names a cluster), the edge, the bare server and the load generator are processes of
// their own; a figure is the CPU time of the server's process between the begin and the end of a load.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"

	"github.com/betterdata/webhooks/bench/measure"
)

// options are the flags; children get those of their parent.
type options struct {
	role, brokers, target         string
	runs, connections, partitions int
	seconds                       float64
}

func main() {
	var o options
	flag.StringVar(&o.role, "role", "", "the process to be (broker, edge, bare, load); empty starts them all")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of kfake")
	flag.StringVar(&o.target, "target", "", "load: the server's address")
	flag.IntVar(&o.runs, "runs", 5, "interleaved runs of each server")
	flag.IntVar(&o.connections, "connections", 64, "keep-alive connections, each with one request open")
	flag.IntVar(&o.partitions, "partitions", 64, "KAFKA_PARTITIONS")
	flag.Float64Var(&o.seconds, "seconds", 3, "measured seconds of a run")
	flag.Parse()
	roles := map[string]func(options) error{"": compare, "broker": runBroker, "edge": runEdge, "bare": runBare, "load": runLoad}
	if err := roles[o.role](o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/ingest:", err)
		os.Exit(1)
	}
}

func compare(o options) error {
	kafka := "Kafka at " + o.brokers
	if o.brokers == "" {
		broker, err := spawn(o, "broker")
		if err != nil {
			return err
		}
		defer broker.Stop()
		o.brokers, kafka = broker.Hello, "kfake in a process of its own"
	}
	servers, each, roles := map[string]*measure.Child{}, map[string][]float64{}, []string{"edge", "bare"}
	for _, role := range roles {
		server, err := spawn(o, role)
		if err != nil {
			return err
		}
		defer server.Stop()
		servers[role] = server
	}
	fmt.Printf("%s %s/%s, %d CPUs; broker: %s, %d partitions, acks=all\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), kafka, o.partitions)
	fmt.Printf("signed Stripe events of %d B, %d customers, each with a route; %d connections, closed loop; %d interleaved runs of %.1f s after one to warm up\n\n",
		len(event(0)), customers, o.connections, o.runs, o.seconds)
	for run := range o.runs + 1 {
		for _, role := range roles {
			micros, answered, err := load(o, servers[role])
			if err != nil {
				return fmt.Errorf("run %d of %s: %w", run, role, err)
			}
			if run > 0 {
				each[role] = append(each[role], micros)
				fmt.Printf("run %d  %s  %7.2f µs CPU a request  %7.0f requests/s\n", run, role, micros, float64(answered)/o.seconds)
			}
		}
	}
	edge, bare := measure.Median(each["edge"]), measure.Median(each["bare"])
	fmt.Printf("\nmedian CPU of the server's process, user and system: edge %.2f µs an accepted event, bare server %.2f µs a request: %.2f times\n", edge, bare, edge/bare)
	return nil
}

// load loads a server and takes its CPU time around it.
func load(o options, server *measure.Child) (micros float64, answered int, err error) {
	o.target = server.Hello
	sender, err := spawn(o, "load")
	if err != nil {
		return 0, 0, err
	}
	defer sender.Stop()
	before, err := server.CPU()
	if err != nil {
		return 0, 0, err
	}
	if err := sender.Ask("go", &answered); err != nil {
		return 0, 0, err
	}
	after, err := server.CPU()
	return float64((after - before).Microseconds()) / float64(max(answered, 1)), answered, err
}

func spawn(o options, role string) (*measure.Child, error) {
	return measure.Self("-role", role, "-brokers", o.brokers, "-target", o.target,
		"-partitions", fmt.Sprint(o.partitions), "-connections", fmt.Sprint(o.connections), "-seconds", fmt.Sprint(o.seconds))
}
