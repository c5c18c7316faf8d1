package dispatch

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// reasonCanceled is of a delivery whose waiting was ended by command.
const reasonCanceled = "canceled"

func hasEnded() *httpapi.Problem {
	return httpapi.NewProblem(http.StatusConflict, "delivery_ended", "The delivery has ended: nothing of it waits.")
}

func isTest() *httpapi.Problem {
	return httpapi.NewProblem(http.StatusConflict, "test_delivery", "A test is one attempt. Make another test of the endpoint.")
}

// retry has a delivery attempted at once, and by its schedule from the beginning if that fails. The attempt that is asked for
// begins after the command: whoever asks has mended the receiver, and one that had begun before says nothing of that. So
// a delivery is sent again whatever its status is when the command comes, and whatever becomes of an attempt that runs then.
//
//	in the schedule    due now; in strict order and behind another, its next attempt is the one that is asked for
//	in the queue       its next attempt is the one that is asked for
//	being attempted    waits: if the attempt fails the next is due at once; if it delivers, that is an end as any other
//	ended              waits until it is found in the record, and goes back to the schedule, due now
func (t *task) retry(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	f := t.flights[c.at.Delivery]
	switch {
	case f == nil:
		return t.retryFromRest(tx, c, now)
	case f.test != nil:
		return true, t.refuse(tx, c.cmd, isTest())
	case !t.concerns(c, f):
		return true, t.refuse(tx, c.cmd, httpapi.NotFound())
	case f.handed || f.detached:
		t.askAgain(c.at.Delivery, now)
		return false, nil
	case f.running || f.landed:
		return false, nil // conclude goes on with it
	case f.fresh() || f.taken:
		// Its first attempt begins as soon as it may anyway.
		v := verdict{status: schemas.DeliveryWaiting}
		if f.inOrder() {
			v.due = f.ready
		}
		return true, t.answer(tx, c.cmd, deliveryOf(f.rowAs(v, 0, time.Time{})))
	}
	state, err := schedule.State(tx, f.id)
	if err != nil || state == nil {
		return false, err // it was pulled out of there
	}
	_, err = t.dueNow(tx, c, f, state, now)
	return err == nil, err
}

// retryFromRest retries a delivery that is not in hand.
func (t *task) retryFromRest(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	state, err := schedule.State(tx, c.at.Delivery)
	if err != nil {
		return false, err
	}
	if state != nil {
		if state.GetEndpointId() != c.endpoint || state.GetOrganizationId() != c.cmd.GetOrganizationId() {
			return true, t.refuse(tx, c.cmd, httpapi.NotFound())
		}
		e := t.endpoint(c.endpoint, c.cmd.GetOrganizationId(), now)
		f, err := t.flightOf(tx, e, c.at.Delivery, state)
		if err != nil {
			return false, err
		}
		if state, err = t.dueNow(tx, c, f, state, now); err != nil {
			return false, err
		}
		if behind(state) {
			return true, nil
		}
		return true, t.takeAtOnce(tx, e, c.at.Delivery, state, now)
	}
	if t.toCome(c) {
		t.askAgain(c.at.Delivery, now)
		return false, nil
	}
	known, ok := t.archived[c.at.Delivery]
	if !ok {
		t.search(c)
		return false, nil
	}
	return t.revive(tx, c, known, now)
}

// concerns reports that a delivery is the one that the command means.
func (t *task) concerns(c *keptCommand, f *flight) bool {
	return f.ep.id == c.endpoint && f.event.GetOrganizationId() == c.cmd.GetOrganizationId()
}

// dueNow makes a waiting delivery due, unless it is behind another, and answers the command. One that was asked for already,
// and not begun, is the same.
func (t *task) dueNow(tx *stream.Tx, c *keptCommand, f *flight, before *webhooksv1.WaitingState, now time.Time) (*webhooksv1.WaitingState, error) {
	s := proto.CloneOf(before)
	asked := before.GetManual().GetNext() && before.GetScheduleStep() == 0
	if !asked {
		s.DueUnixMs = now.UnixMilli()
	}
	v := verdict{status: schemas.DeliveryWaiting}
	if !behind(s) {
		v.due = time.UnixMilli(s.GetDueUnixMs())
	}
	if asked {
		return s, t.answer(tx, c.cmd, deliveryOf(f.rowAs(v, before.GetAttempts(), time.Time{})))
	}
	s.ScheduleStep, s.RowVersion = 0, before.GetRowVersion()+1
	s.Manual = manualRetry(true, before.GetManual().GetDeliveredUnixMs())
	if err := schedule.Put(tx, c.at.Delivery, s, before); err != nil {
		return nil, err
	}
	g := *f
	g.follow(before)
	g.verdict = v
	if err := t.emitDelivery(tx, &g, before.GetAttempts(), time.Time{}); err != nil {
		return nil, err
	}
	return s, t.answer(tx, c.cmd, deliveryOf(g.row(before.GetAttempts(), time.Time{})))
}

// ahead is how many deliveries that were asked for an endpoint may have in hand beyond what it wants.
const ahead = 16

// takeAtOnce takes a delivery that has become due into hand, past those that wait longer, if there is any room. Else it is
// found in the schedule.
func (t *task) takeAtOnce(tx *stream.Tx, e *endpoint, delivery string, s *webhooksv1.WaitingState, now time.Time) error {
	if err := t.refresh(e); err != nil {
		return err
	}
	if e.mode() != sending || t.d.room.over() || t.d.room.share(e.control, now) == 0 || e.inHand() >= e.control.Want(now)+ahead {
		t.waits(e, time.UnixMilli(s.GetDueUnixMs()), now)
		return nil
	}
	f, err := t.recall(tx, e, dueEntry{schedule.Entry{Delivery: delivery}, s})
	if err != nil {
		return err
	}
	return t.send(tx, f, s)
}

// revive puts a delivery that ended back to the schedule. Its rows are all in what was found (package archive), and none
// was written since: the delivery was in nobody's hand.
func (t *task) revive(tx *stream.Tx, c *keptCommand, known archivedDelivery, now time.Time) (done bool, err error) {
	if known.err != nil && !errors.Is(known.err, archive.ErrNotFound) {
		return false, nil // the partition is given up
	}
	delete(t.archived, c.at.Delivery)
	row := known.row()
	switch {
	case known.err != nil, row.GetStatus() == schemas.DeliveryUnmatched,
		row.GetEndpointId() != c.endpoint, row.GetOrganizationId() != c.cmd.GetOrganizationId():
		return true, t.refuse(tx, c.cmd, httpapi.NotFound())
	case row.GetTest():
		return true, t.refuse(tx, c.cmd, isTest())
	}
	e := t.endpoint(c.endpoint, row.GetOrganizationId(), now)
	f := &flight{
		id: c.at.Delivery, ep: e, event: known.Event, replay: row.GetReplayId(), number: row.GetAttemptCount() + 1,
		rowVersion: row.GetVersion(), created: row.GetCreatedUnixMs(), order: c.at.Offset, manual: true,
		verdict: verdict{status: schemas.DeliveryWaiting, due: now},
	}
	if row.GetStatus() == schemas.DeliveryDelivered {
		f.delivered = row.GetEndedUnixMs()
	}
	if err := t.emitDelivery(tx, f, row.GetAttemptCount(), time.Time{}); err != nil {
		return false, err
	}
	if err := t.answer(tx, c.cmd, deliveryOf(f.row(row.GetAttemptCount(), time.Time{}))); err != nil {
		return false, err
	}
	f.rowVersion++
	s := f.state(webhooksv1.WaitingReason_WAITING_REASON_BACKOFF, now)
	if err := t.putWaiting(tx, f, s); err != nil {
		return false, err
	}
	return true, t.takeAtOnce(tx, e, f.id, s, now)
}

func (a archivedDelivery) row() *webhooksv1.DeliveryRow {
	if a.Delivery == nil {
		return nil
	}
	return a.Row
}

// cancel ends the waiting of a delivery. One that is being attempted ends with the attempt, delivered or not; so does one
// whose attempt an earlier owner may have begun: that one must have its row, so it is made again, when the endpoint takes it.
func (t *task) cancel(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	f := t.flights[c.at.Delivery]
	switch {
	case f == nil:
		return t.cancelFromRest(tx, c, now)
	case f.test != nil:
		return true, t.refuse(tx, c.cmd, isTest())
	case !t.concerns(c, f):
		return true, t.refuse(tx, c.cmd, httpapi.NotFound())
	case f.running || f.landed && !f.handed || f.maybe && f.ep.mode().sends():
		return false, nil // conclude goes on with it
	}
	at := slices.Index(f.ep.queue, f)
	if f.handed || f.detached || at < 0 {
		t.askAgain(c.at.Delivery, now)
		return false, nil
	}
	f.ep.queue = slices.Delete(f.ep.queue, at, at+1)
	return true, t.endCanceled(tx, c, f, now)
}

func (t *task) cancelFromRest(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	state, err := schedule.State(tx, c.at.Delivery)
	if err != nil {
		return false, err
	}
	switch {
	case state == nil && t.toCome(c):
		t.askAgain(c.at.Delivery, now)
		return false, nil
	case state == nil:
		return true, t.refuse(tx, c.cmd, hasEnded())
	case state.GetEndpointId() != c.endpoint || state.GetOrganizationId() != c.cmd.GetOrganizationId():
		return true, t.refuse(tx, c.cmd, httpapi.NotFound())
	}
	e := t.endpoint(c.endpoint, c.cmd.GetOrganizationId(), now)
	if err := t.refresh(e); err != nil {
		return false, err
	}
	if state.GetStarted() && e.mode().sends() {
		return false, nil // conclude goes on with it
	}
	f, err := t.recall(tx, e, dueEntry{schedule.Entry{Delivery: c.at.Delivery}, state})
	if err != nil {
		return false, err
	}
	return true, t.endCanceled(tx, c, f, now)
}

func (t *task) endCanceled(tx *stream.Tx, c *keptCommand, f *flight, now time.Time) error {
	if err := t.end(tx, f, reasonCanceled, now); err != nil {
		return err
	}
	return t.answer(tx, c.cmd, deliveryOf(f.row(f.made(), now)))
}
