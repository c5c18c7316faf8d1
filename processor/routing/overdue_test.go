package routing_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
)

const (
	limit    = 12 * time.Hour
	patience = time.Hour
)

// moving is a world whose cus_1 is moved by an organization that does not answer, with an event that waits for that.
func moving(t *testing.T) (w *world, moved streamtest.Outputs) {
	w = newWorld(t)
	w.Process(connect("org_1", "cus_1", false))
	moved = w.Process(connect("org_2", "cus_1", true))
	w.Process(event("evt_1", "cus_1", handled, ""))
	return w, moved
}

func (w *world) metric(name string) float64 {
	w.t.Helper()
	all, err := w.reg.Gather()
	require.NoError(w.t, err)
	for _, family := range all {
		if m := family.GetMetric()[0]; family.GetName() == name {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	require.Fail(w.t, "no metric "+name)
	return 0
}

func (w *world) handingOver() int { return int(w.metric("webhooks_router_handing_over")) }

func (w *world) overdue() int { return int(w.metric("webhooks_router_hand_overs_overdue_total")) }

func TestAHandOverThatIsNeverHeardOfEndsOnceItIsOverdue(t *testing.T) {
	w, moved := moving(t)
	began := w.Now
	require.Empty(t, w.Advance(began.Add(limit-time.Millisecond)))
	require.Equal(t, began.Add(limit), w.WakeTime().UTC())
	require.Zero(t, w.overdue())

	out := w.Advance(began.Add(limit))
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(out))
	require.Equal(t, "org_2", w.route("cus_1"))
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	require.Equal(t, 1, w.overdue())
	require.Zero(t, w.handingOver())
	require.Empty(t, w.handOver(moved), "an answer that nobody waits for any more")
	require.False(t, w.Woken())
}

func TestEachHandOverHasItsOwnTime(t *testing.T) {
	w, _ := moving(t)
	began := w.Now
	w.Now = began.Add(limit / 2)
	second := w.Process(connect("org_3", "cus_1", true))
	require.Empty(t, handedOn(w.Advance(began.Add(limit))), "the later one is waited for")
	require.Equal(t, 1, w.overdue())
	require.Equal(t, began.Add(limit/2+limit), w.WakeTime().UTC())
	require.Equal(t, []string{"org_3 evt_1 held"}, handedOn(w.handOver(second)))
	require.Equal(t, 1, w.overdue())
}

// Everything stood still for days: the organization's owner has not had its turn yet.
func TestAnOwnerThatHasJustComeIsPatient(t *testing.T) {
	w, moved := moving(t)
	w.Now = w.Now.Add(3 * limit)
	w.Crash()
	require.True(t, w.Woken())
	require.Empty(t, w.Advance(w.Now))
	require.Equal(t, w.Now.Add(patience), w.WakeTime().UTC())
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(w.handOver(moved)))
	require.Zero(t, w.overdue())
}

func TestAHandOverThatIsGivenUpInATransactionThatIsAbortedIsGivenUpOnce(t *testing.T) {
	w, _ := moving(t)
	w.Now = w.Now.Add(limit)
	w.Abort(event("evt_2", "cus_1", handled, ""))
	require.Zero(t, w.overdue())
	require.Equal(t, 1, w.handingOver())
	require.Equal(t, []string{"org_2 evt_1 held", "org_2 evt_2 held"}, handedOn(w.Redeliver()))
	require.Equal(t, 1, w.overdue())
}

func TestTheMetricSaysHowManyAccountsAreBeingHandedOver(t *testing.T) {
	w, moved := moving(t)
	require.Equal(t, 1, w.handingOver())
	w.Process(connect("org_1", "cus_2", false))
	w.Abort(connect("org_2", "cus_2", true))
	require.Equal(t, 1, w.handingOver())
	w.Redeliver()
	require.Equal(t, 2, w.handingOver())
	w.Crash()
	require.Equal(t, 2, w.handingOver())
	w.handOver(moved)
	require.Equal(t, 1, w.handingOver())
	w.Task().Close()
	require.Zero(t, w.handingOver(), "they are the next owner's")
}
