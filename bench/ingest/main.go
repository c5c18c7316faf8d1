// Command ingest measures what an accepted Stripe event costs the edge, beside the same HTTP server answering 200 and
// doing nothing, in one run.
//
//	go run ./bench/ingest [-runs 5] [-seconds 3] [-connections 64] [-partitions 64] [-brokers host:port,…]
//
// A broker (kfake, unless -brokers names a cluster), the edge, the bare server and the load generator are processes of
// their own. A server reports its own CPU time (getrusage, user and system) when a load begins and ends, so neither its
// start nor any other process is in the figure.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
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
		defer broker.stop()
		o.brokers, kafka = broker.hello, "kfake in a process of its own"
	}
	servers, each, roles := map[string]*child{}, map[string][]float64{}, []string{"edge", "bare"}
	for _, role := range roles {
		server, err := spawn(o, role)
		if err != nil {
			return err
		}
		defer server.stop()
		servers[role] = server
	}
	fmt.Printf("%s %s/%s, %d CPUs; broker: %s, %d partitions, acks=all\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), kafka, o.partitions)
	fmt.Printf("signed Stripe events of %d B, %d customers, each with a route; %d connections, closed loop; %d interleaved runs of %.1f s after one to warm up\n\n",
		len(event(0)), customers, o.connections, o.runs, o.seconds)
	for run := range o.runs + 1 {
		for _, role := range roles {
			micros, answered, err := measure(o, servers[role])
			if err != nil {
				return fmt.Errorf("run %d of %s: %w", run, role, err)
			}
			if run > 0 {
				each[role] = append(each[role], micros)
				fmt.Printf("run %d  %s  %7.2f µs CPU a request  %7.0f requests/s\n", run, role, micros, float64(answered)/o.seconds)
			}
		}
	}
	edge, bare := median(each["edge"]), median(each["bare"])
	fmt.Printf("\nmedian CPU of the server's process, user and system: edge %.2f µs an accepted event, bare server %.2f µs a request: %.2f times\n", edge, bare, edge/bare)
	return nil
}

// measure loads a server and takes its CPU time around it.
func measure(o options, server *child) (micros float64, answered int, err error) {
	o.target = server.hello
	load, err := spawn(o, "load")
	if err != nil {
		return 0, 0, err
	}
	defer load.stop()
	var before, after int64
	err = errors.Join(server.ask("cpu", &before), load.ask("go", &answered), server.ask("cpu", &after))
	return float64(after-before) / float64(max(answered, 1)), answered, err
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// child is another process. It says one line when it is ready, answers each line with a line, and ends when its standard
// input does.
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
	c := &child{cmd: exec.Command(self, "-role", role, "-brokers", o.brokers, "-target", o.target,
		"-partitions", fmt.Sprint(o.partitions), "-connections", fmt.Sprint(o.connections), "-seconds", fmt.Sprint(o.seconds))}
	c.cmd.Stderr = os.Stderr
	in, errIn := c.cmd.StdinPipe()
	out, errOut := c.cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut, c.cmd.Start()); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	if _, err := fmt.Fscanln(c.out, &c.hello); err != nil {
		c.stop()
		return nil, fmt.Errorf("%s did not start: %w", role, err)
	}
	return c, nil
}

// ask sends a line and reads the numbers of the answer.
func (c *child) ask(line string, numbers ...any) error {
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return err
	}
	_, err := fmt.Fscanln(c.out, numbers...)
	return err
}

func (c *child) stop() {
	_ = c.in.Close()
	defer time.AfterFunc(10*time.Second, func() { _ = c.cmd.Process.Kill() }).Stop()
	_ = c.cmd.Wait()
}

// obey is a child's side: it says hello, then answers "go" with what begin returns and any other line with this
// process's CPU time in microseconds.
func obey(hello any, begin func() (int64, error)) error {
	fmt.Println(hello)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "go" {
			answered, err := begin()
			if err != nil {
				return err
			}
			fmt.Println(answered)
			continue
		}
		var used syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
			return err
		}
		fmt.Println((used.Utime.Nano() + used.Stime.Nano()) / 1000)
	}
	return nil
}
