package dispatch_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestARetryIsNotLostAndNotMadeTwice(t *testing.T) {
	for name, c := range map[string]struct {
		// begin processes the retry and breaks something.
		begin func(w *world, retry *kgo.Record)
		// sent is how many attempts there are in all, maybe whether the last says that it may be a repeat.
		sent  int
		maybe bool
	}{
		"nothing":                    {func(w *world, r *kgo.Record) { w.Process(r) }, 4, false},
		"its transaction is aborted": {func(w *world, r *kgo.Record) { w.Abort(r); w.Redeliver() }, 4, false},
		"crash before it is durable": {func(w *world, r *kgo.Record) { w.Abort(r); w.Crash(); w.Redeliver() }, 4, false},
		"crash when it is durable":   {func(w *world, r *kgo.Record) { w.Process(r); w.Crash(); w.Redeliver() }, 4, false},
		"clean stop":                 {func(w *world, r *kgo.Record) { w.Process(r); w.Stop(); w.Redeliver() }, 4, false},
		"crash while it is looked for": {func(w *world, r *kgo.Record) {
			w.archive.holdBack()
			w.settle(w.Process(r))
			w.Crash()
			w.archive.release()
			w.Redeliver()
		}, 4, false},
		"abort as it goes to the schedule": {func(w *world, r *kgo.Record) {
			w.Process(r)
			w.quiet()
			w.Abort()
		}, 4, false},
		"abort once it is in the schedule": {func(w *world, r *kgo.Record) {
			w.Process(r)
			w.quiet()
			w.Commit()
			w.Abort()
		}, 4, false},
		"crash while it runs": {func(w *world, r *kgo.Record) {
			w.receiver.holdBack("e1")
			w.settle(w.Process(r))
			w.Crash()
			w.receiver.release("e1")
			w.Redeliver()
		}, 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.exhaust("e1", ep)
			c.begin(w, w.retry("e1", ep))
			w.settle(w.Commit())
			sent := w.receiver.sent()
			require.Len(t, sent, c.sent)
			require.EqualValues(t, 4, sent[len(sent)-1].number)
			row := w.archive.rows[dlv("e1", ep)]
			require.Equal(t, "delivered", row.Status)
			require.EqualValues(t, 4, row.AttemptCount)
			require.EqualValues(t, 6, row.Version)
			require.Empty(t, w.Keys(schemas.Retries))
			require.EqualValues(t, 2, w.Watermark())
		})
	}
}

func TestARetryOfAnAttemptThatRunsOutlivesACrash(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	w.settle(w.Process(w.retry("e1", ep)))
	w.Crash()
	w.receiver.release("e1")
	out := w.settle(w.Redeliver())
	answered(t, out)
	require.Equal(t, []string{"1 schedule", "2 manual"}, triggers(t, out))
	require.True(t, attempts(t, out)[0].MaybeRepeated)
	require.False(t, attempts(t, out)[1].MaybeRepeated)
	require.Zero(t, w.archive.asked, "it had not ended")
}

// The attempt that a new owner makes anew, not knowing whether it went out, begins after the command.
func TestARetryOfAnAttemptThatDeliversOutlivesWhoKeptIt(t *testing.T) {
	for name, c := range map[string]struct {
		breaks   func(w *world) streamtest.Outputs
		triggers []string
	}{
		"the attempt's end is aborted": {func(w *world) streamtest.Outputs {
			w.receiver.release("e1")
			w.quiet()
			w.Abort()
			return w.Redeliver()
		}, []string{"1 schedule", "2 manual"}},
		"crash once it has ended": {func(w *world) streamtest.Outputs {
			w.archive.holdBack()
			w.receiver.release("e1")
			w.quiet()
			out := w.Commit()
			w.Crash()
			w.archive.release()
			return append(out, w.Redeliver()...)
		}, []string{"1 schedule", "2 manual"}},
		"crash while it runs": {func(w *world) streamtest.Outputs {
			w.Crash()
			w.receiver.release("e1")
			return w.Redeliver()
		}, []string{"1 schedule"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", nil)
			w.receiver.holdBack("e1")
			w.settle(w.Process(w.event("e1", ep)))
			w.settle(w.Process(w.retry("e1", ep)))
			out := w.settle(c.breaks(w))
			require.Equal(t, "delivered", answered(t, out).Status)
			require.Equal(t, c.triggers, triggers(t, out))
			require.Equal(t, "delivered", w.archive.rows[dlv("e1", ep)].Status)
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

// What a new owner is given again comes behind the commands that the earlier one kept.
func TestANewOwnerDoesNotTakeWhatIsToComeForEnded(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdBack("e1")
	w.receiver.holdBack("e2")
	w.settle(w.Process(w.event("e1", ep), w.event("e2", ep)))
	out := w.settle(w.Process(w.retry("e1", ep), w.cancel("e2", ep)))
	require.Empty(t, outcomes(t, out))
	w.receiver.answer(500)
	w.Crash()
	w.receiver.releaseAll()
	out = w.Commit() // before the records are given again
	w.Now = w.Now.Add(time.Second)
	out = append(out, w.Commit()...)
	require.Empty(t, outcomes(t, out))
	require.Zero(t, w.archive.asked)
	out = w.settle(w.Redeliver())
	require.Len(t, outcomes(t, out), 2)
	require.Equal(t, "canceled", w.archive.rows[dlv("e2", ep)].Reason)
	require.EqualValues(t, 1, w.archive.rows[dlv("e2", ep)].AttemptCount)
	require.EqualValues(t, 2, w.archive.rows[dlv("e1", ep)].AttemptCount)
}

func TestARetryBehindAHeldRecord(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	held := w.event("e1", ep)
	d := new(webhooksv1.Deliveries)
	require.NoError(t, proto.Unmarshal(held.Value, d))
	d.EndpointSetVersion = 7
	var err error
	held.Value, err = proto.Marshal(d)
	require.NoError(t, err)
	out := w.settle(w.Process(held, w.retry("e1", ep)))
	require.Empty(t, outcomes(t, out))
	require.Zero(t, w.archive.asked)
	w.endpoints.put(org, &webhooksv1.EndpointSet{Version: 7})
	out = w.pass(time.Second)
	answered(t, out)
	require.Equal(t, []string{"1 schedule"}, triggers(t, out))
}
