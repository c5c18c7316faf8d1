package stream

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

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
