// Command ingest measures what an accepted Stripe event costs the edge, beside the same HTTP server answering 200 and
// doing nothing, in one run.
//
//	go run ./bench/ingest [-runs 5] [-seconds 3] [-connections 64] [-partitions 64] [-brokers host:port,…]
//
// Four processes: this one; a broker (kfake, unless -brokers names a cluster); a server, which is the edge or the bare
// one; a load generator. The server reports its own CPU time (getrusage, user and system) when the load begins and ends,
// so neither start-up nor the other processes are in it.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// options are the command's flags; a child gets them as its parent's.
type options struct {
	role        string
	runs        int
	seconds     float64
	connections int
	partitions  int
	brokers     string
	target      string
	profile     string
}

func main() {
	var o options
	flag.StringVar(&o.role, "role", "", "which process to be: broker, edge, bare or load; empty starts them all")
	flag.IntVar(&o.runs, "runs", 5, "interleaved runs of each server")
	flag.Float64Var(&o.seconds, "seconds", 3, "measured seconds of a run")
	flag.IntVar(&o.connections, "connections", 64, "keep-alive connections, each with one request open")
	flag.IntVar(&o.partitions, "partitions", 64, "KAFKA_PARTITIONS")
	flag.StringVar(&o.brokers, "brokers", "", "a cluster to use instead of kfake")
	flag.StringVar(&o.target, "target", "", "load: the server's address")
	flag.StringVar(&o.profile, "cpuprofile", "", "file for the edge's CPU profile")
	flag.Parse()
	var err error
	switch o.role {
	case "":
		err = compare(o)
	case "broker":
		err = runBroker()
	case "edge":
		err = runEdge(o)
	case "bare":
		err = runBare(o)
	case "load":
		err = runLoad(o)
	default:
		err = fmt.Errorf("unknown role %q", o.role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/ingest:", err)
		os.Exit(1)
	}
}

// result is what one run of one server measured.
type result struct {
	// Answered counts answers 200, Failed all others.
	Answered, Failed int
	Seconds          float64
	// P50 and P999 are of the answers, in milliseconds.
	P50, P999 float64
	// MicrosEach is the server's CPU per answered request.
	MicrosEach float64
}

func compare(o options) error {
	kafka := "Kafka at " + o.brokers
	if o.brokers == "" {
		broker, err := spawn(o, "broker")
		if err != nil {
			return err
		}
		defer broker.stop()
		o.brokers, kafka = broker.hello, "kfake in a process of its own"
	}
	servers := map[string]*child{}
	for _, role := range []string{"edge", "bare"} {
		server, err := spawn(o, role)
		if err != nil {
			return err
		}
		defer server.stop()
		servers[role] = server
	}
	fmt.Printf("%s, %s/%s, %d CPUs; broker: %s, %d partitions, acks=all\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), kafka, o.partitions)
	fmt.Printf("%d B Stripe events, signed, %d accounts with a route; %d connections, closed loop; %d runs of %.1f s each, interleaved\n\n",
		len(event(0)), accounts, o.connections, o.runs, o.seconds)
	fmt.Printf("%-4s %-4s %14s %12s %10s %10s %8s\n", "run", "", "CPU/request", "requests/s", "p50", "p99.9", "failed")
	results := map[string][]result{}
	// Run 0 warms up and is not counted.
	for run := range o.runs + 1 {
		for _, role := range []string{"edge", "bare"} {
			r, err := measure(o, servers[role])
			if err != nil {
				return err
			}
			if run == 0 {
				continue
			}
			results[role] = append(results[role], r)
			fmt.Printf("%-4d %-4s %11.2f µs %12.0f %7.2f ms %7.2f ms %8d\n", run, role, r.MicrosEach, float64(r.Answered)/r.Seconds, r.P50, r.P999, r.Failed)
		}
	}
	edge, bare := medianCPU(results["edge"]), medianCPU(results["bare"])
	fmt.Printf("\nmedian CPU of the server process, user and system: edge %.2f µs per accepted event, bare %.2f µs per request: %.2f×\n", edge, bare, edge/bare)
	return nil
}

// measure loads one server and takes its CPU time around it.
func measure(o options, server *child) (r result, err error) {
	o.target = server.hello
	load, err := spawn(o, "load")
	if err != nil {
		return r, err
	}
	defer load.stop()
	before, err := server.cpu()
	if err != nil {
		return r, err
	}
	line, err := load.ask("go")
	if err != nil {
		return r, err
	}
	after, err := server.cpu()
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("read the load generator's report %q: %w", line, err)
	}
	r.MicrosEach = float64(after-before) / float64(max(r.Answered, 1))
	return r, nil
}

func medianCPU(results []result) float64 {
	var each []float64
	for _, r := range results {
		each = append(each, r.MicrosEach)
	}
	slices.Sort(each)
	return each[len(each)/2]
}

// child is one of the other processes. It says one line when it is ready, then answers each line with a line; it ends
// when its standard input does.
type child struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	hello string
}

func spawn(o options, role string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, "-role", role, "-brokers", o.brokers, "-target", o.target, "-cpuprofile", o.profile,
		"-partitions", fmt.Sprint(o.partitions), "-connections", fmt.Sprint(o.connections), "-seconds", fmt.Sprint(o.seconds))}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s process: %w", role, err)
	}
	if c.hello, err = c.line(); err != nil {
		c.stop()
		return nil, fmt.Errorf("the %s process did not start: %w", role, err)
	}
	return c, nil
}

func (c *child) line() (string, error) {
	line, err := c.out.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (c *child) ask(line string) (string, error) {
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return "", err
	}
	return c.line()
}

// cpu is the process's CPU time so far, in microseconds.
func (c *child) cpu() (micros int64, err error) {
	line, err := c.ask("cpu")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(line, &micros)
	return micros, err
}

func (c *child) stop() {
	_ = c.in.Close()
	ended := time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer ended.Stop()
	_ = c.cmd.Wait()
}
