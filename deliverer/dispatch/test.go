package dispatch

import (
	"net/http"
	"slices"
	"time"

	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A test is one attempt of an event made up for it, outside of the ledger: its rows say so, and the event has none. It
// begins once it is durable that it may have, as what is pulled from the schedule does, and is no delivery that could wait.
//
// It goes to a paused endpoint too, and takes a slot and a token like any attempt. An open breaker does not hold it: somebody
// asks whether the endpoint answers, and what it says counts. To a disabled endpoint nothing is sent: the test dies of that.
const (
	// testWait is how long a test waits for a slot, or for the copy of endpoints.
	testWait = 5 * time.Second
	// testAge is from when nobody waits for a test that has not begun.
	testAge = time.Minute
	// testsWaiting bounds the tests of an endpoint that wait for a slot.
	testsWaiting = 16
	// testPoll is how often a test that waits is looked after.
	testPoll = 100 * time.Millisecond
)

// test takes a test into hand.
func (t *task) test(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	if t.flights[c.at.Delivery] != nil {
		return false, nil // concludeTest goes on with it
	}
	if !c.started && now.Sub(time.UnixMilli(c.cmd.GetIssuedUnixMs())) > testAge {
		return true, t.refuse(tx, c.cmd, httpapi.Unavailable("test_expired", "The test could not begin in time. Make another."))
	}
	e := t.endpoint(c.endpoint, c.cmd.GetOrganizationId(), now)
	if err := t.refresh(e); err != nil {
		return false, err
	}
	if e.spec.GetVersion() < c.cmd.GetTestEndpoint().GetEndpointVersion() && now.Sub(c.since) < testWait {
		t.askAgain(c.at.Delivery, now) // the copy is behind, or the endpoint was deleted
		return false, nil
	}
	if waiting := t.testsOf(e); waiting >= testsWaiting && !c.started {
		return true, t.refuse(tx, c.cmd, httpapi.Unavailable("too_many_tests",
			"%d tests of the endpoint wait already. Make another when they have ended.", waiting))
	}
	if t.crowded() && !t.isKept(c) {
		return true, t.refuse(tx, c.cmd, tooManyCommands()) // it is kept from the moment that it may begin
	}
	f := t.newTest(c, e, now)
	if c.started {
		e.tests = append(e.tests, f)
		t.touch(e, now)
		return false, nil
	}
	c.started = true
	e.marking++
	t.marked = append(t.marked, f)
	return false, t.putCommand(tx, c)
}

// testsOf is how many tests of an endpoint wait for a slot, or will once the open transaction is durable.
func (t *task) testsOf(e *endpoint) int {
	n := len(e.tests)
	for _, f := range t.marked {
		if f.ep == e && f.test != nil {
			n++
		}
	}
	return n
}

// newTest makes the flight of a test.
func (t *task) newTest(c *keptCommand, e *endpoint, now time.Time) *flight {
	asked, org := c.cmd.GetTestEndpoint(), c.cmd.GetOrganizationId()
	event := &cloudevent.Event{
		ID: id.Derive(id.Event, "test", c.at.Delivery), Type: asked.GetEventType(), Source: eventSource, Subject: e.id,
		Organization: org, OccurredUnixMS: c.cmd.GetIssuedUnixMs(), Data: asked.GetData(),
	}
	f := &flight{
		id: c.at.Delivery, ep: e, test: c, number: 1, maybe: c.started, created: c.cmd.GetIssuedUnixMs(), ready: now,
		event: &webhooksv1.OutboundEvent{
			Id: event.ID, OrganizationId: org, Type: event.Type, AcceptedUnixMs: event.OccurredUnixMS,
			Body: outbound.Body(event, outbound.SchemaVersion),
		},
	}
	f.load = t.newLoad(len(f.event.GetBody()))
	t.flights[f.id] = f
	e.pulled++
	return f
}

// serveTests lets out what tests may go, and ends those that never will.
func (t *task) serveTests(tx *stream.Tx, e *endpoint, now time.Time) error {
	if len(e.tests) == 0 {
		return nil
	}
	t.letOutTests(e, now)
	tests := e.tests
	e.tests = nil
	for i, f := range tests {
		ended, err := t.turnAwayTest(tx, f, now)
		if err != nil {
			e.tests = append(e.tests, tests[i:]...)
			return err
		}
		if !ended {
			e.tests = append(e.tests, f)
		}
	}
	if len(e.tests) > 0 {
		t.touch(e, now.Add(testPoll))
	}
	return nil
}

// letOutTests launches the tests that control admits.
func (t *task) letOutTests(e *endpoint, now time.Time) {
	for len(e.tests) > 0 && e.spec.GetEnabled() && e.dest != nil {
		if e.control.Running() >= t.d.room.share(e.control, now) || e.control.Probe(now) != control.Go {
			return
		}
		f := e.tests[0]
		e.tests = slices.Delete(e.tests, 0, 1)
		t.launch(f)
	}
}

// turnAwayTest ends a test that cannot be made. One that may have gone out must have its row, and is one that broke off.
func (t *task) turnAwayTest(tx *stream.Tx, f *flight, now time.Time) (ended bool, err error) {
	reason := ""
	var problem *httpapi.Problem
	switch {
	case f.ep.mode() == deleted:
		reason, problem = reasonDeleted, httpapi.NotFound()
	case f.ep.mode() == disabled:
		reason = reasonDisabled
	case f.ep.broken:
		reason, problem = reasonExhausted, httpapi.NewProblem(http.StatusInternalServerError, "secrets_unreadable",
			"The endpoint's secrets cannot be decrypted: SECRETS_KEY lost the key they were sealed with.")
	case now.Sub(f.ready) >= testWait && !f.maybe:
		problem = httpapi.Unavailable("endpoint_busy",
			"The endpoint has had no room for a test: its concurrency or rate is used up. Make another later.")
	default:
		return false, nil
	}
	if f.maybe || problem == nil {
		f.verdict = verdict{status: schemas.DeliveryDead, reason: reason}
		if err := t.breakOff(tx, f, now); err != nil {
			return false, err
		}
		return true, t.endTest(tx, f, f.made(), now)
	}
	t.hand(f)
	f.verdict = verdict{}
	t.endCommand(tx, f.test)
	return true, t.refuse(tx, f.test.cmd, problem)
}

// endTest writes the row of a test whose verdict stands, and answers it.
func (t *task) endTest(tx *stream.Tx, f *flight, attempts uint32, ended time.Time) error {
	t.hand(f)
	row := f.row(attempts, ended)
	if err := t.emit(tx, schemas.DeliveryRows, f, row); err != nil {
		return err
	}
	t.endCommand(tx, f.test)
	return t.answer(tx, f.test.cmd, deliveryOf(row))
}

// concludeTest writes what came of a test's attempt.
func (t *task) concludeTest(tx *stream.Tx, f *flight) error {
	f.verdict = verdict{status: schemas.DeliveryDead, reason: reasonExhausted}
	switch {
	case f.result.Success():
		f.verdict = verdict{status: schemas.DeliveryDelivered}
	case f.result.Class == sender.HTTP410:
		f.verdict.reason = reasonGone
		if err := t.emitDisable(tx, f); err != nil {
			return err
		}
	}
	if err := t.emitAttempt(tx, f); err != nil {
		return err
	}
	return t.endTest(tx, f, f.number, f.result.Ended())
}

// putBackTest writes that a test was not begun, unless an earlier owner may have.
func (t *task) putBackTest(tx *stream.Tx, f *flight) error {
	t.hand(f)
	f.test.started = f.maybe
	return t.putCommand(tx, f.test)
}
