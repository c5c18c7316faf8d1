package stream

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
)

func TestCountsOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c := newClient(t, cfg)
		in := numbers(3000, 40)
		c.produce(counterIn, in[:1000]...)
		g := begin(t, counterSpec(), config(cfg, t.TempDir())).ready()
		c.produce(counterIn, in[1000:]...)
		c.requireExact(3000, in)
		testenv.Eventually(t, 10*time.Second, func() bool { return g.Lag() == 0 }, "lag 0")
	})
}

func TestCountsOnceWhateverTransactionsDo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, cfg kafka.Config) {
		c := newClient(t, cfg)
		in := numbers(3000, 40)
		var aborted, forgotten atomic.Int32
		conf := config(cfg, t.TempDir())
		conf.BatchRecords = 100
		g := begin(t, counterSpec(), conf, func(g *Group) {
			g.retries = rand.IntN(2)
			g.faults.abort = func() bool { return rand.IntN(4) == 0 && aborted.Add(1) > 0 }
			g.faults.forget = func() bool { return rand.IntN(4) == 0 && forgotten.Add(1) > 0 }
		})
		c.produce(counterIn, in...)
		c.requireExact(3000, in)
		require.Positive(t, aborted.Load())
		require.Positive(t, forgotten.Load())
		g.stop()
		c.requireExact(3000, in)
	})
}

func TestStateComesBack(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"kept":    func(*testing.T, string) {},
		"deleted": func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) },
		"spoilt": func(t *testing.T, dir string) {
			files, err := filepath.Glob(filepath.Join(dir, "counter", "db", "*"))
			require.NoError(t, err)
			for _, f := range files {
				require.NoError(t, os.WriteFile(f, []byte("not a database"), 0o600))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, cfg kafka.Config) {
				c := newClient(t, cfg)
				in := numbers(900, 20)
				dir := t.TempDir()
				for i := range 3 {
					g := begin(t, counterSpec(), config(cfg, dir)).ready()
					c.produce(counterIn, in[i*300:(i+1)*300]...)
					c.requireExact((i+1)*300, in[:(i+1)*300])
					g.stop()
					spoil(t, dir)
				}
			})
		})
	}
}

func TestNotReadyBetweenAnAssignmentAndItsOffsets(t *testing.T) {
	g, err := New(counterSpec(), Config{StateDir: t.TempDir()}, testLog(t), prometheus.NewRegistry())
	require.NoError(t, err)
	s := g.sessions[0]
	s.owned = map[int32]*owned{}
	s.report()
	require.ErrorIs(t, s.status(), errJoining)
	s.mail.synced(map[string][]int32{counterIn: {0, 1}})
	s.report()
	require.ErrorIs(t, s.status(), errRestoring)
	s.mail.synced(nil)
	s.report()
	require.NoError(t, s.status(), "nothing is assigned: there is nothing to wait for")
}

func TestReadyAsSoonAsStateIsThere(t *testing.T) {
	t.Parallel()
	cfg, dir := testenv.FakeKafka(t), t.TempDir()
	late := idlePoll
	for range 5 { // the quickest of them: a busy machine is late by itself
		var taken atomic.Pointer[time.Time]
		spec := counterSpec()
		spec.NewTask = func(*Partition) (Task, error) {
			now := time.Now()
			taken.Store(&now)
			return &counter{}, nil
		}
		g := begin(t, spec, config(cfg, dir)).ready()
		late = min(late, time.Since(*taken.Load()))
		g.stop()
	}
	require.Less(t, late, idlePoll/2, "it waited for records that did not come")
}
