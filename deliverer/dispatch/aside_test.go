package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/schemas"
)

// fill delivers to others until so many units are in the window of a partition that is held up.
func (w *world) fill(units int, endpoints []string) {
	w.t.Helper()
	const batch = 64
	for from := 0; from < units; from += batch {
		require.False(w.t, w.Full())
		var records []*kgo.Record
		for n := from; n < min(units, from+batch); n++ {
			records = append(records, w.event(fmt.Sprint("fill", w.Watermark(), "/", n), endpoints[n%len(endpoints)]))
		}
		w.settle(w.Process(records...))
	}
}

func heldUp(t *testing.T) (w *world, slow string, others []string) {
	t.Helper()
	w = newWorld(t, nil)
	for i := range 8 {
		others = append(others, w.quick(fmt.Sprint("quick", i)))
	}
	slow = w.hang("slow", 1)
	require.EqualValues(t, 8, w.Watermark())
	return w, slow, others
}

func TestOneAttemptThatHangsDoesNotStopThePartition(t *testing.T) {
	w, slow, others := heldUp(t)
	w.fill(dispatch.Window*3/4, others)
	require.EqualValues(t, 8, w.Watermark(), "it has not hung for long")
	w.pass(2 * time.Second)
	require.EqualValues(t, 8+1+dispatch.Window*3/4, w.Watermark())
	require.True(t, w.waiting()[dlv("slow000", slow)].Started, "a new owner would know that it may have gone out")
	w.fill(dispatch.Window, others)
	require.False(t, w.Full())

	before := len(w.receiver.sent())
	w.receiver.releaseAll()
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 1)
	require.Equal(t, dlv("slow000", slow), attempts(t, out)[0].DeliveryId)
	require.EqualValues(t, 1, attempts(t, out)[0].Number)
	require.False(t, attempts(t, out)[0].MaybeRepeated)
	require.EqualValues(t, 2, deliveries(t, out)[0].Version)
	require.Empty(t, w.Keys(schemas.Retries))
	w.pass(time.Hour)
	require.Len(t, w.receiver.sent(), before, "it is not sent again")
}

func TestAbortedStepAsideIsDoneAgain(t *testing.T) {
	for _, landed := range []bool{false, true} {
		w, slow, others := heldUp(t)
		w.fill(dispatch.Window*3/4, others)
		w.Now = w.Now.Add(2 * time.Second)
		w.Abort()
		require.Empty(t, w.Keys(schemas.Retries))
		if landed {
			w.receiver.releaseAll()
		}
		out := w.settle(w.Commit())
		require.EqualValues(t, 8+1+dispatch.Window*3/4, w.Watermark())
		w.receiver.releaseAll()
		out = append(out, w.settle(w.Commit())...)
		require.Len(t, attempts(t, out), 1)
		require.Equal(t, dlv("slow000", slow), attempts(t, out)[0].DeliveryId)
		require.Empty(t, w.Keys(schemas.Retries))
	}
}

func TestCrashAfterAnAttemptStoodAside(t *testing.T) {
	w, _, others := heldUp(t)
	w.fill(dispatch.Window*3/4, others)
	w.pass(2 * time.Second)
	w.Crash()
	w.receiver.releaseAll()
	out := w.settle(w.Redeliver())
	require.Len(t, attempts(t, out), 1)
	require.EqualValues(t, 1, attempts(t, out)[0].Number)
	require.True(t, attempts(t, out)[0].MaybeRepeated)
	require.Empty(t, w.Keys(schemas.Retries))
}
