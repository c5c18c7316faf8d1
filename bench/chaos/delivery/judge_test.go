package delivery

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// world is evidence in the making, of a run in which everything was as it should be.
type world struct {
	*evidence
	now time.Time
}

func newWorld() *world {
	return &world{now: time.Now(), evidence: &evidence{
		made: map[string]made{}, events: map[string]int{}, came: map[attempt][]request{},
		attemptLog: map[place]row{}, eventLog: map[place]row{}, newest: map[string]*webhooksv1.DeliveryRow{},
		dead: map[string]int{}, exhausted: map[string]int{}, disabled: map[string]int{},
		attemptTable: map[place][]row{}, eventTable: map[place][]row{}, newestTable: map[string]*webhooksv1.DeliveryRow{},
		ledger: map[string]line{},
	}}
}

// delivery is one to an endpoint of that kind, whose attempts were answered so, one every two seconds.
func (w *world) delivery(id string, k kind, status, reason string, answers ...answer) {
	m := made{id: id, event: "event of " + id, endpoint: "endpoint of " + id, org: "org", kind: k, unmatched: status == schemas.DeliveryUnmatched}
	w.made[id], w.events[m.event] = m, 1
	at := place{0, int64(len(w.eventLog))}
	w.eventLog[at] = row{id: m.event, text: eventText(m.org, 1)}
	w.eventTable[at] = []row{w.eventLog[at]}
	for i, a := range answers {
		w.attempt(m, i+1, a, i+1 == len(answers))
	}
	r := &webhooksv1.DeliveryRow{
		DeliveryId: id, EndpointId: m.endpoint, Status: status, Reason: reason, AttemptCount: uint32(len(answers)), Version: 2,
	}
	if !m.unmatched {
		r.EndedUnixMs = w.now.UnixMilli()
	}
	w.newest[id], w.newestTable[id] = r, r
	l := w.ledger[m.org]
	l.accepted++
	switch status {
	case schemas.DeliveryDelivered:
		l.delivered++
	case schemas.DeliveryUnmatched:
		l.unmatched++
	case schemas.DeliveryDead:
		l.dead++
		w.dead[id] = 1
	}
	w.ledger[m.org] = l
	switch reason {
	case "exhausted":
		w.exhausted[id] = 1
	case "gone":
		w.disabled[m.endpoint]++
	}
}

func (w *world) attempt(m made, number int, a answer, last bool) {
	began := w.now.Add(time.Duration(2*number-1) * time.Second)
	r := &webhooksv1.AttemptRow{
		AttemptId: fmt.Sprint(m.id, "/", number), DeliveryId: m.id, EventId: m.event, EndpointId: m.endpoint, OrganizationId: m.org,
		Number: uint32(number), Trigger: "schedule", StartedUnixMs: began.UnixMilli(), Outcome: "failure", StatusCode: uint32(a.status()),
		Worker: "instance 1",
	}
	switch {
	case a.status() == http.StatusOK:
		r.Outcome = "success"
	case a == hang:
		r.ErrorClass = "timeout_headers"
	case a == cut:
		r.ErrorClass = "reset"
	}
	if !last {
		r.NextAttemptUnixMs = began.Add(2 * time.Second).UnixMilli()
	}
	w.came[attempt{m.id, number}] = []request{{arrived: began, ended: began.Add(time.Millisecond), answer: a, connection: int64(len(w.attemptLog))}}
	at := place{0, int64(len(w.attemptLog))}
	w.attemptLog[at] = row{id: r.AttemptId, text: r.AttemptId, attempt: r, written: began.Add(10 * time.Millisecond)}
	w.attemptTable[at] = []row{w.attemptLog[at]}
	w.ids, w.distinct = w.ids+1, w.distinct+1
}

// honest has a delivery of every end.
func honest() *world {
	w := newWorld()
	w.delivery("plain", prompt, schemas.DeliveryDelivered, "", ok)
	w.delivery("late", flaky, schemas.DeliveryDelivered, "", serverError, throttle, hang, cut, ok)
	w.delivery("exhausted", flaky, schemas.DeliveryDead, "exhausted", serverError, serverError, serverError, serverError, serverError)
	w.delivery("gone", gone, schemas.DeliveryDead, "gone", goneAway)
	w.delivery("disabled", switched, schemas.DeliveryDead, "endpoint_disabled", serverError)
	w.delivery("deleted", doomed, schemas.DeliveryDead, "endpoint_deleted")
	w.delivery("unmatched", switched, schemas.DeliveryUnmatched, "")
	return w
}

func (w *world) verdict() *verdict {
	j := newJudge(w.evidence)
	j.run()
	return j.verdict
}

func (w *world) row(id string, number int) *webhooksv1.AttemptRow {
	for _, r := range w.attemptLog {
		if r.attempt.DeliveryId == id && int(r.attempt.Number) == number {
			return r.attempt
		}
	}
	return nil
}

// again lets an attempt be sent once more, so long after the first time.
func (w *world) again(id string, number int, after time.Duration) {
	at := attempt{id, number}
	again := w.came[at][0]
	again.arrived, again.ended = again.arrived.Add(after), again.ended.Add(after)
	w.came[at] = append(w.came[at], again)
}

func TestAnHonestRunHasNoDifferences(t *testing.T) {
	v := honest().verdict()
	require.Zero(t, v.count, strings.Join(v.differences, "\n"))
	require.Equal(t, 7, v.deliveries)
	require.Equal(t, 13, v.attempts)
}

func TestWhatIsSentAgainAfterAFaultIsCounted(t *testing.T) {
	w := honest()
	w.again("plain", 1, 3*time.Second)
	w.row("plain", 1).MaybeRepeated = true
	w.strikes = []fire.Strike{{Instance: "instance 1", From: w.now.Add(1100 * time.Millisecond), To: w.now.Add(2 * time.Second)}}
	w.again("late", 4, 10*time.Millisecond) // the connection was stale
	w.row("late", 4).MaybeRepeated = true
	v := w.verdict()
	require.Zero(t, v.count, strings.Join(v.differences, "\n"))
	require.Equal(t, 1, v.afterFault)
	require.Equal(t, 1, v.stale)
}

func TestEachDifferenceIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(w *world)
		told   string
	}{
		"a delivery waits": {func(w *world) {
			w.newest["plain"].Status = schemas.DeliveryWaiting
		}, `is "waiting" "" after 1 attempts`},
		"a delivery has no row": {func(w *world) { delete(w.newest, "plain") }, "no row on delivery-rows"},
		"dead before its schedule is over": {func(w *world) {
			w.newest["disabled"].Reason = "exhausted"
		}, `"exhausted" after 1 attempts`},
		"disabled though nobody did that": {func(w *world) {
			w.newest["exhausted"].Reason = "endpoint_disabled"
		}, `expected "dead" "exhausted"`},
		"an attempt was sent and is no row": {func(w *world) {
			w.came[attempt{"plain", 2}] = w.came[attempt{"plain", 1}]
		}, "attempt 2 of a prompt endpoint came and is no row"},
		"an attempt is a row and was not sent": {func(w *world) {
			delete(w.came, attempt{"plain", 1})
		}, "no receiver saw it"},
		"an attempt is missing between others": {func(w *world) {
			w.row("late", 5).Number = 6
		}, "row 5 of 5 is of attempt 6"},
		"its row says what it was not answered": {func(w *world) {
			w.row("late", 1).StatusCode = 502
		}, "the receiver says"},
		"sent after a success": {func(w *world) {
			w.attempt(w.made["plain"], 2, serverError, true)
		}, `expected "delivered" "after another attempt"`},
		"sent before it was due": {func(w *world) {
			w.row("late", 1).NextAttemptUnixMs += 5000
		}, "before it was due"},
		"sent before its receiver wished": {func(w *world) {
			w.row("late", 2).DurationMs = 1100 // answered with Retry-After: 1
		}, "attempt 3 began 100 ms before it was due"},
		"sent twice and not marked": {func(w *world) {
			w.again("plain", 1, time.Second)
		}, "is not marked"},
		"sent twice without a fault": {func(w *world) {
			w.again("plain", 1, time.Second)
			w.row("plain", 1).MaybeRepeated = true
		}, "sent again without a fault"},
		"sent twice, by one whom no fault met": {func(w *world) {
			w.again("plain", 1, time.Second)
			w.row("plain", 1).MaybeRepeated = true
			w.came[attempt{"plain", 1}][0].connection = w.came[attempt{"gone", 1}][0].connection
			w.strikes = []fire.Strike{{Instance: "instance 2", From: w.now, To: w.now.Add(time.Minute)}}
		}, "sent again without a fault"},
		"sent twice, though its sender had committed more since": {func(w *world) {
			w.again("plain", 1, 6*time.Second)
			w.row("plain", 1).MaybeRepeated = true
			w.came[attempt{"plain", 1}][0].connection = w.came[attempt{"gone", 1}][0].connection
			w.strikes = []fire.Strike{{Instance: "instance 1", From: w.now.Add(5 * time.Second), To: w.now.Add(5 * time.Second)}}
		}, "sent again without a fault"},
		"the sink lost a row": {func(w *world) {
			delete(w.attemptTable, place{0, 3})
		}, "has 0 rows in delivery_attempts"},
		"the sink doubled a row": {func(w *world) {
			w.attemptTable[place{0, 3}] = append(w.attemptTable[place{0, 3}], w.attemptTable[place{0, 3}]...)
		}, "has 2 rows in delivery_attempts"},
		"the sink made up a row": {func(w *world) {
			w.eventTable[place{3, 7}] = []row{{id: "x"}}
		}, "where no record stands"},
		"an attempt's id is there twice": {func(w *world) { w.distinct-- }, "uniqExact(attempt_id)"},
		"an event has no row": {func(w *world) {
			w.events["another"] = 0
		}, "0 rows of the event"},
		"the table of deliveries is behind": {func(w *world) {
			w.newestTable["plain"] = &webhooksv1.DeliveryRow{DeliveryId: "plain", Version: 1}
		}, "in the table"},
		"a dead letter is missing": {func(w *world) { delete(w.dead, "gone") }, "0 times on deliveries.dead"},
		"an exhausted one is told of twice": {func(w *world) {
			w.exhausted["exhausted"]++
		}, "2 times told of on events"},
		"an endpoint that is gone is not disabled": {func(w *world) { clear(w.disabled) }, "to disable endpoints"},
		"the ledger does not close": {func(w *world) {
			l := w.ledger["org"]
			l.delivered--
			w.ledger["org"] = l
		}, "the ledger says"},
		"a delivery that nobody made": {func(w *world) {
			w.came[attempt{"x", 1}] = []request{{}}
		}, "a request for a delivery that nobody made"},
	} {
		t.Run(name, func(t *testing.T) {
			w := honest()
			c.tamper(w)
			v := w.verdict()
			require.Positive(t, v.count)
			require.Contains(t, strings.Join(v.differences, "\n"), c.told)
		})
	}
}
