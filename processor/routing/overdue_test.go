package routing_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

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

// giveUp lets it be so late, and the commands by which the router gives hand-overs up come back.
func (w *world) giveUp(now time.Time) streamtest.Outputs {
	w.t.Helper()
	given := w.Advance(now).Topic(schemas.InboundUnrouted)
	require.NotEmpty(w.t, given, "nothing is overdue")
	return w.Process(given...)
}

func TestAHandOverThatIsNeverHeardOfEndsOnceItIsOverdue(t *testing.T) {
	w, moved := moving(t)
	began := w.Now
	require.Empty(t, w.Advance(began.Add(limit-time.Millisecond)))
	require.Equal(t, began.Add(limit), w.WakeTime().UTC())
	require.Zero(t, w.overdue())

	out := w.giveUp(began.Add(limit))
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
	require.Empty(t, handedOn(w.giveUp(began.Add(limit))), "the later one is waited for")
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
	require.True(t, w.Woken())
	given := w.Redeliver().Topic(schemas.InboundUnrouted)
	require.Len(t, given, 1)
	require.Empty(t, w.Advance(w.Now), "it is told once")
	w.Abort(given...)
	require.Zero(t, w.overdue())
	require.Equal(t, 1, w.handingOver())
	require.Equal(t, []string{"org_2 evt_1 held", "org_2 evt_2 held"}, handedOn(w.Redeliver()))
	require.Equal(t, 1, w.overdue())
}

// The next owner does not know what the one before told.
func TestAHandOverThatIsGivenUpByTwoOwnersIsGivenUpOnce(t *testing.T) {
	w, _ := moving(t)
	first := w.Advance(w.Now.Add(limit)).Topic(schemas.InboundUnrouted)
	w.Crash()
	require.Empty(t, w.Advance(w.Now))
	second := w.Advance(w.Now.Add(patience)).Topic(schemas.InboundUnrouted)
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(w.Process(append(first, second...)...)))
	require.Equal(t, 1, w.overdue())
}

func TestAnAnswerThatIsThereAlreadyIsHeardFirst(t *testing.T) {
	w, moved := moving(t)
	given := w.Advance(w.Now.Add(limit)).Topic(schemas.InboundUnrouted)
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(w.handOver(moved)))
	require.Empty(t, w.Process(given...))
	require.Zero(t, w.overdue())
}

// What was held for the one given up names another organization, at once or in a later piece: that is learnt, and the late
// answer is not taken for its own.
func TestALateAnswerIsNotThatOfWhatWasLearntSince(t *testing.T) {
	for name, before := range map[string]int{"at once": 0, "in a later piece": 300} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Process(event("evt_1", "cus_1", handled, "org_1"))
			told := []streamtest.Outputs{w.Process(event("evt_2", "cus_1", handled, "org_2"))}
			for i := range before {
				w.Process(event(fmt.Sprintf("evt_between_%04d", i), "cus_1", handled, ""))
			}
			w.Process(event("evt_3", "cus_1", handled, "org_3"), event("evt_4", "cus_1", handled, "org_1"))
			for range 2 { // org_3, and then org_1 again
				out := w.giveUp(w.Now.Add(limit))
				for len(w.releases(out)) == 0 {
					w.WaitWoken()
					out = w.Advance(w.Now)
				}
				told = append(told, out)
				w.Crash()
				w.Advance(w.Now) // from here on the owner is patient
			}
			require.Equal(t, []string{"org_2 to org_3 a copy"}, w.releases(told[1]))
			require.Equal(t, []string{"org_3 to org_1 a copy"}, w.releases(told[2]))
			order := func(out streamtest.Outputs) int64 { return w.told(out)[0].GetReleaseAccount().Order }
			require.Less(t, order(told[0]), order(told[1]))
			require.Less(t, order(told[1]), order(told[2]))

			require.Empty(t, handedOn(w.handOver(told[0])))
			require.Empty(t, handedOn(w.handOver(told[1])))
			require.Equal(t, 1, w.handingOver())
			require.Equal(t, []string{"org_1 evt_4 held"}, handedOn(w.handOver(told[2])))
		})
	}
}

func TestATransactionGivesUpSomeOfThousands(t *testing.T) {
	const count = 600
	w := newWorld(t)
	for i := range count {
		account := fmt.Sprintf("cus_%d", i)
		w.Process(connect("org_1", account, false), connect("org_2", account, true))
	}
	w.Now = w.Now.Add(limit)
	var given []*kgo.Record
	for len(given) < count {
		w.WaitWoken()
		some := w.Advance(w.Now).Topic(schemas.InboundUnrouted)
		require.NotEmpty(t, some)
		require.LessOrEqual(t, len(some), 256)
		given = append(given, some...)
	}
	require.Empty(t, w.Advance(w.Now))
	require.Equal(t, count, w.handingOver())
	w.Process(given...)
	require.Zero(t, w.handingOver())
	require.Equal(t, count, w.overdue())
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
