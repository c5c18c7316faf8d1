package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// journal is what stages did, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// stage becomes ready, and later stops, after the given times.
func (j *journal) stage(name string, start, stop time.Duration) Stage {
	ready := make(chan struct{})
	return Stage{
		Name: name,
		Run: func(ctx context.Context) error {
			j.add("start " + name)
			select {
			case <-time.After(start):
				close(ready)
				<-ctx.Done()
			case <-ctx.Done():
			}
			time.Sleep(stop)
			j.add("stop " + name)
			return nil
		},
		Check: func(context.Context) error {
			select {
			case <-ready:
				return nil
			default:
				return errors.New("starting")
			}
		},
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestStagesStartInOrderAndStopInTheOtherOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		p := New(quiet(), time.Minute, j.stage("broker", time.Second, 0), j.stage("processor", time.Minute, time.Second), j.stage("edge", 0, 3*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()

		time.Sleep(30 * time.Second)
		require.Equal(t, []string{"start broker", "start processor"}, j.all(), "the edge waits for the processor")
		checks, ready := p.Status(ctx)
		require.False(t, ready)
		require.NoError(t, checks["broker"])
		require.EqualError(t, checks["processor"], "starting")
		require.ErrorIs(t, checks["edge"], errNotStarted)

		time.Sleep(time.Minute)
		_, ready = p.Status(ctx)
		require.True(t, ready)

		cancel()
		synctest.Wait()
		checks, ready = p.Status(ctx)
		require.False(t, ready)
		require.ErrorIs(t, checks["broker"], errStopping)
		require.NoError(t, <-ended)
		require.Equal(t, []string{"start broker", "start processor", "start edge", "stop edge", "stop processor", "stop broker"}, j.all())
	})
}

func TestAnEagerStageStartsWhileOthersAreNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		edge := j.stage("edge", time.Second, 0)
		edge.Eager = true
		p := New(quiet(), time.Minute, j.stage("topics", time.Hour, 0), edge, j.stage("last", 0, 0))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()

		time.Sleep(time.Minute)
		require.ElementsMatch(t, []string{"start topics", "start edge"}, j.all())
		checks, ready := p.Status(ctx)
		require.False(t, ready)
		require.NoError(t, checks["edge"])
		require.Error(t, checks["topics"])

		time.Sleep(time.Hour)
		_, ready = p.Status(ctx)
		require.True(t, ready)
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, []string{"stop last", "stop edge", "stop topics"}, j.all()[3:])
	})
}

func TestAStopDuringTheStartStopsWhatWasStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.NoError(t, New(quiet(), time.Minute, j.stage("a", time.Second, 0), j.stage("b", 5*time.Second, 0), j.stage("c", 0, 0)).Run(ctx))
		require.Equal(t, []string{"start a", "start b", "stop b", "stop a"}, j.all())
	})
}

func TestAFailedStageStopsTheProcessWithItsName(t *testing.T) {
	broken := errors.New("disk full")
	for name, c := range map[string]struct {
		run  func(context.Context) error
		want string
	}{
		"error": {func(context.Context) error { time.Sleep(time.Second); return broken }, "stage b: disk full"},
		"end":   {func(context.Context) error { time.Sleep(time.Second); return nil }, "stage b ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				err := New(quiet(), time.Minute, j.stage("a", 0, 0), Stage{Name: "b", Run: c.run}, j.stage("c", 0, 0)).Run(t.Context())
				require.EqualError(t, err, c.want)
				require.Equal(t, []string{"start a", "start c", "stop c", "stop a"}, j.all())
			})
		})
	}
}

func TestAStageThatFailsWhileAnotherStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		fails := Stage{Name: "a", Run: func(context.Context) error { time.Sleep(time.Second); return errors.New("gone") }}
		err := New(quiet(), time.Minute, fails, j.stage("b", time.Hour, 0), j.stage("c", 0, 0)).Run(t.Context())
		require.ErrorContains(t, err, "stage a: gone")
		require.NotContains(t, j.all(), "start c")
	})
}

func TestTheStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		p := New(quiet(), 30*time.Second, j.stage("a", 0, 0), j.stage("b", 0, time.Hour))
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		time.Sleep(time.Second)
		cancel()
		begun := time.Now()
		require.EqualError(t, <-ended, "stage b did not stop within SHUTDOWN_TIMEOUT 30s")
		require.Equal(t, 30*time.Second, time.Since(begun))
		time.Sleep(2 * time.Hour)
	})
}

func TestAFailedDrainIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := Stage{Name: "sink", Run: func(ctx context.Context) error { <-ctx.Done(); return errors.New("7 rows left") }}
		require.EqualError(t, New(quiet(), time.Minute, s).Run(ctx), "stop stage sink: 7 rows left")
	})
}

func TestSignals(t *testing.T) {
	exited := make(chan int, 1)
	ctx, stop := OnSignal(t.Context(), func(code int) { exited <- code })
	defer stop()
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGTERM))
	<-ctx.Done()
	require.Empty(t, exited)
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGINT))
	require.Equal(t, 130, <-exited)
}

func TestAdmin(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "webhooks_test"}))
	var mu sync.Mutex
	checks := map[string]error{"kafka": nil, "edge": errors.New("1 of 2 replicas")}
	status := func(context.Context) (map[string]error, bool) {
		mu.Lock()
		defer mu.Unlock()
		return checks, checks["edge"] == nil
	}
	RegisterMetrics(reg, status, t.TempDir())
	admin := NewAdmin(ln, reg, status)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- admin.Run(ctx) }()
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + ln.Addr().String() + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}

	code, _ := get("/healthz")
	require.Equal(t, 200, code)
	code, body := get("/readyz")
	require.Equal(t, 503, code)
	require.JSONEq(t, `{"ready":false,"checks":{"kafka":"ok","edge":"1 of 2 replicas"}}`, body)
	_, body = get("/metrics")
	require.Contains(t, body, "webhooks_ready 0\n")
	mu.Lock()
	checks = map[string]error{"kafka": nil, "edge": nil}
	mu.Unlock()
	code, body = get("/readyz")
	require.Equal(t, 200, code)
	require.True(t, json.Valid([]byte(body)))
	code, body = get("/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, body, "webhooks_test 0")
	require.Contains(t, body, "webhooks_ready 1\n")
	require.Regexp(t, `(?m)^webhooks_data_dir_free_bytes [1-9]`, body)
	require.Regexp(t, `(?m)^webhooks_data_dir_size_bytes [1-9]`, body)
	code, _ = get("/debug/pprof/cmdline")
	require.Equal(t, 200, code)
	code, _ = get("/nothing")
	require.Equal(t, 404, code)

	cancel()
	require.NoError(t, <-ended)
	http.DefaultClient.CloseIdleConnections()
}

func TestAStageIsToldHowMuchTimeItHasToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var left []time.Duration
		stage := func(name string, takes time.Duration) Stage {
			return Stage{Name: name, Run: func(ctx context.Context) error {
				_, ok := Deadline(ctx)
				require.False(t, ok, "nobody has asked for a stop")
				<-ctx.Done()
				// A room passes it on to its own parts.
				part, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
				cancel(context.Cause(ctx))
				by, ok := Deadline(part)
				require.True(t, ok)
				left = append(left, time.Until(by))
				time.Sleep(takes)
				return nil
			}}
		}
		p := New(quiet(), 30*time.Second, stage("first", 0), stage("second", 0), stage("third", 12*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		synctest.Wait()
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, []time.Duration{30 * time.Second, 18 * time.Second, 18 * time.Second}, left)
	})
}
