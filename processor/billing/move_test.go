package billing

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAMovedCustomerTakesItsSubscriptionsAlong(t *testing.T) {
	p := parsedPlans(t)
	from, _ := apply(t, p,
		sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_pro", period1, period1, 0},
		inv{"evt_2", InvoicePaid, "in_1", 500, period1 + 1},
		inv{"evt_3", PaymentFailed, "in_2", 500, period1 + 2},
	)
	at := 1000 * (period1 + day)
	released, held := Release(copyOf(from), Move{org, "cus_1", "cmd_1", at}, p)
	require.Len(t, held.Subscriptions, 1)
	require.Equal(t, "FREE", released.State.Snapshot.Plan)
	require.Equal(t, uint64(2), released.State.Snapshot.Version)
	require.Equal(t, ConnectionMoved, released.State.Snapshot.Cause.Type)
	require.Len(t, released.Updates, 1)
	require.Equal(t, "PRO", released.Updates[0].PreviousPlan)
	require.Empty(t, released.State.Record.CustomerIds)
	require.Equal(t, "in_1", released.State.Record.LastPayment.InvoiceId, "payments stay")
	require.Equal(t, "in_2", released.State.Record.LastFailure.InvoiceId)
	require.Empty(t, released.State.Record.FailedInvoices, "it is the other's to be alerted of")

	adopted := Adopt(State{}, Move{"org_2", "cus_1", "cmd_2", at}, held, p)
	require.Equal(t, "org_2", adopted.State.Snapshot.OrganizationId)
	require.Equal(t, "PRO", adopted.State.Snapshot.Plan)
	require.Equal(t, uint64(1), adopted.State.Snapshot.Version)
	require.Equal(t, []string{"cus_1"}, adopted.State.Record.CustomerIds)
	require.Equal(t, "FREE", adopted.Updates[0].PreviousPlan)
	require.Equal(t, "in_2", adopted.State.Record.FailedInvoices[0].InvoiceId)
	require.Nil(t, adopted.State.Record.LastPayment, "none was made for it")
	require.Nil(t, adopted.State.Record.LastFailure)
}

func TestAdoptionMergesWithWhatCameBefore(t *testing.T) {
	p := parsedPlans(t)
	first := sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + day, period1, 0}
	second := sub{"evt_2", SubscriptionUpdated, "sub_1", pastDue, "price_none", period1 + 2*day, period1, 0}
	both, _ := apply(t, p, first, second)

	old, _ := apply(t, p, first)
	_, held := Release(old, Move{org, "cus_1", "cmd_1", 0}, p)
	early, _ := apply(t, p, second)
	r := Adopt(early, Move{org, "cus_1", "cmd_2", 0}, held, p)
	requireSame(t, both, r.State)
	require.Equal(t, "PRO", r.State.Snapshot.Plan)
	require.Equal(t, 1000*(period1+8*day), r.State.Snapshot.GraceUntilUnixMs)
}

func TestAMoveThatChangesNothingIsNotTold(t *testing.T) {
	p := parsedPlans(t)
	gone, _ := apply(t, p, sub{"evt_1", SubscriptionDeleted, "sub_1", "canceled", "price_pro", period1, period1, 0})
	r, held := Release(copyOf(gone), Move{org, "cus_1", "cmd_1", 0}, p)
	require.False(t, r.SnapshotChanged)
	require.True(t, r.RecordChanged)
	require.Empty(t, r.Updates)
	require.Equal(t, "", r.State.Record.Status)

	r = Adopt(State{}, Move{"org_2", "cus_1", "cmd_2", 0}, held, p)
	require.False(t, r.SnapshotChanged)
	require.Equal(t, canceled, r.State.Record.Status)

	r, held = Release(State{}, Move{org, "cus_1", "cmd_1", 0}, p)
	require.False(t, r.RecordChanged)
	require.Empty(t, held)
	require.False(t, Adopt(State{}, Move{org, "cus_1", "cmd_2", 0}, Holding{}, p).RecordChanged)
	other, _ := Release(copyOf(gone), Move{org, "cus_other", "cmd_1", 0}, p)
	require.Len(t, other.State.Record.Subscriptions, 1)
}

// An invoice that never failed is known by a hash alone.
func TestASettledInvoiceIsKnownWhereTheCustomerWasMovedTo(t *testing.T) {
	p := parsedPlans(t)
	from, _ := apply(t, p, inv{"evt_1", InvoicePaid, "in_1", 500, period1})
	_, held := Release(from, Move{org, "cus_1", "cmd_1", 1000 * period2}, p)
	require.Empty(t, held.Subscriptions)
	require.Empty(t, held.FailedInvoices)

	adopted := Adopt(State{}, Move{"org_2", "cus_1", "cmd_2", 1000 * period2}, held, p)
	require.True(t, adopted.RecordChanged)
	require.False(t, adopted.SnapshotChanged)
	require.Empty(t, adopted.Updates)
	require.Zero(t, adopted.State.Record.SnapshotVersion)
	require.False(t, Begun(adopted.State.Record))
	require.False(t, Adopt(copyOf(adopted.State), Move{"org_2", "cus_1", "cmd_2", 1000 * period2}, held, p).RecordChanged, "it is known")

	_, held = Release(copyOf(adopted.State), Move{"org_2", "cus_1", "cmd_3", 1000 * period2}, p)
	on := Adopt(State{}, Move{"org_3", "cus_1", "cmd_4", 1000 * period2}, held, p)
	for name, state := range map[string]State{"after a move": adopted.State, "after another": on.State} {
		t.Run(name, func(t *testing.T) {
			r := Apply(state, inv{"evt_2", PaymentFailed, "in_1", 500, period1 - 1}.event(t), p)
			require.True(t, Begun(r.State.Record))
			require.Len(t, r.State.Record.FailedInvoices, 1)
			require.Equal(t, 1000*period1, r.State.Record.FailedInvoices[0].EndedUnixMs, "it opens no alert")
		})
	}
}

func TestASettledInvoiceEndsOneThatIsOpenWhereTheCustomerWasMovedTo(t *testing.T) {
	p := parsedPlans(t)
	from, _ := apply(t, p, inv{"evt_1", InvoicePaid, "in_1", 500, period2})
	_, held := Release(from, Move{org, "cus_1", "cmd_1", 1000 * period2}, p)
	before, _ := apply(t, p, inv{"evt_2", PaymentFailed, "in_1", 500, period1})
	r := Adopt(before, Move{org, "cus_1", "cmd_2", 1000 * period2}, held, p)
	require.True(t, r.RecordChanged)
	require.Equal(t, 1000*period2, r.State.Record.FailedInvoices[0].EndedUnixMs)
}
