package dispatch_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// history is what a world has made durable.
type history struct {
	w         *world
	endpoints []string
	batches   int
	// attempts and rows by delivery, in the order they were written.
	attempts map[string][]*webhooksv1.AttemptRow
	rows     map[string][]*webhooksv1.DeliveryRow
	expected map[string]bool
	// commands by id, and the answers that they had; commanded are the deliveries.
	commands  map[string]int
	commanded map[string]bool
}

func (h *history) take(out streamtest.Outputs) {
	for _, a := range attempts(h.w.t, out) {
		h.attempts[a.DeliveryId] = append(h.attempts[a.DeliveryId], a)
	}
	for _, d := range deliveries(h.w.t, out) {
		h.rows[d.DeliveryId] = append(h.rows[d.DeliveryId], d)
	}
	for _, o := range outcomes(h.w.t, out) {
		h.commands[o.CommandId]++
	}
}

// check holds the history to the promises: every delivery ends, every attempt that a receiver saw is one row, what was
// sent twice says so, every command has one answer, and nothing is left behind.
func (h *history) check(t streamtest.TB) {
	require.Empty(t, h.w.Keys(schemas.Retries), "%v", h.w.waiting())
	seen := map[string]int{}
	for _, s := range h.w.receiver.sent() {
		if !h.expected[s.delivery] {
			h.checkTest(t, s.delivery)
			continue
		}
		seen[fmt.Sprint(s.delivery, "/", s.number)]++
	}
	total := 0
	for delivery := range h.expected {
		rows := h.rows[delivery]
		require.NotEmpty(t, rows, "%s has no row", delivery)
		for i, row := range rows {
			require.EqualValues(t, i+2, row.Version)
			if !h.commanded[delivery] {
				require.Equal(t, i == len(rows)-1, row.Status != "waiting", "only the last row ends it")
			}
		}
		last := rows[len(rows)-1]
		require.Contains(t, []string{"delivered", "dead"}, last.Status)
		require.Len(t, h.attempts[delivery], int(last.AttemptCount))
		for i, a := range h.attempts[delivery] {
			require.EqualValues(t, i+1, a.Number)
			key := fmt.Sprint(delivery, "/", a.Number)
			require.Positive(t, seen[key], "an attempt that nobody saw")
			require.True(t, seen[key] == 1 || a.MaybeRepeated, "sent twice, and does not say so")
			if !h.commanded[delivery] {
				require.Equal(t, a.Outcome == "success", a.DeliveryStatus == "delivered")
			}
			total++
		}
	}
	for delivery := range h.expected {
		for n := len(h.attempts[delivery]) + 1; n < 20; n++ {
			require.Zero(t, seen[fmt.Sprint(delivery, "/", n)], "attempt %d of %s has no row: %v; %v", n, delivery, h.rows[delivery], h.attempts[delivery])
		}
	}
	require.Len(t, seen, total, "an attempt without a row")
	for cmd, answers := range h.commands {
		require.Equal(t, 1, answers, "answers to %s", cmd)
	}
}

// checkTest holds a test that was sent to having one row of each kind.
func (h *history) checkTest(t streamtest.TB, delivery string) {
	require.Len(t, h.rows[delivery], 1)
	require.Len(t, h.attempts[delivery], 1)
	require.Equal(t, "test", h.attempts[delivery][0].Trigger)
}

func newHistory(rt *rapid.T) *history {
	w := newWorld(rt, func(c *config) {
		c.Retries = schedule.Policy{Delays: []time.Duration{2 * time.Second, 10 * time.Second}, Jitter: 0.2}
		c.InFlight = rapid.IntRange(1, 8).Draw(rt, "in flight")
	})
	h := &history{
		w: w, expected: map[string]bool{},
		attempts: map[string][]*webhooksv1.AttemptRow{}, rows: map[string][]*webhooksv1.DeliveryRow{},
		commands: map[string]int{}, commanded: map[string]bool{},
	}
	for i := range 3 {
		h.endpoints = append(h.endpoints, w.endpoint(fmt.Sprint("ep", i), func(ep *webhooksv1.Endpoint) { ep.Concurrency = uint32(i + 1) }))
	}
	return h
}

// send draws events for all endpoints, some of which are not answered before their release, and hands them to with.
func (h *history) send(rt *rapid.T, with func(names []string)) {
	names := names(fmt.Sprintf("e%d-", h.batches), rapid.IntRange(1, 4).Draw(rt, "events"))
	h.batches++
	for _, name := range names {
		if rapid.IntRange(0, 3).Draw(rt, "held") == 0 {
			h.w.receiver.holdBack(name)
		}
		for _, ep := range h.endpoints {
			h.expected[dlv(name, ep)] = true
		}
	}
	with(names)
}

// command draws a command on one of the deliveries that there were, or a test.
func (h *history) command(rt *rapid.T) *kgo.Record {
	w, ep := h.w, rapid.SampledFrom(h.endpoints).Draw(rt, "endpoint")
	name := fmt.Sprintf("e%d-%03d", rapid.IntRange(0, max(h.batches-1, 0)).Draw(rt, "batch"), rapid.IntRange(0, 1).Draw(rt, "event"))
	var r *kgo.Record
	switch rapid.IntRange(0, 3).Draw(rt, "command") {
	case 0:
		r = w.cancel(name, ep)
	case 1:
		test := fmt.Sprint("t", len(h.commands))
		r = w.try(test, ep)
	default:
		r = w.retry(name, ep)
	}
	h.commanded[dlv(name, ep)] = true
	h.commands[header(r, schemas.HeaderID)] = 0
	return r
}

func TestEveryHistoryKeepsThePromises(t *testing.T) {
	rapid.Check(t, everyHistory(false))
}

func TestEveryHistoryWithCommandsKeepsThePromises(t *testing.T) {
	rapid.Check(t, everyHistory(true))
}

func everyHistory(commands bool) func(*rapid.T) {
	return func(rt *rapid.T) {
		h := newHistory(rt)
		w := h.w
		process := func(names []string) {
			for _, name := range names {
				h.take(w.Process(w.event(name, h.endpoints...)))
			}
		}
		actions := map[string]func(*rapid.T){
			"events": func(rt *rapid.T) { h.send(rt, process) },
			"events in an aborted transaction": func(rt *rapid.T) {
				h.send(rt, func(names []string) {
					for _, name := range names {
						w.Abort(w.event(name, h.endpoints...))
						w.quiet()
						h.take(w.Redeliver())
					}
				})
			},
			"abort": func(rt *rapid.T) {
				w.quiet()
				w.Now = w.Now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond)
				w.Abort()
				h.take(w.Redeliver())
			},
			"time": func(rt *rapid.T) {
				h.take(w.pass(time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms")) * time.Millisecond))
			},
			"answer": func(rt *rapid.T) {
				w.receiver.answer(rapid.SampledFrom([]int{200, 200, 500, 429}).Draw(rt, "status"))
			},
			"release": func(*rapid.T) { w.receiver.releaseAll() },
			"crash": func(*rapid.T) {
				w.Crash()
				h.take(w.Redeliver())
			},
			"stop": func(*rapid.T) {
				w.receiver.releaseAll()
				h.take(w.Stop())
				h.take(w.Redeliver())
			},
			"pause": func(rt *rapid.T) {
				w.endpoint("ep0", func(ep *webhooksv1.Endpoint) { ep.Paused, ep.Concurrency = rapid.Bool().Draw(rt, "paused"), 1 })
			},
		}
		if commands {
			actions["command"] = func(rt *rapid.T) { h.take(w.Process(h.command(rt))) }
			actions["commands in an aborted transaction"] = func(rt *rapid.T) {
				w.Abort(h.command(rt), h.command(rt))
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
		w.endpoint("ep0", nil)
		w.receiver.answer(200)
		w.receiver.releaseAll()
		w.archive.release()
		for range 40 {
			h.take(w.pass(5 * time.Second))
		}
		h.check(rt)
	}
}
