package dispatch_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// inOrder makes an endpoint with an ordering.
func (w *world) inOrder(name, ordering string) string {
	return w.endpoint(name, func(ep *webhooksv1.Endpoint) { ep.Ordering = &ordering })
}

// keyed is the record of an event with a body that a pointer finds its key in.
func (w *world) keyed(name, body string, endpoints ...string) *kgo.Record {
	w.t.Helper()
	r := w.event(name, endpoints...)
	var d webhooksv1.Deliveries
	require.NoError(w.t, proto.Unmarshal(r.Value, &d))
	d.Event.Body = []byte(body)
	w.archive.mu.Lock()
	w.archive.bodies[d.Event.Id] = d.Event.Body
	w.archive.mu.Unlock()
	var err error
	r.Value, err = proto.Marshal(&d)
	require.NoError(w.t, err)
	return r
}

// bodies lists what was sent, in order, by the name of the event.
func (w *world) bodies() (list []string) {
	for _, s := range w.receiver.sent() {
		list = append(list, strings.TrimSuffix(strings.TrimPrefix(s.body, `{"id":"`), `"}`))
	}
	return list
}

func (w *world) reasons() map[string]int {
	n := map[string]int{}
	for _, s := range w.waiting() {
		n[strings.TrimPrefix(s.Reason.String(), "WAITING_REASON_")]++
	}
	return n
}

func TestInOrderOneAtATime(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.holdBack("e000")
	w.settle(w.Process(w.events("e", 5, ep)...))
	require.Equal(t, names("e", 1), w.bodies())
	w.receiver.release("e000")
	out := w.settle(w.Commit())
	require.Len(t, attempts(t, out), 5)
	require.Equal(t, names("e", 5), w.bodies())
	require.Empty(t, out.Topic(schemas.Retries), "what waits for a short time does so in memory")
}

func TestInOrderAFailureHoldsTheRest(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.answer(500)
	w.settle(w.Process(w.events("e", 5, ep)...))
	w.settle(w.Process(w.events("f", 5, ep)...))
	require.Equal(t, []string{"e000"}, w.bodies())
	require.Equal(t, map[string]int{"BACKOFF": 1, "ORDERED": 9}, w.reasons())
	require.EqualValues(t, 10, w.Watermark(), "what waits does not hold the input")
	w.receiver.answer(200)
	w.pass(5 * time.Second)
	require.Equal(t, slices.Concat([]string{"e000"}, names("e", 5), names("f", 5)), w.bodies())
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestInOrderADeadLetterFreesTheNext(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.answers[`{"id":"e000"}`] = func(*sender.Message) sender.Result {
		return sender.Result{StatusCode: 500, Class: sender.HTTP5xx}
	}
	w.settle(w.Process(w.events("e", 4, ep)...))
	w.pass(5 * time.Second)
	require.Equal(t, []string{"e000", "e000"}, w.bodies())
	w.pass(time.Minute)
	require.Equal(t, []string{"e000", "e000", "e000", "e001", "e002", "e003"}, w.bodies())
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestOrderByPointer(t *testing.T) {
	for name, tc := range map[string]struct {
		first, second string
		together      bool
	}{
		"the same value":                {`{"data":{"loop":"a"}}`, `{"n":1,"data":{"loop":"a"}}`, true},
		"the same, written differently": {`{"data":{"loop":"a"}}`, `{"data":{"loop":"\u0061"}}`, true},
		"another value":                 {`{"data":{"loop":"a"}}`, `{"data":{"loop":"b"}}`, false},
		"a number and a string":         {`{"data":{"loop":1}}`, `{"data":{"loop":"1"}}`, false},
		"none":                          {`{"data":{}}`, `{"n":1}`, true},
		"none and null":                 {`{"data":{}}`, `{"data":{"loop":null}}`, true},
		"none and empty":                {`{"data":{}}`, `{"data":{"loop":""}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ep := w.inOrder("a", "/data/loop")
			w.receiver.holdBody(tc.first)
			w.settle(w.Process(w.keyed("e1", tc.first, ep), w.keyed("e2", tc.second, ep)))
			if tc.together {
				require.Len(t, w.receiver.sent(), 1)
			} else {
				require.Len(t, w.receiver.sent(), 2)
			}
		})
	}
}

func TestReplaysAreInNoOrder(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.holdBack("e1")
	r := w.event("replayed", ep)
	var d webhooksv1.Deliveries
	require.NoError(t, proto.Unmarshal(r.Value, &d))
	d.ReplayId = "rpl_1"
	r.Value, _ = proto.Marshal(&d)
	w.settle(w.Process(w.event("e1", ep), r, w.event("e2", ep)))
	require.ElementsMatch(t, []string{"e1", "replayed"}, w.bodies())
}

func TestOrderSwitchedOnHoldsForWhatComesAfter(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("waits", ep)))
	w.receiver.answer(200)
	w.receiver.holdBack("runs")
	w.settle(w.Process(w.event("runs", ep)))
	w.inOrder("a", "organization")
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep), w.event("e2", ep)))
	require.Equal(t, []string{"waits", "runs", "e1"}, w.bodies())
	w.pass(5 * time.Second)
	require.Equal(t, []string{"waits", "runs", "e1", "waits"}, w.bodies())
}

func TestOrderSwitchedOffHoldsForWhatCameBefore(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.answer(500)
	w.settle(w.Process(w.events("e", 3, ep)...))
	w.receiver.answer(200)
	w.endpoint("a", nil)
	w.settle(w.Process(w.event("new", ep)))
	require.Equal(t, []string{"e000", "new"}, w.bodies())
	w.pass(5 * time.Second)
	require.Equal(t, []string{"e000", "new", "e000", "e001", "e002"}, w.bodies())
}

func TestInOrderThroughAPause(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.holdBack("e000")
	w.settle(w.Process(w.events("e", 4, ep)...))
	pause := func(paused bool) {
		ordering := "organization"
		w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused, ep.Ordering = paused, &ordering })
	}
	pause(true)
	w.settle(w.Process(w.events("f", 4, ep)...))
	w.receiver.release("e000")
	w.settle(w.Commit())
	require.Equal(t, names("e", 1), w.bodies())
	w.Crash()
	w.settle(w.Redeliver())
	pause(false)
	w.settle(w.Commit())
	require.Equal(t, slices.Concat(names("e", 4), names("f", 4)), w.bodies())
	require.Empty(t, w.Keys(schemas.Retries))
}

// An event that carries no version of the endpoint set does not overtake one that has to wait for its version.
func TestWhatIsHeldIsNotOvertaken(t *testing.T) {
	w := newWorld(t, nil)
	w.endpoints.put(org, &webhooksv1.EndpointSet{Version: 4})
	ep := w.inOrder("a", "organization")
	versioned := w.event("e1", ep)
	var d webhooksv1.Deliveries
	require.NoError(t, proto.Unmarshal(versioned.Value, &d))
	d.EndpointSetVersion = 5
	versioned.Value, _ = proto.Marshal(&d)
	w.Process(versioned, w.event("e2", ep))
	w.Process(w.event("e3", ep))
	w.Advance(w.Now.Add(10 * time.Millisecond))
	require.Empty(t, w.bodies())
	w.endpoints.put(org, &webhooksv1.EndpointSet{Version: 5})
	w.pass(10 * time.Millisecond)
	require.Equal(t, []string{"e1", "e2", "e3"}, w.bodies())
}

func TestInOrderWhileTheFirstStandsAside(t *testing.T) {
	for name, restart := range map[string]func(*world){"goes on": func(*world) {}, "crashes": (*world).Crash} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			other := w.quick("other")
			ep := w.inOrder("a", "organization")
			w.receiver.holdBack("e000")
			w.settle(w.Process(w.events("e", 4, ep)...))
			w.fill(dispatch.Window*3/4, []string{other})
			w.pass(2 * time.Second)
			require.Equal(t, map[string]int{"SATURATED": 1, "ORDERED": 3}, w.reasons())
			restart(w)
			w.receiver.releaseAll()
			w.settle(w.Redeliver())
			var ours []string
			for _, s := range w.receiver.sent() {
				if i := slices.Index(names("e", 4), strings.TrimSuffix(strings.TrimPrefix(s.body, `{"id":"`), `"}`)); i >= 0 && !slices.Contains(ours, s.body) {
					ours = append(ours, s.body)
				}
			}
			require.Equal(t, []string{`{"id":"e000"}`, `{"id":"e001"}`, `{"id":"e002"}`, `{"id":"e003"}`}, ours)
			require.Empty(t, w.Keys(schemas.Retries))
		})
	}
}

// The transaction that puts a delivery behind another may be the one that ends that other.
func TestInOrderBehindOneThatEndsMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep)))
	pause := func(paused bool) {
		ordering := "organization"
		w.endpoint("a", func(ep *webhooksv1.Endpoint) { ep.Paused, ep.Ordering = paused, &ordering })
	}
	pause(true)
	w.receiver.release("e1")
	w.quiet()
	w.settle(w.Process(w.event("e2", ep)))
	require.Equal(t, []string{"e1"}, w.bodies())
	pause(false)
	w.settle(w.Commit())
	require.Equal(t, []string{"e1", "e2"}, w.bodies())
}

func TestABacklogInOrderEndsWithItsEndpoint(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.inOrder("a", "organization")
	w.receiver.answer(500)
	w.settle(w.Process(w.events("e", 500, ep)...))
	w.removeEndpoint(ep)
	w.settle(w.Commit())
	out := w.pass(5 * time.Second)
	for range 20 {
		out = append(out, w.pass(time.Millisecond)...)
	}
	require.Empty(t, w.Keys(schemas.Retries))
	var ended []string
	for _, row := range deliveries(t, out) {
		require.Equal(t, "endpoint_deleted", row.Reason)
		ended = append(ended, row.DeliveryId)
	}
	require.Len(t, ended, 500)
	for i, name := range names("e", 500) {
		require.Equal(t, dlv(name, ep), ended[i])
	}
}

// What waits in order is written so often, and is worked off in so many transactions a delivery, however much waits.
func TestCostOfABacklogInOrder(t *testing.T) {
	cost := func(n int) (bytes, transactions float64) {
		w := newWorld(t, nil)
		ep := w.inOrder("a", "organization")
		w.receiver.answer(500)
		var out streamtest.Outputs
		count := 0
		rest := func(first streamtest.Outputs) {
			out = append(out, first...)
			for w.quiet(); w.Woken(); w.quiet() {
				out = append(out, w.Commit()...)
				count++
			}
		}
		for i := 0; i < n; i += 100 {
			rest(w.Process(w.events(fmt.Sprint("e", i, "-"), 100, ep)...))
		}
		w.receiver.answer(200)
		w.receiver.clock.Store(w.Now.Add(5 * time.Second).UnixNano())
		count = 0
		rest(w.Advance(w.Now.Add(5 * time.Second)))
		require.Empty(t, w.Keys(schemas.Retries))
		total := 0
		for _, r := range out.Topic(schemas.Retries) {
			total += len(r.Key) + len(r.Value)
		}
		return float64(total) / float64(n), float64(count) / float64(n)
	}
	few, _ := cost(200)
	many, transactions := cost(2000)
	require.InEpsilon(t, few, many, 0.1)
	require.Less(t, many, 2000.0)
	require.Less(t, transactions, 0.2)
}

// timeline is what a receiver saw: when attempts began, and when they ended.
type timeline struct {
	mu      sync.Mutex
	moments []moment
}

type moment struct {
	delivery string
	number   uint32
	begin    bool
	success  bool
}

func (l *timeline) note(m moment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moments = append(l.moments, m)
}

// check holds a group to its order: nothing is attempted before the one before it has succeeded for the first time, or
// failed for the last. last is the number of a delivery's last attempt before its end: those after it, which were asked for,
// are in no order.
func (l *timeline) check(t streamtest.TB, group []string, last func(delivery string) uint32) {
	const never = -1
	first, ended := map[string]int{}, map[string]int{}
	succeeded := map[string]bool{}
	for i, m := range l.moments {
		if m.number > last(m.delivery) {
			continue
		}
		if _, seen := first[m.delivery]; !seen {
			first[m.delivery], ended[m.delivery] = i, never
		}
		if !m.begin && !succeeded[m.delivery] {
			ended[m.delivery], succeeded[m.delivery] = i, m.success
		}
	}
	before := never
	for _, d := range group {
		at, attempted := first[d]
		if !attempted {
			continue
		}
		require.Greater(t, at, before, "%s began before the one before it had ended", d)
		before = ended[d]
	}
}

// orderHistory is a history of events for three endpoints: one whose order is the organization's, one whose is by key, and
// one without.
type orderHistory struct {
	*history
	line               *timeline
	whole, parts, none string
	groups             map[string][]string
	// good says of the attempts to come, in turn, which succeed.
	good     []bool
	answered int
}

func newOrderHistory(rt *rapid.T) *orderHistory {
	w := newWorld(rt, func(c *config) {
		c.Retries = schedule.Policy{Delays: []time.Duration{2 * time.Second, 10 * time.Second}, Jitter: 0.2}
		c.InFlight = rapid.IntRange(1, 8).Draw(rt, "in flight")
	})
	h := &orderHistory{
		history: &history{
			w: w, expected: map[string]bool{},
			attempts: map[string][]*webhooksv1.AttemptRow{}, rows: map[string][]*webhooksv1.DeliveryRow{},
			commands: map[string]int{}, commanded: map[string]bool{},
		},
		line: &timeline{}, groups: map[string][]string{},
	}
	failures := rapid.SampledFrom([]int{0, 2, 10}).Draw(rt, "failures in ten")
	for _, draw := range rapid.SliceOfN(rapid.IntRange(0, 9), 64, 64).Draw(rt, "answers") {
		h.good = append(h.good, draw >= failures)
	}
	w.receiver.begun = func(m *sender.Message) { h.line.note(moment{delivery: m.DeliveryID, number: m.Number, begin: true}) }
	w.receiver.all = h.answer
	h.whole, h.parts, h.none = h.endpoint("whole", "organization", false), h.endpoint("parts", "/key", false), h.endpoint("none", "", false)
	return h
}

func (h *orderHistory) endpoint(name, ordering string, paused bool) string {
	return h.w.endpoint(name, func(ep *webhooksv1.Endpoint) {
		ep.Concurrency, ep.Paused = 2, paused
		if ordering != "" {
			ep.Ordering = &ordering
		}
	})
}

func (h *orderHistory) answer(m *sender.Message) sender.Result {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	good := h.good[h.answered%len(h.good)]
	h.answered++
	h.line.moments = append(h.line.moments, moment{delivery: m.DeliveryID, number: m.Number, success: good})
	if good {
		return sender.Result{StatusCode: 200}
	}
	return sender.Result{StatusCode: 500, Class: sender.HTTP5xx}
}

// events draws events for all endpoints, some of which are not answered before they are released.
func (h *orderHistory) events(rt *rapid.T) (records []*kgo.Record) {
	for range rapid.IntRange(1, 6).Draw(rt, "events") {
		h.batches++
		name, key := fmt.Sprint("e", h.batches), rapid.SampledFrom([]string{"x", "y", ""}).Draw(rt, "key")
		body := `{"id":"` + name + `"}`
		if key != "" {
			body = `{"id":"` + name + `","key":"` + key + `"}`
		}
		if rapid.IntRange(0, 4).Draw(rt, "held") == 0 {
			h.w.receiver.holdBody(body)
		}
		records = append(records, h.w.keyed(name, body, h.whole, h.parts, h.none))
		h.groups["whole"] = append(h.groups["whole"], dlv(name, h.whole))
		h.groups["parts "+key] = append(h.groups["parts "+key], dlv(name, h.parts))
		for _, ep := range []string{h.whole, h.parts, h.none} {
			h.expected[dlv(name, ep)] = true
		}
	}
	return records
}

// finish lets everything end well, and checks all.
func (h *orderHistory) finish(rt *rapid.T) {
	h.endpoint("whole", "organization", false)
	h.line.mu.Lock()
	h.good = []bool{true}
	h.line.mu.Unlock()
	h.w.receiver.releaseAll()
	h.w.archive.release()
	for range 60 {
		h.take(h.w.pass(5 * time.Second))
	}
	h.check(rt)
	for _, group := range h.groups {
		h.line.check(rt, group, h.lastInOrder)
	}
}

// lastInOrder is the number of the last attempt of a delivery before it ended for the first time.
func (h *orderHistory) lastInOrder(delivery string) uint32 {
	for _, row := range h.rows[delivery] {
		if row.Status != "waiting" {
			return row.AttemptCount
		}
	}
	return 0
}

// command draws a command on one of the deliveries in order that there were, or a test.
func (h *orderHistory) command(rt *rapid.T) *kgo.Record {
	w, ep := h.w, rapid.SampledFrom([]string{h.whole, h.parts}).Draw(rt, "endpoint")
	name := fmt.Sprint("e", rapid.IntRange(max(1, h.batches-9), max(1, h.batches)).Draw(rt, "event"))
	var r *kgo.Record
	switch rapid.IntRange(0, 5).Draw(rt, "command") {
	case 0:
		r = w.try(fmt.Sprint("t", len(h.commands)), ep)
	case 1, 2:
		r = w.cancel(name, ep)
	default:
		r = w.retry(name, ep)
	}
	h.commanded[dlv(name, ep)] = true
	h.commands[header(r, schemas.HeaderID)] = 0
	return r
}

func TestEveryHistoryKeepsTheOrder(t *testing.T) {
	rapid.Check(t, everyOrderHistory(false))
}

func TestEveryHistoryWithCommandsKeepsTheOrder(t *testing.T) {
	rapid.Check(t, everyOrderHistory(true))
}

func everyOrderHistory(commands bool) func(*rapid.T) {
	return func(rt *rapid.T) {
		h := newOrderHistory(rt)
		w := h.w
		actions := map[string]func(*rapid.T){
			"events":          func(rt *rapid.T) { h.take(w.Process(h.events(rt)...)) },
			"events and rest": func(rt *rapid.T) { h.take(w.settle(w.Process(h.events(rt)...))) },
			"events in an aborted transaction": func(rt *rapid.T) {
				w.Abort(h.events(rt)...)
				if rapid.Bool().Draw(rt, "rest") {
					w.quiet()
				}
				h.take(w.Redeliver())
			},
			"abort": func(rt *rapid.T) {
				w.quiet()
				w.Now = w.Now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond)
				w.Abort()
				h.take(w.Redeliver())
			},
			"commit": func(*rapid.T) { w.quiet(); h.take(w.Commit()) },
			"time": func(rt *rapid.T) {
				h.take(w.pass(time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms")) * time.Millisecond))
			},
			"release": func(*rapid.T) { w.receiver.releaseAll() },
			"crash":   func(*rapid.T) { w.Crash(); h.take(w.Redeliver()) },
			"stop": func(*rapid.T) {
				w.receiver.releaseAll()
				h.take(w.Stop())
				h.take(w.Redeliver())
			},
			"pause": func(rt *rapid.T) { h.endpoint("whole", "organization", rapid.Bool().Draw(rt, "paused")) },
		}
		if commands {
			actions["command"] = func(rt *rapid.T) { h.take(w.Process(h.command(rt))) }
			actions["commands and events"] = func(rt *rapid.T) {
				h.take(w.Process(slices.Concat([]*kgo.Record{h.command(rt)}, h.events(rt), []*kgo.Record{h.command(rt)})...))
			}
			actions["commands in an aborted transaction"] = func(rt *rapid.T) {
				w.Abort(append(h.events(rt), h.command(rt), h.command(rt))...)
				w.quiet()
				h.take(w.Redeliver())
			}
			actions["the record is behind"] = func(*rapid.T) {
				if w.archive.held == nil {
					w.archive.holdBack()
				}
			}
			actions["the record is current"] = func(*rapid.T) { w.archive.release() }
		}
		rt.Repeat(actions)
		h.finish(rt)
	}
}
