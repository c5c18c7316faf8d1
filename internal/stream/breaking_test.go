package stream

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
)

// child is what a child process runs: one group, until it is killed or its standard input ends.
type child struct {
	Task   string // counter or sender
	Starts string
	Window int
	Config Config
}

const childVariable = "STREAM_TEST_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childVariable); spec != "" {
		os.Exit(runChild(spec))
	}
	// The tests wait for brokers and time-outs most of the time: more of them than there are processors run side by side.
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(max(6, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// rounds is how often something is broken: often where the machine has nothing else to do.
func rounds(soak, otherwise int) int {
	if os.Getenv("CI") == "true" {
		return soak
	}
	return otherwise
}

func runChild(encoded string) int {
	var c child
	if err := json.Unmarshal([]byte(encoded), &c); err != nil {
		panic(err)
	}
	spec := counterSpec()
	if c.Task == "sender" {
		spec = senderSpec(c.Starts, c.Window)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})).With("pid", os.Getpid())
	g, err := New(spec, c.Config, log, prometheus.NewRegistry())
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := g.Run(ctx); err != nil {
		log.Error("run", "error", err)
		return 1
	}
	return 0
}

// spawn starts a child; it ends with the test.
func spawn(t *testing.T, c child) *exec.Cmd {
	t.Helper()
	encoded, err := json.Marshal(c)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(encoded))
	cmd.Stderr = t.Output()
	_, err = cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if t.Failed() {
			_ = cmd.Process.Signal(syscall.SIGQUIT) // shows what it was doing
			time.Sleep(time.Second)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// brood is some children at work, each with a state folder of its own.
type brood struct {
	t        *testing.T
	c        child
	dirs     []string
	children []*exec.Cmd
}

func newBrood(t *testing.T, n int, c child) *brood {
	t.Helper()
	b := &brood{t: t, c: c, dirs: make([]string, n), children: make([]*exec.Cmd, n)}
	for i := range n {
		b.dirs[i] = t.TempDir()
		b.start(i)
	}
	return b
}

func (b *brood) start(i int) {
	b.t.Helper()
	b.c.Config.StateDir = b.dirs[i]
	b.children[i] = spawn(b.t, b.c)
}

// kill ends a child at once and starts it again, one time in three without what it had on disk.
func (b *brood) kill() {
	b.t.Helper()
	i := rand.IntN(len(b.children))
	require.NoError(b.t, b.children[i].Process.Kill())
	_ = b.children[i].Wait()
	if rand.IntN(3) == 0 {
		require.NoError(b.t, os.RemoveAll(b.dirs[i]))
	}
	b.start(i)
}

// freeze stops a child until the group has expelled it and given its partitions away, and lets it go on.
func (b *brood) freeze(c *client, group string) {
	b.t.Helper()
	c.requireMembers(group, len(b.children))
	p := b.children[rand.IntN(len(b.children))].Process
	require.NoError(b.t, p.Signal(syscall.SIGSTOP))
	c.requireMembers(group, len(b.children)-1)
	require.NoError(b.t, p.Signal(syscall.SIGCONT))
}

// requireMembers waits until a group is stable with n members.
func (c *client) requireMembers(group string, n int) {
	c.t.Helper()
	name := c.cfg.TopicPrefix + group
	testenv.Eventually(c.t, time.Minute, func() bool {
		groups, err := kadm.NewClient(c.Client).DescribeGroups(context.Background(), name)
		return err == nil && groups[name].Err == nil && groups[name].State == "Stable" && len(groups[name].Members) == n
	}, "stable members of ", group, ": ", n)
}

// load produces records at a steady pace beside the test; done is closed after the last.
func (c *client) load(topic string, records []*kgo.Record, chunk int) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		for part := range slices.Chunk(records, chunk) {
			c.produce(topic, part...)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return done
}

func TestKilledWhileCounting(t *testing.T) {
	t.Parallel()
	cfg := testenv.Kafka(t)
	c := newClient(t, cfg)
	in := numbers(20_000, 100)
	done := c.load(counterIn, in, 200)
	b := newBrood(t, 2, child{Task: "counter", Config: shortTimeouts(config(cfg, ""))})
	for range rounds(8, 4) {
		time.Sleep(time.Duration(500+rand.IntN(2000)) * time.Millisecond)
		b.kill()
	}
	<-done
	c.requireExact(len(in), in)
}

func TestKilledWhileSending(t *testing.T) {
	t.Parallel()
	cfg := testenv.Kafka(t)
	c, starts := newClient(t, cfg), startsFile(t)
	records, units := parcels(0, 5000)
	done := c.load(senderIn, records, 50)
	b := newBrood(t, 2, child{Task: "sender", Starts: starts, Window: 500, Config: shortTimeouts(config(cfg, ""))})
	for range rounds(8, 4) {
		time.Sleep(time.Duration(500+rand.IntN(2000)) * time.Millisecond)
		b.kill()
	}
	<-done
	t.Logf("%d of %d rows say that they may be repeats", c.requireRows(units, starts), units)
}

func TestAZombieWritesNothing(t *testing.T) {
	t.Parallel()
	cfg := testenv.Kafka(t)
	c, starts := newClient(t, cfg), startsFile(t)
	in := numbers(20_000, 100)
	records, units := parcels(0, 2000)
	counted, sent := c.load(counterIn, in, 100), c.load(senderIn, records, 10)
	counters := newBrood(t, 2, child{Task: "counter", Config: shortTimeouts(config(cfg, ""))})
	senders := newBrood(t, 2, child{Task: "sender", Starts: starts, Window: 500, Config: shortTimeouts(config(cfg, ""))})
	for range rounds(3, 1) {
		var frozen sync.WaitGroup
		frozen.Go(func() { counters.freeze(c, "counter") })
		frozen.Go(func() { senders.freeze(c, "sender") })
		frozen.Wait()
	}
	// The woken ones have noticed, and are members again.
	c.requireMembers("counter", 2)
	c.requireMembers("sender", 2)
	<-counted
	<-sent
	c.requireExact(len(in), in)
	c.requireRows(units, starts)
}

// stuck is a counter whose loop can be held up in the middle of a transaction. Its heartbeats go on.
type stuck struct {
	counter
	entered chan<- struct{} // takes one
	hold    <-chan struct{}
}

func (s *stuck) Process(tx *Tx, in *kgo.Record) error {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.hold
	return s.counter.Process(tx, in)
}

func TestALoopThatMissedARebalanceCommitsNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c := newClient(t, cfg)
		in := numbers(2000, 40)
		entered, hold := make(chan struct{}, 1), make(chan struct{})
		spec := counterSpec()
		spec.NewTask = func(*Partition) (Task, error) { return &stuck{entered: entered, hold: hold}, nil }
		conf := shortTimeouts(config(cfg, t.TempDir()))
		conf.RebalanceTimeout = 3 * time.Second
		held := begin(t, spec, conf).ready()
		c.produce(counterIn, in[:1000]...)
		select {
		case <-entered: // its loop is in the middle of a transaction
		case <-time.After(time.Minute):
			require.FailNow(t, "no record was processed")
		}
		conf.StateDir = t.TempDir()
		begin(t, counterSpec(), conf)
		c.requireExact(1000, in[:1000]) // by the newcomer, who has everything
		close(hold)
		c.produce(counterIn, in[1000:]...)
		c.requireExact(2000, in)
		held.ready()
	})
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c, starts := newClient(t, cfg), startsFile(t)
		in := numbers(6000, 100)
		records, units := parcels(0, 1500)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 60 {
				c.produce(counterIn, in[i*100:(i+1)*100]...)
				c.produce(senderIn, records[i*25:(i+1)*25]...)
				time.Sleep(100 * time.Millisecond)
			}
		}()
		dir := t.TempDir()
		conf := config(cfg, dir)
		conf.Sessions = 2
		begin(t, counterSpec(), conf).ready()
		begin(t, senderSpec(starts, 200), config(cfg, dir)).ready()
		for range 3 {
			second := t.TempDir()
			a := begin(t, counterSpec(), config(cfg, second)).ready()
			b := begin(t, senderSpec(starts, 200), config(cfg, second)).ready()
			time.Sleep(700 * time.Millisecond)
			a.stop()
			b.stop()
		}
		<-done
		c.requireExact(len(in), in)
		require.Zero(t, c.requireRows(units, starts), "every hand-over was clean")
	})
}

// assignments are the partitions of a group's members by the name that a restart keeps.
func (c *client) assignments(group string) map[string][]int32 {
	c.t.Helper()
	name := c.cfg.TopicPrefix + group
	groups, err := kadm.NewClient(c.Client).DescribeGroups(context.Background(), name)
	require.NoError(c.t, err)
	parts := map[string][]int32{}
	for _, m := range groups[name].Members {
		require.NotNil(c.t, m.InstanceID)
		assigned, ok := m.Assigned.AsConsumer()
		require.True(c.t, ok)
		parts[*m.InstanceID] = nil
		for _, topic := range assigned.Topics {
			parts[*m.InstanceID] = slices.Sorted(slices.Values(topic.Partitions))
		}
	}
	return parts
}

func TestARestartedMemberHasItsPartitionsBack(t *testing.T) {
	t.Parallel()
	cfg := testenv.Kafka(t)
	c := newClient(t, cfg)
	in := numbers(2000, 100)
	conf := config(cfg, "")
	conf.SessionTimeout = time.Minute
	b := newBrood(t, 2, child{Task: "counter", Config: conf})
	c.requireMembers("counter", 2)
	c.produce(counterIn, in[:1000]...)
	c.requireExact(1000, in[:1000])
	var before map[string][]int32
	testenv.Eventually(t, time.Minute, func() bool {
		before = c.assignments("counter")
		total := 0
		for _, ids := range before {
			total += len(ids)
		}
		return total == int(cfg.Partitions)
	}, "all partitions to have a member")

	require.NoError(t, b.children[0].Process.Kill())
	_ = b.children[0].Wait()
	killed := time.Now()
	b.start(0)
	c.produce(counterIn, in[1000:]...)
	c.requireExact(2000, in)
	require.Less(t, time.Since(killed), conf.SessionTimeout/2, "nobody waited for the killed member's session to end")
	require.Equal(t, before, c.assignments("counter"), "nothing moved")
}

func TestTheBrokerIsKilled(t *testing.T) {
	t.Parallel()
	broker := testenv.NewKafka(t)
	cfg := broker.Topics(t, 4)
	c, starts := newClient(t, cfg), startsFile(t)
	in := numbers(10_000, 100)
	records, units := parcels(0, 1000)
	counted, sent := c.load(counterIn, in, 100), c.load(senderIn, records, 10)
	dir := t.TempDir()
	begin(t, counterSpec(), shortTimeouts(config(cfg, dir)))
	begin(t, senderSpec(starts, 500), shortTimeouts(config(cfg, dir)))
	for range 2 {
		time.Sleep(2 * time.Second)
		require.NoError(t, broker.Kill())
		time.Sleep(time.Second)
		require.NoError(t, broker.Start(t.Context()))
	}
	<-counted
	<-sent
	c.requireExact(len(in), in)
	c.requireRows(units, starts)
}
