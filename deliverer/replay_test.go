package deliverer_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// recorded puts events into the record that have no delivery.
func (s *system) recorded(n int, accepted time.Time) {
	s.t.Helper()
	batch, err := s.conn.PrepareBatch(s.t.Context(), "INSERT INTO events (event_id, organization_id, type, occurred_at, accepted_at, schema_version, data)")
	require.NoError(s.t, err)
	defer batch.Close()
	for i := range n {
		at := accepted.Add(time.Duration(i) * time.Millisecond)
		require.NoError(s.t, batch.Append(id.Derive(id.Event, fmt.Sprint("old", i)), org, "order.created", at, at, uint16(1), `{"n":1}`))
	}
	require.NoError(s.t, batch.Send())
}

func (s *system) command(cmd *webhooksv1.Command, endpoint string) {
	s.t.Helper()
	r, err := cloudevent.Command(cmd)
	require.NoError(s.t, err)
	r.Topic, r.Partition = s.kafka.Topic(schemas.Deliveries), kafka.PartitionOf(endpoint, s.kafka.Partitions)
	require.NoError(s.t, s.client.ProduceSync(s.t.Context(), r).FirstErr())
}

// A replay goes on over restarts: each event of its range is delivered, each attempt that the receiver saw is one row, and
// live traffic does not wait for its end.
func TestAReplayGoesOnOverRestarts(t *testing.T) {
	s := newSystem(t)
	receiver := testenv.NewReceiver(t)
	receiver.Answer(func(testenv.Received) int {
		time.Sleep(5 * time.Millisecond)
		return 200
	})
	const events = 1000
	s.recorded(events, time.Now().Add(-time.Hour))
	stop := s.start()
	endpoint, _ := s.endpoint("a", receiver.URL+"/hook", 1)
	replay := id.New(id.Replay)
	now := time.Now().UnixMilli()
	since := now - 2*time.Hour.Milliseconds()
	s.command(&webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: org, IssuedUnixMs: now,
		Action: &webhooksv1.Command_StartReplay{StartReplay: &webhooksv1.StartReplay{Replay: &webhooksv1.Replay{
			Id: replay, OrganizationId: org, EndpointId: endpoint, SinceUnixMs: since, UntilUnixMs: now, CursorUnixMs: since,
			Only: schemas.ReplayMissing, Status: schemas.ReplayRunning, CreatedUnixMs: now, EndpointVersion: 1,
		}}},
	}, endpoint)
	for _, n := range []int{events / 4, events / 2} {
		receiver.Wait(t, 60*time.Second, n)
		stop()
		stop = s.start()
	}
	s.event("live", endpoint, 1)
	testenv.Eventually(t, 60*time.Second, func() bool {
		return s.number("SELECT count() FROM deliveries FINAL WHERE status = 'delivered' AND replay_id = ?", replay) == events
	}, "all delivered")

	seen, live := map[string]int{}, 0
	for i, r := range receiver.Received() {
		seen[r.Header.Get("x-betterdata-delivery")]++
		if r.Header.Get("x-betterdata-replay") == "" {
			live = i
		} else {
			require.Equal(t, replay, r.Header.Get("x-betterdata-replay"))
		}
	}
	require.Len(t, seen, events+1)
	require.Less(t, live, events*9/10, "before the rest of the replay")
	testenv.Eventually(t, 20*time.Second, func() bool {
		return s.number("SELECT count() FROM delivery_attempts") >= events+1
	}, "all attempts recorded")
	require.EqualValues(t, events+1, s.number("SELECT count() FROM delivery_attempts"))
	require.EqualValues(t, events+1, s.number("SELECT uniqExact(attempt_id) FROM delivery_attempts"))
	for delivery, times := range seen {
		require.True(t, times == 1 || s.number("SELECT count() FROM delivery_attempts WHERE delivery_id = ? AND maybe_repeated = 1", delivery) == 1,
			"what was sent twice says so")
	}
}
