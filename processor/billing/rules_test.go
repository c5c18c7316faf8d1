package billing

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStatusDecidesAccess(t *testing.T) {
	for status, want := range map[string]struct{ status, plan string }{
		"trialing":           {StatusActive, "PRO"},
		"active":             {StatusActive, "PRO"},
		"past_due":           {StatusGrace, "PRO"},
		"incomplete":         {StatusNone, "FREE"},
		"incomplete_expired": {StatusNone, "FREE"},
		"unpaid":             {StatusNone, "FREE"},
		"paused":             {StatusNone, "FREE"},
		"canceled":           {StatusNone, "FREE"},
	} {
		t.Run(status, func(t *testing.T) {
			s, _ := apply(t, parsedPlans(t), sub{"evt_1", SubscriptionCreated, "sub_1", status, "price_pro", period1, period1, 0})
			require.Equal(t, want.status, s.Snapshot.Status)
			require.Equal(t, want.plan, s.Snapshot.Plan)
			require.Equal(t, status, s.Record.Status)
			require.Equal(t, want.plan, s.Record.Plan)
			require.Equal(t, uint64(1), s.Snapshot.Version)
		})
	}
}

func TestVersionGrowsWithEverySubscriptionEventApplied(t *testing.T) {
	s, results := apply(t, parsedPlans(t),
		sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_starter", period1, period1, 0},
		sub{"evt_2", SubscriptionUpdated, "sub_1", "active", "price_pro", period1 + 10, period1, 0},
		inv{"evt_3", InvoicePaid, "in_1", 500, period1 + 20},
		sub{"evt_1", SubscriptionUpdated, "sub_1", "active", "price_starter", period1 + 5, period1, 0},
		sub{"evt_4", SubscriptionDeleted, "sub_1", "canceled", "price_pro", period1 + 30, period1, 0},
		sub{"evt_5", SubscriptionUpdated, "sub_1", "active", "price_pro", period1 + 40, period1, 0},
	)
	var versions []uint64
	var stale []bool
	var changes []string
	for _, r := range results {
		versions = append(versions, r.State.Snapshot.Version)
		stale = append(stale, r.Stale)
		for _, u := range r.Updates {
			changes = append(changes, u.Change+" from "+u.PreviousPlan+" to "+u.Snapshot.Plan)
		}
		require.NotNil(t, r.Audit)
	}
	require.Equal(t, []bool{false, false, false, true, false, true}, stale)
	require.Equal(t, []uint64{1, 2, 2, 2, 3, 3}, versions)
	require.Equal(t, []string{"created from FREE to STARTER", "updated from STARTER to PRO", "deleted from PRO to FREE"}, changes)
	require.Equal(t, StatusNone, s.Snapshot.Status)
	require.Equal(t, "STARTER", results[1].Audit.PlanBefore)
	require.Equal(t, "PRO", results[1].Audit.PlanAfter)
	require.Equal(t, results[3].Audit.PlanBefore, results[3].Audit.PlanAfter)
	require.Equal(t, int64(500), *results[2].Audit.Amount)
	require.Equal(t, uint64(2), results[2].Audit.SnapshotVersion)
}

func TestNewestOfASubscription(t *testing.T) {
	event := func(id, eventType, status string, created, period int64) sub {
		return sub{id, eventType, "sub_1", status, "price_" + id, created, period, 0}
	}
	for name, test := range map[string]struct{ older, newer sub }{
		"a terminal status wins for good": {
			event("b", SubscriptionUpdated, "active", period2, period2),
			event("a", SubscriptionDeleted, "canceled", period1, period1),
		},
		"incomplete_expired is terminal too": {
			event("b", SubscriptionUpdated, "active", period2, period2),
			event("a", SubscriptionUpdated, "incomplete_expired", period1, period1),
		},
		"then created": {
			event("b", SubscriptionUpdated, "active", period1, period2),
			event("a", SubscriptionCreated, "active", period1+1, period1),
		},
		"then updated over created": {
			event("b", SubscriptionCreated, "active", period1, period2),
			event("a", SubscriptionUpdated, "active", period1, period1),
		},
		"then deleted over updated": {
			event("b", SubscriptionUpdated, "canceled", period1, period2),
			event("a", SubscriptionDeleted, "canceled", period1, period1),
		},
		"then the period's start": {
			event("b", SubscriptionUpdated, "active", period2, period1),
			event("a", SubscriptionUpdated, "active", period2, period2),
		},
		"then the event id": {
			event("a", SubscriptionUpdated, "active", period1, period1),
			event("b", SubscriptionUpdated, "active", period1, period1),
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, history := range [][]eventer{{test.older, test.newer}, {test.newer, test.older}} {
				s, _ := apply(t, parsedPlans(t), history...)
				require.Equal(t, test.newer.price, s.Record.Subscriptions[0].Items[0].PriceId)
				require.Equal(t, test.newer.status, s.Record.Subscriptions[0].Status)
			}
		})
	}
}

func TestDeletedEndsASubscriptionWhateverItsStatusSays(t *testing.T) {
	s, _ := apply(t, parsedPlans(t), sub{"evt_1", SubscriptionDeleted, "sub_1", "active", "price_pro", period1, period1, 0})
	require.Equal(t, canceled, s.Record.Subscriptions[0].Status)
	require.Equal(t, StatusNone, s.Snapshot.Status)
}

func TestGraceCountsFromTheFirstPastDueOfThePeriod(t *testing.T) {
	pastDueAt := func(id string, created, period int64) sub {
		return sub{id, SubscriptionUpdated, "sub_1", pastDue, "price_pro", created, period, 0}
	}
	for name, test := range map[string]struct {
		history []eventer
		want    int64
	}{
		"one event": {
			[]eventer{pastDueAt("evt_1", period1+day, period1)}, period1 + 8*day,
		},
		"a later failure buys no time": {
			[]eventer{pastDueAt("evt_1", period1+day, period1), pastDueAt("evt_2", period1+3*day, period1)}, period1 + 8*day,
		},
		"also when it arrives first": {
			[]eventer{pastDueAt("evt_2", period1+3*day, period1), pastDueAt("evt_1", period1+day, period1)}, period1 + 8*day,
		},
		"a new period starts the count anew": {
			[]eventer{pastDueAt("evt_1", period1+day, period1), pastDueAt("evt_2", period2+day, period2)}, period2 + 8*day,
		},
		"an old period's event changes nothing": {
			[]eventer{pastDueAt("evt_2", period2+day, period2), pastDueAt("evt_1", period1+day, period1)}, period2 + 8*day,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := apply(t, parsedPlans(t), test.history...)
			require.Equal(t, StatusGrace, s.Snapshot.Status)
			require.Equal(t, "PRO", s.Snapshot.Plan)
			require.Equal(t, 1000*test.want, s.Snapshot.GraceUntilUnixMs)
			require.Equal(t, 1000*test.want, s.Record.DueUnixMs)
		})
	}
}

func TestAnEarlierPastDueThatMovesTheGraceIsApplied(t *testing.T) {
	_, results := apply(t, parsedPlans(t),
		sub{"evt_2", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + 3*day, period1, 0},
		sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + day, period1, 0},
	)
	require.False(t, results[1].Stale)
	require.Equal(t, uint64(2), results[1].State.Snapshot.Version)
	require.Equal(t, "evt_1", results[1].State.Snapshot.Cause.EventId)
}

func TestGraceEnds(t *testing.T) {
	p := parsedPlans(t)
	s, _ := apply(t, p, sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1, period1, 0})
	due := s.Record.DueUnixMs

	early := Expire(copyOf(s), due-1, p)
	require.False(t, early.SnapshotChanged)
	require.Empty(t, early.Updates)

	r := Expire(copyOf(s), due, p)
	require.Equal(t, StatusNone, r.State.Snapshot.Status)
	require.Equal(t, "FREE", r.State.Snapshot.Plan)
	require.Equal(t, "FREE", r.State.Record.Plan)
	require.Equal(t, pastDue, r.State.Record.Status)
	require.Equal(t, uint64(2), r.State.Snapshot.Version)
	require.Zero(t, r.State.Record.DueUnixMs)
	require.Nil(t, r.Audit)
	require.Len(t, r.Updates, 1)
	require.Equal(t, Update{
		Change: "updated", Snapshot: r.State.Snapshot, PreviousPlan: "PRO",
		CauseEventID: TimerID(org, due), OccurredUnixMS: due, AcceptedUnixMS: due,
	}, r.Updates[0])

	again := Expire(copyOf(r.State), due+1, p)
	require.False(t, again.SnapshotChanged || again.RecordChanged)
}

func TestATimerThatIsLateRunsBeforeTheEvent(t *testing.T) {
	_, results := apply(t, parsedPlans(t),
		sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1, period1, 0},
		sub{"evt_2", SubscriptionUpdated, "sub_1", "active", "price_pro", period1 + 9*day, period1, 0},
	)
	updates := results[1].Updates
	require.Len(t, updates, 2)
	require.Equal(t, TimerSource, updates[0].Snapshot.Cause.Source)
	require.Equal(t, "FREE", updates[0].Snapshot.Plan)
	require.Equal(t, uint64(2), updates[0].Snapshot.Version)
	require.Equal(t, "PRO", updates[1].Snapshot.Plan)
	require.Equal(t, "FREE", updates[1].PreviousPlan)
	require.Equal(t, uint64(3), updates[1].Snapshot.Version)
}

func TestAnEndedGraceDoesNotComeBackWithAnEventAcceptedEarlier(t *testing.T) {
	p := parsedPlans(t)
	s, _ := apply(t, p, sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1, period1, 0})
	s = Expire(s, s.Record.DueUnixMs, p).State
	r := Apply(s, sub{"evt_2", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + day, period1, 0}.event(t), p)
	require.Equal(t, StatusNone, r.State.Snapshot.Status)
}

func TestAPastDueThatIsOldAlreadyGivesNoGrace(t *testing.T) {
	s, _ := apply(t, parsedPlans(t), sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1, period1, period1 + 8*day})
	require.Equal(t, StatusNone, s.Snapshot.Status)
	require.Equal(t, uint64(1), s.Snapshot.Version)
	require.Zero(t, s.Record.DueUnixMs)
}

func TestSeveralSubscriptions(t *testing.T) {
	starter := sub{"evt_1", SubscriptionCreated, "sub_a", "active", "price_starter", period1, period1, 0}
	pro := sub{"evt_2", SubscriptionCreated, "sub_b", "active", "price_pro", period1 + 1, period2, 0}
	s, _ := apply(t, parsedPlans(t), starter, pro)
	require.Equal(t, "PRO", s.Snapshot.Plan, "best plan is the highest tier")
	require.Equal(t, uint32(2), s.Snapshot.Tier)
	require.Equal(t, []string{"FORECASTING", "REPLENISHMENT"}, s.Snapshot.Granted, "capabilities are the union")
	require.Equal(t, map[string]int64{"locations": 10}, s.Snapshot.Limits, "limits are the best plan's")
	require.Equal(t, []string{"sub_a", "sub_b"}, s.Snapshot.SubscriptionIds)
	require.Equal(t, 1000*(period2+30*day), s.Snapshot.PeriodEndUnixMs)

	proLate := sub{"evt_3", SubscriptionUpdated, "sub_b", pastDue, "price_pro", period1 + 2, period2, 0}
	s, _ = apply(t, parsedPlans(t), starter, pro, proLate)
	require.Equal(t, StatusGrace, s.Snapshot.Status, "the best plan's subscription speaks for the org")
	require.Equal(t, pastDue, s.Record.Status)
	r := Expire(s, s.Record.DueUnixMs, parsedPlans(t))
	require.Equal(t, StatusActive, r.State.Snapshot.Status)
	require.Equal(t, "STARTER", r.State.Snapshot.Plan)
	require.Equal(t, []string{"sub_a"}, r.State.Snapshot.SubscriptionIds)
}

func TestAPriceInNoPlanLeavesThePlanUnchanged(t *testing.T) {
	created := sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_pro", period1, period1, 0}
	moved := sub{"evt_2", SubscriptionUpdated, "sub_1", "active", "price_new", period1 + 10, period1, 0}
	for name, history := range map[string][]eventer{"in order": {created, moved}, "out of order": {moved, created}} {
		t.Run(name, func(t *testing.T) {
			s, results := apply(t, parsedPlans(t), history...)
			require.Equal(t, "PRO", s.Snapshot.Plan)
			require.Equal(t, []string{"price_new"}, s.Snapshot.UnmappedPrices)
			require.Equal(t, "price_new", s.Record.Subscriptions[0].Items[0].PriceId)
			require.Equal(t, 1, results[0].UnmappedPrices+results[1].UnmappedPrices)
		})
	}
	t.Run("of a new subscription", func(t *testing.T) {
		s, _ := apply(t, parsedPlans(t), moved)
		require.Equal(t, "FREE", s.Snapshot.Plan)
		require.Equal(t, StatusActive, s.Snapshot.Status)
		require.Equal(t, []string{"price_new"}, s.Snapshot.UnmappedPrices)
	})
	t.Run("until it ends", func(t *testing.T) {
		s, _ := apply(t, parsedPlans(t), created, moved,
			sub{"evt_3", SubscriptionDeleted, "sub_1", "canceled", "price_new", period1 + 20, period1, 0})
		require.Equal(t, "FREE", s.Snapshot.Plan)
		require.Empty(t, s.Snapshot.UnmappedPrices)
	})
}

func TestInvoices(t *testing.T) {
	s, results := apply(t, parsedPlans(t),
		inv{"evt_2", InvoicePaid, "in_2", 200, period2},
		inv{"evt_1", InvoicePaid, "in_1", 100, period1},
		inv{"evt_3", PaymentFailed, "in_3", 300, period1},
		inv{"evt_4", PaymentFailed, "in_4", 400, period1},
	)
	require.Nil(t, s.Snapshot, "an invoice makes no snapshot")
	require.Equal(t, "in_2", s.Record.LastPayment.InvoiceId)
	require.Equal(t, "in_4", s.Record.LastFailure.InvoiceId, "of equal times the greater event id")
	require.Equal(t, []bool{false, true, false, false}, []bool{results[0].Stale, results[1].Stale, results[2].Stale, results[3].Stale})
	require.Equal(t, "FREE", s.Record.Plan)
	require.Equal(t, 1000*period1, s.Record.CreatedUnixMs)
	require.Equal(t, 1000*period2, s.Record.UpdatedUnixMs)
	require.Equal(t, "sub_1", results[0].Audit.SubscriptionId)
	require.Equal(t, "in_3", results[2].Audit.InvoiceId)
	for _, r := range results {
		require.Empty(t, r.Updates)
		require.False(t, r.SnapshotChanged)
	}
}

func TestAPriceInNoPlanIsListedByWhatNamesIt(t *testing.T) {
	for price, want := range map[string]string{
		`{"id":"price_x","lookup_key":"x","product":"prod_x"}`: "price_x",
		`{"lookup_key":"x","product":"prod_x"}`:                "x",
		`{"product":{"id":"prod_x"}}`:                          "prod_x",
	} {
		e := &Event{Organization: org, ID: "evt_1", EventID: "evt_ours", Type: SubscriptionCreated}
		require.Equal(t, Usable, Decode([]byte(subscriptionBody(`,"items":{"data":[{"price":`+price+`}]}`)), e))
		r := Apply(State{}, e, parsedPlans(t))
		require.Equal(t, []string{want}, r.State.Snapshot.UnmappedPrices)
		require.Equal(t, 1, r.UnmappedPrices)
	}
}
