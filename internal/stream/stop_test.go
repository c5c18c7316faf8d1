package stream

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/testenv"
)

// clinging is a task that does not drain before it must, once it holds on, and meets what cannot be healed in every
// record.
type clinging struct {
	counter
	holdsOn *atomic.Bool
}

func (*clinging) Process(*Tx, *kgo.Record) error { return kerr.TopicAuthorizationFailed }

func (c *clinging) Drain(ctx context.Context) {
	if c.holdsOn.Load() {
		<-ctx.Done()
	}
}

func TestAFailureForGoodIsToldInTime(t *testing.T) {
	t.Parallel()
	cfg := testenv.FakeKafka(t)
	c := newClient(t, cfg)
	spec := counterSpec()
	var holdsOn atomic.Bool // not before the sessions have shared the partitions
	spec.NewTask = func(*Partition) (Task, error) { return &clinging{holdsOn: &holdsOn}, nil }
	conf := config(cfg, t.TempDir())
	conf.Sessions, conf.DrainTimeout, conf.StopTimeout = 2, time.Hour, 2*time.Second
	g, err := New(spec, conf, testLog(t), prometheus.NewRegistry())
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- g.Run(context.Background()) }()
	testenv.Eventually(t, time.Minute, func() bool { return g.Check(t.Context()) == nil && busySessions(g) == 2 }, "both sessions at work")
	holdsOn.Store(true)

	c.produce(counterIn, numbers(1, 1)...) // one session fails; the other holds on to its partitions
	select {
	case err := <-ended:
		require.ErrorIs(t, err, kerr.TopicAuthorizationFailed)
	case <-time.After(30 * time.Second):
		require.FailNow(t, "the error is not told while the other session drains")
	}
}

// failing is a task that cannot use any record.
type failing struct{ counter }

func (failing) Process(*Tx, *kgo.Record) error { return errors.New("no use") }

// A member is known to the group by its name and would be waited for until its session times out.
func TestWhoStopsLeavesTheGroup(t *testing.T) {
	for name, c := range map[string]struct {
		task Task
		// when the group is told to stop; nil: it ends by itself
		when func(*testing.T, *Group) bool
	}{
		"at work": {&counter{}, func(_ *testing.T, g *Group) bool { return g.Check(context.Background()) == nil }},
		// The fourth pause lasts 800 ms.
		"before a new session": {&failing{}, func(t *testing.T, g *Group) bool { return valueOf(t, g.metrics.rebuilds) == maxBarren-1 }},
		"failed for good":      {&failing{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, cfg kafka.Config) {
				cl, spec, conf := newClient(t, cfg), counterSpec(), config(cfg, t.TempDir())
				conf.SessionTimeout = time.Minute
				spec.NewTask = func(*Partition) (Task, error) { return c.task, nil }
				g, err := New(spec, conf, testLog(t), prometheus.NewRegistry())
				require.NoError(t, err)
				ctx, stop := context.WithCancel(context.Background())
				defer stop()
				ended := make(chan error, 1)
				go func() { ended <- g.Run(ctx) }()
				cl.produce(counterIn, numbers(1, 1)...)
				if c.when != nil {
					testenv.Eventually(t, time.Minute, func() bool { return c.when(t, g) }, "its time to stop")
					stop()
				}
				select {
				case err = <-ended:
				case <-time.After(time.Minute):
					require.FailNow(t, "it does not end")
				}
				require.Equal(t, c.when == nil, err != nil, "%v", err)
				groups, err := kadm.NewClient(cl.Client).DescribeGroups(context.Background(), g.name())
				require.NoError(t, err)
				require.NoError(t, groups.Error())
				require.Empty(t, groups[g.name()].Members)
			})
		})
	}
}

// busySessions counts the sessions that own partitions.
func busySessions(g *Group) (n int) {
	for _, s := range g.sessions {
		s.mu.Lock()
		if len(s.places) > 0 {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

func TestGroupsThatStopOneAfterTheOtherKeepTheProcesssDeadline(t *testing.T) {
	g := &Group{cfg: Config{StopTimeout: 20 * time.Second, DrainTimeout: 5 * time.Second}}
	stopping := func(left time.Duration) context.Context {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(&lifecycle.Stopping{By: time.Now().Add(left)})
		return ctx
	}
	plain, cancel := context.WithCancel(context.Background())
	cancel()
	require.Equal(t, 20*time.Second, g.stopBudget(plain), "nobody has set a deadline")
	require.Equal(t, 20*time.Second, g.stopBudget(stopping(time.Hour)))
	require.InDelta(t, 15, g.stopBudget(stopping(30*time.Second)).Seconds(), 0.5)
	require.Positive(t, g.stopBudget(stopping(-time.Second)))

	left := 30 * time.Second
	for range 4 { // each takes all it may
		left -= g.stopBudget(stopping(left))
	}
	require.Positive(t, left)

	require.Equal(t, 5*time.Second, g.drainTime())
	g.budget.Store(int64(4 * time.Second))
	require.Equal(t, 2*time.Second, g.drainTime(), "what is drained must still be committed")
}
