package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/store"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A cold restore replays every state that compaction has not taken yet, and each leaves an index entry: what waits is
// found behind any number of them, whether or not the task knows the endpoint's organization.
func TestWaitingIsFoundBehindOutOfDateEntries(t *testing.T) {
	for _, stale := range []int{10, 1500, 5000} {
		t.Run(fmt.Sprint(stale), func(t *testing.T) {
			w := newWorld(t, nil)
			d := restoredCold(t, w, w.endpoint("a", nil), stale, true)
			w.drive(d, 100)
			require.Len(t, w.receiver.sent(), 1, "the delivery that waits is sent")
		})
	}
}

func TestReplayIsNotKeptByOutOfDateEntries(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable("e1", "e2")
	d := restoredCold(t, w, ep, 10, false)
	start := w.start(1, ep)
	start.Topic, start.Timestamp = w.d.Spec().Input, w.Now
	require.NoError(t, d.Process([]*kgo.Record{start}, w.Now))
	w.drive(d, 100)
	require.Len(t, w.receiver.sent(), 2)
}

// drive runs transactions, 50 ms apart.
func (w *world) drive(d *stream.Driver, times int) {
	w.t.Helper()
	now := w.Now
	for range times {
		now = now.Add(50 * time.Millisecond)
		require.NoError(w.t, d.Advance(now))
		_, _, _, err := d.End(true)
		require.NoError(w.t, err)
		w.quiet()
	}
}

// restoredCold is a task with a store as a restore leaves it: with entries of states that have been deleted since, and
// one of a delivery that waits if there is one.
func restoredCold(t *testing.T, w *world, ep string, stale int, waits bool) *stream.Driver {
	t.Helper()
	db, err := store.OpenMemory()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	index := w.d.Spec().Stores[0].Index
	p, err := db.Acquire(0, []string{schemas.Retries})
	require.NoError(t, err)
	b := p.Batch()
	put := func(delivery string, due time.Time) {
		state, err := proto.Marshal(&webhooksv1.WaitingState{
			EndpointId: ep, DueUnixMs: due.UnixMilli(), OrganizationId: org, EventId: "evt", EventType: "x",
			Reason: webhooksv1.WaitingReason_WAITING_REASON_BACKOFF, Attempts: 1, ScheduleStep: 1,
		})
		require.NoError(t, err)
		key := []byte("s/" + delivery)
		b.Put(0, key, state)
		index(key, state, func(k []byte) { b.PutIndex(0, k) })
	}
	for i := range stale {
		delivery := fmt.Sprintf("dlv_old%05d", i)
		put(delivery, w.Now.Add(-time.Hour+time.Duration(i)*time.Millisecond))
		b.Delete(0, []byte("s/"+delivery))
	}
	if waits {
		put("dlv_live", w.Now.Add(-time.Minute))
		payload, err := proto.Marshal(&webhooksv1.WaitingPayload{
			Event: &webhooksv1.OutboundEvent{Id: "evt", OrganizationId: org, Type: "x", Body: []byte(`{"id":"x"}`)},
		})
		require.NoError(t, err)
		b.Put(0, []byte("p/dlv_live"), payload)
	}
	require.NoError(t, b.Commit())
	d, err := stream.NewDriver(w.d.Spec(), 0, 4, db, 0, "", func() {})
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}
