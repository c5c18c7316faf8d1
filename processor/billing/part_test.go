package billing

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// sharing are organizations that a customer pays for, and what they are still to be told.
type sharing struct {
	t      require.TestingT
	p      *plans.Plans
	states map[string]State
	inbox  []func()
}

func newSharing(t require.TestingT) *sharing {
	return &sharing{t: t, p: parsedPlans(t), states: map[string]State{}}
}

var sharers = []string{"org_a", "org_b", "org_c"}

// event is one that is for an organization; the others are told of it.
func (s *sharing) event(e eventer, of string) {
	s.inbox = append(s.inbox, func() {
		in := e.event(s.t)
		in.Organization = of
		s.take(of, Apply(copyOf(s.states[of]), in, s.p))
	})
	in := e.event(s.t)
	for _, other := range sharers {
		if other != of {
			s.tell(Word{Organization: other, Parting: &Parting{in.Subscription.Id, "cus_1", of, in.Subscription.Position}})
		}
	}
}

func (s *sharing) tell(w Word) {
	s.inbox = append(s.inbox, func() {
		m := Move{Organization: w.Organization, CustomerID: "cus_1", CauseID: "cmd_1"}
		if w.State != nil {
			s.take(w.Organization, Join(copyOf(s.states[w.Organization]), m, proto.CloneOf(w.State), s.p))
		} else {
			s.take(w.Organization, Part(copyOf(s.states[w.Organization]), m, *w.Parting, s.p))
		}
	})
}

func (s *sharing) take(of string, r Result) {
	s.states[of] = r.State
	for _, w := range r.Words {
		s.tell(w)
	}
}

// next lets one of those that are told come to it.
func (s *sharing) next(at int) {
	first := s.inbox[at]
	s.inbox = append(s.inbox[:at:at], s.inbox[at+1:]...)
	first()
}

func (s *sharing) settle() {
	for rounds := 0; len(s.inbox) > 0; rounds++ {
		require.Less(s.t, rounds, 1000, "they tell each other without an end")
		s.next(0)
	}
}

// ownOf are an organization's subscriptions, by id.
func (s *sharing) ownOf(org string) map[string]*webhooksv1.Subscription {
	all := map[string]*webhooksv1.Subscription{}
	if record := s.states[org].Record; record != nil {
		for sub := range own(record) {
			all[sub.Id] = sub
		}
	}
	return all
}

func TestASubscriptionThatIsRelabelledLeavesTheFirst(t *testing.T) {
	s := newSharing(t)
	s.event(sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_pro", period1, period1, 0}, "org_a")
	s.settle()
	require.Equal(t, "PRO", s.states["org_a"].Record.Plan)
	s.event(sub{"evt_2", SubscriptionUpdated, "sub_1", "active", "price_pro", period1 + 1, period1, 0}, "org_b")
	s.settle()
	first, second := s.states["org_a"], s.states["org_b"]
	require.Equal(t, "FREE", first.Snapshot.Plan)
	require.Equal(t, uint64(2), first.Snapshot.Version)
	require.Equal(t, SubscriptionMoved, first.Snapshot.Cause.Type)
	require.Empty(t, first.Snapshot.SubscriptionIds)
	require.Empty(t, ViewRecord(first.Record).Subscriptions)
	require.Equal(t, "", first.Record.Status)
	require.Equal(t, "PRO", second.Snapshot.Plan)
	require.Equal(t, []string{"sub_1"}, second.Snapshot.SubscriptionIds)
	require.False(t, Begun(s.states["org_c"].Record), "who never had it shows nothing")

	r := Part(copyOf(first), Move{Organization: "org_a"}, Parting{"sub_1", "cus_1", "org_b", second.Record.Subscriptions[0].Position}, s.p)
	require.False(t, r.RecordChanged, "it knows")
	require.Empty(t, r.Words)
}

// A failure that is older than what is known, and came to the first after all, begins the grace at the second.
func TestAnEventThatComesLateIsNewsForWhoHasTheSubscription(t *testing.T) {
	s := newSharing(t)
	s.event(sub{"evt_2", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + 2*day, period1, 0}, "org_b")
	s.settle()
	late := sub{"evt_1", SubscriptionUpdated, "sub_1", pastDue, "price_pro", period1 + day, period1, 0}.event(t)
	late.Organization = "org_a"
	r := Apply(copyOf(s.states["org_a"]), late, s.p)
	require.True(t, r.Stale)
	s.take("org_a", r)
	s.settle()
	require.Equal(t, 1000*(period1+8*day), s.states["org_b"].Snapshot.GraceUntilUnixMs)
}

func TestWhereASubscriptionHasGoneIsNotHandedOver(t *testing.T) {
	s := newSharing(t)
	s.event(sub{"evt_1", SubscriptionCreated, "sub_1", "active", "price_pro", period1, period1, 0}, "org_a")
	s.settle()
	released, held := Release(copyOf(s.states["org_b"]), Move{"org_b", "cus_1", "cmd_1", 0}, s.p)
	require.Empty(t, held.Subscriptions)
	require.Empty(t, released.State.Record.Subscriptions)

	_, held = Release(copyOf(s.states["org_a"]), Move{"org_a", "cus_1", "cmd_1", 0}, s.p)
	adopted := Adopt(copyOf(s.states["org_c"]), Move{"org_c", "cus_1", "cmd_1", 0}, held, s.p)
	require.Equal(t, "PRO", adopted.State.Snapshot.Plan, "it comes back by what is known of it, too")
}

// TestASubscriptionIsOfWhoItsNewestEventIsFor: in whatever order events and words come to whom, one organization has each
// subscription in the end, and has of it what one that got all events would have.
func TestASubscriptionIsOfWhoItsNewestEventIsFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSharing(t)
		var history []eventer
		newest, of := map[string]*webhooksv1.SubscriptionPosition{}, map[string]string{}
		for n := range rapid.IntRange(1, 10).Draw(t, "events") {
			e, is := withID(rapid.Custom(drawEvent).Draw(t, "event"), fmt.Sprintf("evt_%02d", n)).(sub)
			if !is {
				continue
			}
			history = append(history, e)
			who := rapid.SampledFrom(sharers).Draw(t, "of")
			s.event(e, who)
			if position := e.event(t).Subscription.Position; newest[e.id] == nil || compare(position, newest[e.id]) > 0 {
				newest[e.id], of[e.id] = position, who
			}
		}
		for rounds := 0; len(s.inbox) > 0; rounds++ {
			require.Less(t, rounds, 1000, "they tell each other without an end")
			s.next(rapid.IntRange(0, len(s.inbox)-1).Draw(t, "next"))
		}
		want, _ := apply(t, s.p, history...)
		for _, who := range sharers {
			have := s.ownOf(who)
			for _, subscription := range want.Record.GetSubscriptions() {
				if of[subscription.Id] != who {
					require.NotContains(t, have, subscription.Id, who)
					continue
				}
				require.True(t, proto.Equal(subscription, have[subscription.Id]), "%s\n%v\n%v", who, subscription, have[subscription.Id])
			}
		}
	})
}
