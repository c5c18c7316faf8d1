package dispatch

import (
	"math"
	"slices"
	"time"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/deliverer/replay"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Replays take what the rest leaves. An endpoint's replay takes events in hand while nothing of the endpoint waits that
// could go, and the process has room; its deliveries have half of the endpoint's slots and rate at most
// (control.AdmitSpare). Events are read beside the task (reading.go), a page ahead.
//
// That an event is taken is durable before it is sent (lifted), in the replay's own record, as a retry is marked in the
// schedule; its attempt's row, what becomes of its delivery, and that it is in hand no more, are one transaction again.

// replaying is a replay that its endpoint's owner works on.
type replaying struct {
	ep *endpoint
	// state is as the open transaction has it; behind, that it is not written yet.
	state  *webhooksv1.Replay
	behind bool
	// left: some of what it has in hand may not be in ours. An earlier owner had it, or it was put down.
	left bool
	// since is when this owner first saw it.
	since time.Time

	page page
	reading
}

// page is what was read and is not taken yet.
type page struct {
	events []*webhooksv1.OutboundEvent
	load   *load
	// next is behind them; end, that nothing is beyond.
	next archive.Position
	end  bool
	// used is when some of it was last taken.
	used time.Time
}

// pageKept is how long a page stays in memory that cannot be used.
const pageKept = 10 * time.Second

// findReplays learns which replays are open.
func (t *task) findReplays(tx *stream.Tx, now time.Time) error {
	for _, e := range t.endpoints {
		for _, r := range e.replays {
			t.dropPage(r)
		}
		e.replays = nil
	}
	t.behind = nil
	err := replay.EachOpen(tx, func(state *webhooksv1.Replay) { t.follow(state, now) })
	t.countReplays()
	return err
}

// follow begins, or goes on, to work on a replay.
func (t *task) follow(state *webhooksv1.Replay, now time.Time) {
	e := t.endpoint(state.GetEndpointId(), state.GetOrganizationId(), now)
	r := &replaying{ep: e, state: state, left: len(state.GetTaken()) > 0, since: now}
	r.page.next = cursorOf(state)
	e.replays = append(e.replays, r)
	t.touch(e, now)
}

func cursorOf(state *webhooksv1.Replay) archive.Position {
	return archive.Position{AcceptedUnixMS: state.GetCursorUnixMs(), EventID: state.GetCursorEventId()}
}

// replay is the open replay of that id, or nil.
func (e *endpoint) replay(id string) *replaying {
	i := slices.IndexFunc(e.replays, func(r *replaying) bool { return r.state.GetId() == id })
	if i < 0 {
		return nil
	}
	return e.replays[i]
}

// moved has a replay written with the open transaction.
func (t *task) moved(r *replaying) {
	if !r.behind {
		r.behind = true
		t.behind = append(t.behind, r)
	}
}

// writeReplays writes the replays that have changed, and ends those that are through.
func (t *task) writeReplays(tx *stream.Tx, now time.Time) error {
	for _, r := range t.behind {
		r.behind = false
		if replay.Finish(r.state, now.UnixMilli()) {
			t.tellEnded(r)
		}
		if err := replay.Put(tx, r.state); err != nil {
			return err
		}
		if !replay.Open(r.state) {
			t.dropPage(r)
			r.ep.replays = slices.DeleteFunc(r.ep.replays, func(other *replaying) bool { return other == r })
			t.touch(r.ep, now)
		}
	}
	t.behind = t.behind[:0]
	return nil
}

// goOn goes on with the replay whose turn it is: the oldest that is not paused.
func (t *task) goOn(tx *stream.Tx, e *endpoint, now time.Time) error {
	t.letOutSpare(e, now)
	for _, r := range e.replays {
		if !r.working() {
			continue
		}
		if len(r.page.events) > 0 && now.Sub(r.page.used) > pageKept {
			t.dropPage(r)
		}
		if err := t.endLost(tx, r, now); err != nil {
			return err
		}
		if err := t.take(tx, r, now); err != nil {
			return err
		}
		t.readOn(r, now)
		return nil
	}
	return nil
}

// working reports that there may be something to take: one that is paused, or only waits for what is under way, has nothing.
func (r *replaying) working() bool {
	switch r.state.GetStatus() {
	case schemas.ReplayPaused:
		return false
	case schemas.ReplayRunning:
		return r.left || !r.state.GetExhausted()
	}
	return r.left
}

// leftOver are the events in the replay's hand that are not in ours.
func (t *task) leftOver(r *replaying) []*webhooksv1.TakenEvent {
	var left []*webhooksv1.TakenEvent
	for _, e := range r.state.GetTaken() {
		if t.flights[replay.DeliveryID(r.state, e.GetEventId())] == nil {
			left = append(left, e)
		}
	}
	return left
}

// take takes events of the page in hand, as many as the endpoint has slots to spare for.
func (t *task) take(tx *stream.Tx, r *replaying, now time.Time) error {
	e, p := r.ep, &r.page
	want := t.wanted(e, now)
	for ; want > 0 && len(p.events) > 0; want-- {
		event := p.events[0]
		p.events, p.used = p.events[1:], now
		if err := t.lift(tx, r, event, now); err != nil {
			return err
		}
	}
	if len(p.events) > 0 {
		return nil
	}
	t.drop(p.load)
	p.load = nil
	if p.next.After(cursorOf(r.state)) {
		replay.Pass(r.state, p.next.AcceptedUnixMS, p.next.EventID)
		t.moved(r)
	}
	if p.end && !r.state.GetExhausted() {
		r.state.Exhausted = true
		t.moved(r)
	}
	return nil
}

// wanted is how many more events the endpoint's replays may take in hand, and has it looked at again where it is the time
// that changes that.
func (t *task) wanted(e *endpoint, now time.Time) int {
	if next := e.control.NextSpareTry(now); e.control.Broken() && next.After(now) {
		t.touch(e, next)
	}
	if !t.d.room.spare() {
		t.touch(e, now.Add(crowdPoll))
	}
	if !t.hasSpare(e, now) {
		return 0
	}
	return min(e.control.WantSpare(now), replay.MaxTaken) - e.lifted
}

// lift takes one event in hand. It is sent once that is durable.
func (t *task) lift(tx *stream.Tx, r *replaying, event *webhooksv1.OutboundEvent, now time.Time) error {
	delivery := replay.DeliveryID(r.state, event.GetId())
	item := replay.Taken(r.state, event.GetId())
	if item == nil {
		// The record may have an event twice: one that its source sent again when it was forgotten here.
		waits, err := t.waitsAlready(tx, delivery)
		if err != nil || waits {
			return err
		}
		item = &webhooksv1.TakenEvent{EventId: event.GetId(), EventType: event.GetType(), AcceptedUnixMs: event.GetAcceptedUnixMs()}
		replay.Take(r.state, item)
	} else if t.flights[delivery] != nil {
		return nil
	}
	f := t.takenFlight(r, item, event, now)
	f.load = t.newLoad(len(event.GetBody()))
	item.Started = true
	t.moved(r)
	t.lifted = append(t.lifted, f)
	return nil
}

func (t *task) waitsAlready(tx *stream.Tx, delivery string) (bool, error) {
	if t.flights[delivery] != nil {
		return true, nil
	}
	state, err := schedule.State(tx, delivery)
	return state != nil, err
}

// takenFlight makes the flight of an event in a replay's hand.
func (t *task) takenFlight(r *replaying, item *webhooksv1.TakenEvent, event *webhooksv1.OutboundEvent, now time.Time) *flight {
	f := &flight{
		id: replay.DeliveryID(r.state, item.GetEventId()), ep: r.ep, event: event, replay: r.state.GetId(), taken: true,
		number: 1, maybe: item.GetStarted(), created: now.UnixMilli(),
		// Behind what else is due at the same time, should it have to wait.
		order: math.MaxInt64,
		seq:   t.seq,
	}
	t.flights[f.id] = f
	r.ep.pulled++
	r.ep.lifted++
	return f
}

// hasSpare reports that no other delivery of the endpoint could go now, and that the process has room.
func (t *task) hasSpare(e *endpoint, now time.Time) bool {
	return len(e.queue) == 0 && e.marking == 0 && !e.overdue(now) && t.d.room.spare()
}

// letOutSpare launches what control admits of the replays' deliveries.
func (t *task) letOutSpare(e *endpoint, now time.Time) {
	for len(e.spare) > 0 && t.hasSpare(e, now) {
		verdict := e.control.AdmitSpare(now)
		if verdict != control.Go {
			if next := e.control.NextSpareTry(now); verdict != control.Full && !next.IsZero() {
				t.touch(e, next)
			}
			return
		}
		f := e.spare[0]
		e.spare[0] = nil
		e.spare = e.spare[1:]
		t.launch(f)
	}
	if len(e.spare) > 0 && !t.d.room.spare() {
		t.touch(e, now.Add(crowdPoll))
	}
}

// putDown takes a replay's deliveries that were not sent out of hand. The replay still has them.
func (t *task) putDown(r *replaying) {
	put := func(flights []*flight) []*flight {
		return slices.DeleteFunc(flights, func(f *flight) bool {
			if f.replay != r.state.GetId() {
				return false
			}
			// In its hand since it was lifted: a replay that forgot it would have ended it.
			replay.Taken(r.state, f.event.GetId()).Started = f.maybe
			t.hand(f)
			return true
		})
	}
	before := len(t.handed)
	r.ep.spare, t.lifted = put(r.ep.spare), put(t.lifted)
	if len(t.handed) > before {
		t.moved(r)
	}
}

// putDownSpare takes all unsent deliveries of an endpoint's replays out of hand.
func (t *task) putDownSpare(e *endpoint) {
	for _, r := range e.replays {
		t.putDown(r)
	}
}

// dropPage forgets what was read ahead.
func (t *task) dropPage(r *replaying) {
	t.drop(r.page.load)
	r.page = page{next: cursorOf(r.state)}
}

// closeReplays has the replays of an endpoint that takes nothing wait, or ends them.
func (t *task) closeReplays(tx *stream.Tx, e *endpoint, m mode, now time.Time) error {
	t.putDownSpare(e)
	reason := reasonDisabled
	if m == deleted {
		reason = reasonDeleted
	}
	for _, r := range slices.Clone(e.replays) {
		t.dropPage(r)
		if m == paused || t.unseen(r, now) {
			continue
		}
		if replay.Active(r.state) {
			t.cancelReplay(r, now)
		}
		for _, item := range t.leftOver(r) {
			if err := t.endUnread(tx, r, item, reason, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// unseenFor is how long an endpoint may be missing that the edge has found.
const unseenFor = 10 * time.Second

// unseen reports that the copy of endpoints is older than the replay's endpoint was when the replay was asked for: it
// says nothing of it yet. The endpoint is looked at again.
func (t *task) unseen(r *replaying, now time.Time) bool {
	spec := r.ep.spec
	if spec == nil && now.Sub(r.since) >= unseenFor || spec != nil && spec.GetVersion() >= r.state.GetEndpointVersion() {
		return false
	}
	t.touch(r.ep, now.Add(crowdPoll))
	return true
}

// cancelReplay ends a replay early.
func (t *task) cancelReplay(r *replaying, now time.Time) {
	t.putDown(r)
	t.dropPage(r)
	replay.Cancel(r.state, now.UnixMilli())
	t.moved(r)
	t.tellEnded(r)
}

// endUnread ends the delivery of an event in a replay's hand that cannot be sent. Of one that was never sent nobody knows.
func (t *task) endUnread(tx *stream.Tx, r *replaying, item *webhooksv1.TakenEvent, reason string, now time.Time) error {
	if !item.GetStarted() {
		t.settle(r, item.GetEventId())
		return nil
	}
	f := t.takenFlight(r, item, &webhooksv1.OutboundEvent{
		Id: item.GetEventId(), OrganizationId: r.state.GetOrganizationId(), Type: item.GetEventType(),
		AcceptedUnixMs: item.GetAcceptedUnixMs(),
	}, now)
	return t.end(tx, f, reason, now)
}

// endLost ends the deliveries of events that are in the replay's hand and in the record no more.
func (t *task) endLost(tx *stream.Tx, r *replaying, now time.Time) error {
	lost := r.lost
	r.lost = nil
	for _, event := range lost {
		item := replay.Taken(r.state, event)
		if item == nil {
			continue
		}
		t.log.Warn("event of a replay is in the record no more", "org", r.state.GetOrganizationId(), "endpoint", r.ep.id,
			"replay_id", r.state.GetId(), "event_id", event)
		if err := t.endUnread(tx, r, item, reasonCanceled, now); err != nil {
			return err
		}
	}
	return nil
}

// settle ends what a replay has to do with an event in its hand.
func (t *task) settle(r *replaying, event string) {
	replay.Settle(r.state, event)
	t.moved(r)
	t.told = append(t.told, t.d.metrics.replayed.Inc)
}

// replayStatuses are those of replays that have not ended.
var replayStatuses = [...]string{schemas.ReplayRunning, schemas.ReplayPaused}

// countReplays publishes how many there are.
func (t *task) countReplays() {
	counts := map[string]int64{}
	for _, e := range t.endpoints {
		for _, r := range e.replays {
			counts[r.state.GetStatus()]++
		}
	}
	for i, status := range replayStatuses {
		t.replays[i].Store(counts[status])
	}
}

// tell has the log say something of a replay once the open transaction is durable.
func (t *task) tell(what string, r *webhooksv1.Replay) {
	args := []any{
		"org", r.GetOrganizationId(), "endpoint", r.GetEndpointId(), "replay_id", r.GetId(), "only", r.GetOnly(),
		"status", r.GetStatus(), "done", r.GetDone(),
	}
	t.told = append(t.told, func() { t.log.Info(what, args...); t.countReplays() })
}

func (t *task) tellEnded(r *replaying) { t.tell("replay ended", r.state) }
