package ingest_test

import (
	"bytes"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

// A broker that is frozen, and one that is gone: requests are answered 503 in time, memory stays within the budget, and
// what was answered 200 is there afterwards.
func TestKafkaAway(t *testing.T) {
	broker := testenv.NewKafka(t)
	const held = 1 << 20
	e := startReady(t, broker.Topics(t, 4), func(c *ingest.Config, _ *ingest.Deps) {
		c.AckTimeout, c.HeldBytes = time.Second, held
	})
	var accepted atomic.Int64
	post := func() answer {
		body := []byte(subscriptionCreated)
		a := e.post(body, sign(body))
		if a.status == http.StatusOK {
			accepted.Add(1)
		}
		return a
	}
	require.Equal(t, 200, post().status)

	for name, c := range map[string]struct{ away, back func() error }{
		"frozen": {broker.Stop, broker.Cont},
		"killed": {broker.Kill, func() error { return broker.Start(t.Context()) }},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.away())
			var clients sync.WaitGroup
			for range 32 {
				clients.Go(func() {
					start := time.Now()
					a := post()
					require.Equal(t, 503, a.status)
					require.Equal(t, "unavailable", a.problem(t).Code)
					require.NotEmpty(t, a.header.Get("Retry-After"))
					require.Less(t, time.Since(start), 5*time.Second)
				})
			}
			big := append([]byte(`{"id":"evt_big","type":"x","pad":"`), append(bytes.Repeat([]byte("x"), 900<<10), `"}`...)...)
			clients.Go(func() { require.Equal(t, 503, e.post(big, sign(big)).status) })
			clients.Wait()
			require.LessOrEqual(t, e.metric("webhooks_ingest_held_bytes"), float64(held))
			testenv.Eventually(t, 15*time.Second, func() bool { return e.Check(t.Context()) != nil }, "the edge is not ready")

			require.NoError(t, c.back())
			testenv.Eventually(t, 60*time.Second, func() bool { return post().status == http.StatusOK }, "events are accepted again")
			testenv.Eventually(t, 15*time.Second, func() bool { return e.Check(t.Context()) == nil }, "the edge is ready again")
			testenv.Eventually(t, 15*time.Second, func() bool { return e.metric("webhooks_ingest_held_bytes") == 0 }, "nothing is held")
		})
	}
	records(t, e.kafka, schemas.InboundUnrouted, int(accepted.Load()))

	t.Run("it stops in time", func(t *testing.T) {
		require.NoError(t, broker.Kill())
		e.post([]byte(`{}`), "t=1,v1=00")
		require.Equal(t, 503, post().status)
		start := time.Now()
		require.NoError(t, e.stop())
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

func TestKafkaAwayFromTheBeginning(t *testing.T) {
	cluster := testenv.FakeKafka(t)
	cluster.Brokers = []string{"127.0.0.1:1"}
	e := start(t, cluster)
	a := e.post([]byte(subscriptionCreated), sign([]byte(subscriptionCreated)))
	require.Equal(t, 503, a.status)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Error(t, e.Check(t.Context()))
	require.Equal(t, "unknown_source", e.do(e.request(http.MethodPost, "/webhooks/x", nil)).problem(t).Code)
}
