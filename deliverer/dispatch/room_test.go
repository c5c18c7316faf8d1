package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// quick makes an endpoint that has answered an event at once.
func (w *world) quick(name string) string {
	w.t.Helper()
	ep := w.endpoint(name, nil)
	require.Len(w.t, attempts(w.t, w.settle(w.Process(w.event("first of "+name, ep)))), 1)
	return ep
}

// hang sends an endpoint events that it does not answer.
func (w *world) hang(name string, n int) string {
	w.t.Helper()
	ep := w.endpoint(name, nil)
	var records []*kgo.Record
	for _, event := range names(name, n) {
		w.receiver.holdBack(event)
		records = append(records, w.event(event, ep))
	}
	w.settle(w.Process(records...))
	return ep
}

func TestSlowEndpointsLeaveRoomForOthers(t *testing.T) {
	w := newWorld(t, func(c *config) { c.InFlight = 32 })
	quick := w.quick("quick")
	for i := range 40 {
		w.hang(fmt.Sprint("slow", i), 20)
	}
	begun, queued := w.d.InFlight()
	require.Equal(t, 28, begun, "seven of eight slots")
	require.Zero(t, queued)
	require.False(t, w.Full())
	for _, s := range w.waiting() {
		require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_SATURATED, s.Reason)
	}
	for _, name := range names("q", 50) {
		require.Len(t, attempts(t, w.settle(w.Process(w.event(name, quick)))), 1)
	}

	w.receiver.releaseAll()
	out := w.settle(w.Commit())
	for range 20 {
		out = append(out, w.pass(200*time.Millisecond)...)
	}
	require.Len(t, attempts(t, out), 800, "what found no room goes when there is some")
	require.Empty(t, w.Keys(schemas.Retries))
	for _, a := range attempts(t, out) {
		require.EqualValues(t, 1, a.Number)
	}
}

func TestNewEndpointShowsItselfInACrowd(t *testing.T) {
	w := newWorld(t, func(c *config) { c.InFlight = 32 })
	w.hang("slow0", 20)
	w.hang("slow1", 20)
	var records []*kgo.Record
	fresh := w.endpoint("fresh", nil)
	for _, name := range names("f", 10) {
		records = append(records, w.event(name, fresh))
	}
	require.Len(t, attempts(t, w.settle(w.Process(records...))), 10)
}

func TestRecordForManyIsCountedOnce(t *testing.T) {
	w := newWorld(t, nil)
	var all []string
	for i := range 20 {
		all = append(all, w.endpoint(fmt.Sprint("ep", i), nil))
	}
	record := w.event("e", all...)
	w.receiver.holdBack("e")
	w.settle(w.Process(record))
	require.EqualValues(t, len(record.Value), w.d.HeldBytes())
	w.receiver.releaseAll()
	require.Len(t, attempts(t, w.settle(w.Commit())), 20)
	require.Zero(t, w.d.HeldBytes())
}
