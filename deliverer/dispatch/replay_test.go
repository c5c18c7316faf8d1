package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// ranges stands in for the archive as far as replays read it: it has events, and all of them match.
type ranges struct {
	mu     sync.Mutex
	events []*webhooksv1.OutboundEvent
	// late: not all that was accepted is there yet. away: it does not answer.
	late, away bool
	page       int
	reads      int
}

func (r *ranges) Recorded(string, string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.late, r.answers()
	}
}

func (r *ranges) answers() error {
	r.reads++
	if r.away {
		return errors.New("away")
	}
	return nil
}

func (r *ranges) Count(_ context.Context, what archive.Range) (uint64, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.between(what, archive.Position{}))), true, r.answers()
}

func (r *ranges) Page(_ context.Context, what archive.Range, after archive.Position) (archive.Page, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := archive.Page{Events: r.between(what, after), Next: archive.Position{AcceptedUnixMS: what.UntilUnixMS}, End: true}
	if r.page > 0 && len(p.Events) > r.page {
		last := p.Events[r.page-1]
		p = archive.Page{Events: p.Events[:r.page], Next: archive.Position{AcceptedUnixMS: last.AcceptedUnixMs, EventID: last.Id}}
	}
	return p, r.answers()
}

func (r *ranges) between(what archive.Range, after archive.Position) (found []*webhooksv1.OutboundEvent) {
	for _, e := range r.events {
		at := archive.Position{AcceptedUnixMS: e.AcceptedUnixMs, EventID: e.Id}
		if at.After(after) && e.AcceptedUnixMs >= what.SinceUnixMS && e.AcceptedUnixMs < what.UntilUnixMS {
			found = append(found, e)
		}
	}
	return found
}

func (r *ranges) Events(_ context.Context, _ string, wanted []*webhooksv1.TakenEvent) (found []*webhooksv1.OutboundEvent, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if slices.ContainsFunc(wanted, func(w *webhooksv1.TakenEvent) bool { return w.EventId == e.Id }) {
			found = append(found, e)
		}
	}
	return found, r.answers()
}

// set changes the record.
func (r *ranges) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// replayable fills the record with events of an hour ago, a second apart.
func (w *world) replayable(names ...string) {
	for i, name := range names {
		w.ranges.events = append(w.ranges.events, &webhooksv1.OutboundEvent{
			Id: id.Derive(id.Event, name), OrganizationId: org, Type: "order.created", Body: []byte(`{"id":"` + name + `"}`),
			AcceptedUnixMs: w.Now.Add(-time.Hour + time.Duration(i)*time.Second).UnixMilli(),
		})
	}
}

func rpl(n int) string { return id.Derive(id.Replay, fmt.Sprint(n)) }

// start is the command that begins a replay of the last two hours.
func (w *world) start(n int, endpoint string) *kgo.Record {
	since := w.Now.Add(-2 * time.Hour).UnixMilli()
	replay := &webhooksv1.Replay{
		Id: rpl(n), OrganizationId: org, EndpointId: endpoint, SinceUnixMs: since, UntilUnixMs: w.Now.UnixMilli(),
		Only: schemas.ReplayAll, Status: schemas.ReplayRunning, CursorUnixMs: since, CreatedUnixMs: w.Now.UnixMilli(), EndpointVersion: 1,
	}
	return w.asked(func(cmd *webhooksv1.Command) {
		cmd.Action = &webhooksv1.Command_StartReplay{StartReplay: &webhooksv1.StartReplay{Replay: replay}}
	})
}

func (w *world) change(n int, endpoint, status string) *kgo.Record {
	return w.asked(func(cmd *webhooksv1.Command) {
		cmd.Action = &webhooksv1.Command_ChangeReplay{ChangeReplay: &webhooksv1.ChangeReplay{
			ReplayId: rpl(n), EndpointId: endpoint, Status: status,
		}}
	})
}

// replay is a replay as it is durable; nil when there is none.
func (w *world) replay(n int) *webhooksv1.Replay {
	w.t.Helper()
	value := w.Get(schemas.Replays, schemas.ReplayKey(org, rpl(n)))
	if value == nil {
		return nil
	}
	r := new(webhooksv1.Replay)
	require.NoError(w.t, proto.Unmarshal(value, r))
	return r
}

// timesSent counts how often each body was sent.
func (w *world) timesSent() map[string]int {
	sent := map[string]int{}
	for _, s := range w.receiver.sent() {
		sent[s.body]++
	}
	return sent
}

func once(names ...string) map[string]int {
	want := map[string]int{}
	for _, name := range names {
		want[`{"id":"`+name+`"}`] = 1
	}
	return want
}

func TestReplayDeliversItsRange(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable(names("e", 50)...)
	w.ranges.page = 7
	out := w.settle(w.Process(w.start(1, ep)))

	began := outcomes(t, out)
	require.Len(t, began, 1)
	require.Equal(t, rpl(1), began[0].GetReplay().GetId())
	require.Equal(t, "running", began[0].GetReplay().GetStatus())
	require.Equal(t, once(names("e", 50)...), w.timesSent())
	require.Len(t, attempts(t, out), 50)
	for _, row := range attempts(t, out) {
		require.Equal(t, "replay", row.Trigger)
		require.Equal(t, rpl(1), row.ReplayId)
		require.EqualValues(t, 1, row.Number)
		require.False(t, row.MaybeRepeated)
		require.Equal(t, id.Derive(id.Delivery, row.EventId, ep, rpl(1)), row.DeliveryId)
	}
	for _, row := range deliveries(t, out) {
		require.Equal(t, "delivered", row.Status)
		require.Equal(t, rpl(1), row.ReplayId)
		require.EqualValues(t, 1, row.Version, "nobody has written one before")
		require.EqualValues(t, 1, row.AttemptCount)
	}
	r := w.replay(1)
	require.Equal(t, "done", r.Status)
	require.EqualValues(t, 50, r.Done)
	require.EqualValues(t, 50, r.GetTotal())
	require.NotZero(t, r.EndedUnixMs)
	require.Empty(t, r.Taken)
	require.Empty(t, w.Keys(schemas.Retries), "nothing was enqueued")
	require.EqualValues(t, 1, w.Watermark())
}

func TestReplayOfNothingIsDone(t *testing.T) {
	w := newWorld(t, nil)
	w.settle(w.Process(w.start(1, w.endpoint("a", nil))))
	require.Equal(t, "done", w.replay(1).Status)
	require.Zero(t, w.replay(1).GetTotal())
	require.NotNil(t, w.replay(1).Total)
}

func TestReplayTakesNoMoreInHandThanTheEndpointHasToSpare(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 8 })
	all := names("e", 100)
	w.replayable(all...)
	for _, name := range all {
		w.receiver.holdBack(name)
	}
	w.settle(w.Process(w.start(1, ep)))
	require.Len(t, w.receiver.sent(), 4, "half of the slots")
	require.Len(t, w.replay(1).Taken, 8, "and as many at hand")
	require.Less(t, len(w.Get(schemas.Replays, schemas.ReplayKey(org, rpl(1)))), 1000, "the record is small")
}

func TestReplayDoesNotStarveLiveTraffic(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	w.replayable(names("e", 40)...)
	for _, name := range names("e", 40) {
		w.receiver.holdBack(name)
	}
	w.settle(w.Process(w.start(1, ep)))
	require.Len(t, w.receiver.sent(), 2)

	w.settle(w.Process(w.event("live1", ep), w.event("live2", ep)))
	require.Len(t, w.receiver.sent(), 4, "the other half is live traffic's, at once")
	for _, name := range names("l", 6) {
		w.receiver.holdBack(name)
		w.settle(w.Process(w.event(name, ep)))
	}
	require.Len(t, w.receiver.sent(), 6)
	w.receiver.release("e000")
	w.receiver.release("e001")
	w.settle(w.Commit())
	require.Len(t, w.receiver.sent(), 8)
	for _, s := range w.receiver.sent()[4:] {
		require.Contains(t, s.body, `"l`, "what a replay gives back goes to what waits")
	}
	for _, name := range names("l", 6) {
		w.receiver.release(name)
	}
	w.settle(w.Commit())
	require.Len(t, w.receiver.sent(), 12, "once nothing live waits the replay goes on")
}

func TestReplayHasHalfOfTheRate(t *testing.T) {
	w := newWorld(t, nil)
	rate := 20.0
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.RateLimit = &rate })
	w.replayable(names("e", 60)...)
	w.settle(w.Process(w.start(1, ep)))
	for range 200 {
		w.pass(10 * time.Millisecond)
	}
	require.InDelta(t, 20, len(w.receiver.sent()), 3, "two seconds at ten a second")
	for range 500 {
		w.pass(10 * time.Millisecond)
	}
	require.Equal(t, once(names("e", 60)...), w.timesSent())
	require.Equal(t, "done", w.replay(1).Status)
}

func TestFailedReplayDeliveriesGoToTheSchedule(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable("e1", "e2")
	w.receiver.answer(500)
	out := w.settle(w.Process(w.start(1, ep)))
	require.Len(t, attempts(t, out), 2)
	require.Equal(t, "done", w.replay(1).Status, "the cursor has nothing more to do with them")
	require.Len(t, w.waiting(), 2)
	w.receiver.answer(200)
	out = w.pass(5 * time.Second)
	require.Len(t, attempts(t, out), 2)
	for _, row := range attempts(t, out) {
		require.EqualValues(t, 2, row.Number)
		require.Equal(t, rpl(1), row.ReplayId)
		require.Equal(t, "replay", row.Trigger)
	}
	for _, row := range deliveries(t, out) {
		require.EqualValues(t, 2, row.Version)
	}
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestReplayWaitsForTheBreaker(t *testing.T) {
	w := newWorld(t, func(c *config) { c.Retries.Delays = []time.Duration{time.Hour} })
	ep := w.endpoint("a", nil)
	w.replayable(names("e", 200)...)
	w.receiver.answer(500)
	w.settle(w.Process(w.start(1, ep)))
	sent := len(w.receiver.sent())
	require.Less(t, sent, 30, "ten failures open it")
	w.pass(time.Second)
	require.Len(t, w.receiver.sent(), sent+1, "nothing else waits, so the replay probes")
	w.pass(time.Second)
	require.Len(t, w.receiver.sent(), sent+1)
	w.receiver.answer(200)
	w.pass(time.Second)
	w.pass(time.Minute)
	require.Len(t, w.timesSent(), 200)
	require.Equal(t, "done", w.replay(1).Status)
}

func TestPauseResumeCancel(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	all := names("e", 40)
	w.replayable(all...)
	for _, name := range all {
		w.receiver.holdBack(name)
	}
	w.settle(w.Process(w.start(1, ep)))
	require.Len(t, w.receiver.sent(), 2)

	out := w.settle(w.Process(w.change(1, ep, "paused")))
	require.Equal(t, "paused", outcomes(t, out)[0].GetReplay().GetStatus())
	w.receiver.release("e000")
	w.receiver.release("e001")
	out = w.settle(w.Commit())
	require.Len(t, attempts(t, out), 2, "what was under way ends")
	w.pass(time.Hour)
	require.Len(t, w.receiver.sent(), 2, "and nothing more begins")
	require.EqualValues(t, 2, w.replay(1).Done)

	w.settle(w.Process(w.change(1, ep, "paused")))
	out = w.settle(w.Process(w.change(1, ep, "running")))
	require.Equal(t, "running", outcomes(t, out)[0].GetReplay().GetStatus())
	require.Len(t, w.receiver.sent(), 4)

	out = w.settle(w.Process(w.change(1, ep, "canceled")))
	require.Equal(t, "canceled", outcomes(t, out)[0].GetReplay().GetStatus())
	require.NotZero(t, w.replay(1).EndedUnixMs)
	w.receiver.releaseAll()
	out = append(w.settle(w.Commit()), w.pass(time.Hour)...)
	require.Len(t, attempts(t, out), 2, "what was under way ends, and has its rows")
	require.Len(t, w.receiver.sent(), 4)
	require.EqualValues(t, 4, w.replay(1).Done)
	require.Empty(t, w.replay(1).Taken)
	for _, row := range attempts(t, out) {
		require.False(t, row.MaybeRepeated)
	}

	out = w.settle(w.Process(w.change(1, ep, "running")))
	require.Equal(t, "replay_ended", outcomes(t, out)[0].GetRefusal().GetCode())
	out = w.settle(w.Process(w.change(1, ep, "canceled")))
	require.Equal(t, "canceled", outcomes(t, out)[0].GetReplay().GetStatus(), "asked for twice")
	out = w.settle(w.Process(w.change(2, ep, "canceled"), w.change(1, endpointID("b"), "canceled")))
	require.EqualValues(t, 404, outcomes(t, out)[0].GetRefusal().GetStatus())
	require.EqualValues(t, 404, outcomes(t, out)[1].GetRefusal().GetStatus())
	out = w.settle(w.Process(w.change(1, ep, "done")))
	require.Equal(t, "malformed_command", outcomes(t, out)[0].GetRefusal().GetCode())
}

func TestPausedReplayGoesOnWhereItStood(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	all := names("e", 40)
	w.replayable(all...)
	w.receiver.holdBack("e000")
	w.receiver.holdBack("e001")
	w.settle(w.Process(w.start(1, ep)))
	w.settle(w.Process(w.change(1, ep, "paused")))
	w.receiver.releaseAll()
	w.settle(w.Commit())
	w.Crash()
	w.settle(w.Redeliver())
	require.Len(t, w.receiver.sent(), 2, "paused for the new owner, too")
	out := w.settle(w.Process(w.change(1, ep, "running")))
	require.Equal(t, once(all...), w.timesSent())
	for _, row := range attempts(t, out) {
		require.False(t, row.MaybeRepeated, "what was put down was not sent")
	}
	require.Equal(t, "done", w.replay(1).Status)
}

func TestReplayOfAnEndpointThatTakesNothing(t *testing.T) {
	off := func(ep *webhooksv1.Endpoint) { ep.Enabled = false }
	for _, tc := range []struct {
		name  string
		close func(w *world, ep string)
	}{
		{"disabled", func(w *world, _ string) { w.endpoint("a", off) }},
		{"deleted", func(w *world, ep string) { w.removeEndpoint(ep) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
			w.replayable(names("e", 40)...)
			for _, name := range names("e", 40) {
				w.receiver.holdBack(name)
			}
			w.settle(w.Process(w.start(1, ep)))
			w.pass(time.Minute)
			tc.close(w, ep)
			w.settle(w.Commit())
			require.Equal(t, "canceled", w.replay(1).Status)
			w.receiver.releaseAll()
			out := w.settle(w.Commit())
			require.Len(t, attempts(t, out), 2)
			require.Len(t, w.receiver.sent(), 2)
			require.Empty(t, w.replay(1).Taken)
		})
	}
}

func TestCanceledReplayEndsWhatAnEarlierOwnerMayHaveSent(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
	w.replayable(names("e", 40)...)
	w.receiver.holdBack("e000")
	w.receiver.holdBack("e001")
	w.settle(w.Process(w.start(1, ep)))
	w.removeEndpoint(ep)
	w.Crash()
	w.receiver.releaseAll()
	out := w.settle(w.Redeliver())
	out = append(out, w.pass(time.Minute)...)
	require.Equal(t, "canceled", w.replay(1).Status)
	rows := attempts(t, out)
	require.Len(t, rows, len(deliveries(t, out)), "what may have gone out has its row")
	for _, row := range rows {
		require.True(t, row.MaybeRepeated)
		require.Equal(t, "reset", row.ErrorClass)
	}
	ended := deliveries(t, out)
	require.NotEmpty(t, ended)
	for _, row := range ended {
		require.Equal(t, "dead", row.Status)
		require.Equal(t, "endpoint_deleted", row.Reason)
		require.Equal(t, "order.created", row.EventType)
	}
	require.Empty(t, w.replay(1).Taken)
}

func TestReplayWaitsWhileTheEndpointIsPaused(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused = true })
	w.replayable(names("e", 40)...)
	w.settle(w.Process(w.start(1, ep)))
	w.pass(time.Hour)
	require.Empty(t, w.receiver.sent())
	require.Equal(t, "running", w.replay(1).Status)
	w.endpoint("a", nil)
	w.settle(w.Commit())
	require.Equal(t, once(names("e", 40)...), w.timesSent())
}

func TestReplayWaitsForTheCopyOfEndpoints(t *testing.T) {
	w := newWorld(t, nil)
	w.replayable("e1")
	w.settle(w.Process(w.start(1, endpointID("a"))))
	w.pass(time.Second)
	require.Equal(t, "running", w.replay(1).Status, "the edge has found it")
	w.endpoint("a", nil)
	w.settle(w.Commit())
	require.Equal(t, "done", w.replay(1).Status)
	require.Len(t, w.receiver.sent(), 1)
}

func TestReplayWaitsForTheRecord(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable("e1")
	w.ranges.late = true
	w.settle(w.Process(w.start(1, ep)))
	w.pass(time.Hour)
	require.Equal(t, "running", w.replay(1).Status, "what was accepted before is on its way")
	w.ranges.set(func() { w.ranges.late, w.ranges.away = false, true })
	w.pass(time.Minute)
	w.settle(w.Process(w.event("live", ep)))
	require.Len(t, w.receiver.sent(), 1, "live deliveries go on without the record")
	before := w.ranges.reads
	for range 60 {
		w.pass(time.Second)
	}
	require.Less(t, w.ranges.reads-before, 8, "and it is not asked all the time")
	require.NotZero(t, w.gather()[`webhooks_replay_read_failures_total{}`])
	w.ranges.set(func() { w.ranges.away = false })
	w.pass(time.Minute)
	require.Len(t, w.receiver.sent(), 2)
	require.Equal(t, "done", w.replay(1).Status)
}

func TestReplaysOfAnEndpointGoOneAfterTheOther(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.replayable("e1", "e2")
	w.receiver.holdBack("e1")
	var starts []*kgo.Record
	for n := range 11 {
		starts = append(starts, w.start(n, ep))
	}
	out := w.settle(w.Process(starts...))
	refused := 0
	for _, o := range outcomes(t, out) {
		if o.GetRefusal().GetCode() == "too_many_replays" {
			refused++
		}
	}
	require.Equal(t, 1, refused)
	w.receiver.releaseAll()
	w.settle(w.Commit())
	require.Equal(t, map[string]int{`{"id":"e1"}`: 10, `{"id":"e2"}`: 10}, w.timesSent())
	require.Equal(t, 0.0, w.gather()[`webhooks_replays{status="running"}`])
	require.Equal(t, 20.0, w.gather()[`webhooks_replay_deliveries_total{}`])
	for n := 20; n < 90; n++ {
		w.settle(w.Process(w.start(n, ep)))
	}
	require.Len(t, w.Keys(schemas.Replays), 51, "of those that have ended the newest are kept")
}

func TestPausedAndResumedAtOnceLosesNothing(t *testing.T) {
	for _, page := range []int{4, 8, 20} {
		t.Run(fmt.Sprint("pages of ", page), func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Concurrency = 4 })
			all := names("e", 9)
			w.replayable(all...)
			w.ranges.page = page
			w.receiver.holdBack("e000")
			w.receiver.holdBack("e001")
			out := w.settle(w.Process(w.start(1, ep)))
			require.Greater(t, len(w.replay(1).Taken), 2, "some are in hand and not sent")
			out = append(out, w.Process(w.change(1, ep, "paused"), w.change(1, ep, "running"))...)
			w.receiver.releaseAll()
			w.settle(out)
			require.Equal(t, "done", w.replay(1).Status)
			require.Equal(t, once(all...), w.timesSent())
		})
	}
}
