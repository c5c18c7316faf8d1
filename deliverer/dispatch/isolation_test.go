package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestPausedWaitsAndAResumedOneDrains(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	var records []*kgo.Record
	for _, name := range names("e", 40) {
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	require.Empty(t, w.receiver.sent())
	require.Len(t, w.waiting(), 40)
	require.EqualValues(t, 40, w.Watermark())
	w.pass(time.Hour)
	require.Empty(t, w.receiver.sent())

	w.endpoint("a", nil)
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 40)
	require.Empty(t, w.Keys(schemas.Retries))
	older := map[string]bool{}
	for _, name := range names("e", 32) {
		older[`{"id":"`+name+`"}`] = true
	}
	for _, s := range w.receiver.sent()[:16] {
		require.True(t, older[s.body], "the oldest go first")
	}
}

func TestSaturatedEndpointStepsAside(t *testing.T) {
	w := newWorld(t, nil)
	slow := w.endpoint("slow", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 2 })
	quick := w.endpoint("quick", nil)
	var records []*kgo.Record
	for _, name := range names("s", 10) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, slow))
	}
	records = append(records, w.event("q", quick))
	out := w.settle(w.Process(records...))
	require.Len(t, attempts(t, out), 1, "the other endpoint is not held up")
	require.Len(t, w.receiver.sent(), 3, "no more at once than the endpoint allows")
	states := w.waiting()
	require.Len(t, states, 6, "two run, two are at hand, the rest has left memory")
	for _, s := range states {
		require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_SATURATED, s.Reason)
		require.Zero(t, s.Attempts)
	}
	w.receiver.releaseAll()
	out = w.settle(w.Commit())
	require.Len(t, attempts(t, out), 10)
	for _, row := range attempts(t, out) {
		require.EqualValues(t, 1, row.Number, "waiting for room is no attempt")
		require.False(t, row.MaybeRepeated)
	}
	require.Empty(t, w.Keys(schemas.Retries))
	require.EqualValues(t, 11, w.Watermark())
}

func TestABurstForAQuickEndpointIsNotWrittenDown(t *testing.T) {
	w := newWorld(t, nil)
	w.receiver.all = func(*sender.Message) sender.Result { return sender.Result{StatusCode: 200, Duration: time.Millisecond} }
	quick := w.quick("quick")
	var records []*kgo.Record
	for _, name := range names("e", 16+64*16+3) {
		w.receiver.holdBack(name)
		records = append(records, w.event(name, quick))
	}
	w.settle(w.Process(records...))
	require.Equal(t, 3, len(w.waiting()), "sixteen run, a second's work is at hand, the rest leaves memory")
	w.receiver.releaseAll()
	require.Len(t, attempts(t, w.settle(w.Commit())), len(records))
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestBreakerOpensAndProbes(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 1 })
	w.receiver.answer(500)
	for _, name := range names("e", 10) {
		w.settle(w.Process(w.event(name, ep)))
	}
	require.Len(t, w.receiver.sent(), 10)
	w.settle(w.Process(w.event("x", ep), w.event("y", ep)))
	require.Len(t, w.receiver.sent(), 10, "ten failures in a row open it")
	require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_BREAKER, w.waiting()[dlv("x", ep)].Reason)
	require.Zero(t, w.waiting()[dlv("x", ep)].Attempts)

	w.pass(999 * time.Millisecond)
	w.settle(w.Process(w.event("z", ep)))
	require.Len(t, w.receiver.sent(), 10)
	require.Equal(t, webhooksv1.WaitingReason_WAITING_REASON_BREAKER, w.waiting()[dlv("z", ep)].Reason, "behind what is overdue, too")
	w.pass(time.Millisecond)
	require.Len(t, w.receiver.sent(), 11, "one probe after a second")
	w.pass(1999 * time.Millisecond)
	require.Len(t, w.receiver.sent(), 11, "the next after two")
	w.receiver.answer(200)
	w.pass(time.Millisecond)
	require.Len(t, w.receiver.sent(), 13, "the probe, it closes, and what it held goes; the others are not due yet")
	w.pass(10 * time.Second)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestRateLimit(t *testing.T) {
	w := newWorld(t, nil)
	rate := 20.0
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RateLimit = &rate })
	var records []*kgo.Record
	for _, name := range names("e", 60) {
		records = append(records, w.event(name, ep))
	}
	w.settle(w.Process(records...))
	for range 100 {
		w.pass(10 * time.Millisecond)
	}
	require.InDelta(t, 20, len(w.receiver.sent()), 4, "a second's worth in a second")
	for range 300 {
		w.pass(10 * time.Millisecond)
	}
	require.Len(t, w.receiver.sent(), 60)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestFullPoolStopsPollingAndSpillsNothing(t *testing.T) {
	w := newWorld(t, func(c *config) { c.InFlight = 2 })
	var records []*kgo.Record
	for i, name := range names("e", 5) {
		records = append(records, w.event(name, w.quick(fmt.Sprint("ep", i))))
		w.receiver.holdBack(name)
	}
	w.Process(records...)
	require.True(t, w.Full())
	require.Empty(t, w.Keys(schemas.Retries))
	w.receiver.releaseAll()
	require.Len(t, attempts(t, w.settle(w.Commit())), 5)
	require.False(t, w.Full())
}
