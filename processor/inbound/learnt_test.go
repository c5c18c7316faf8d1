package inbound

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// learn sends a new event that names an organization.
func (w *world) learn(org string) *kgo.Record {
	event := naming(w.event(billing.InvoicePaid), org)
	w.send(event, 0)
	return event
}

func TestAnEventThatNamesNobodyAndIsSentAgainHasOneEffect(t *testing.T) {
	for name, flips := range map[string][]string{
		"learnt anew":              {"org_b"},
		"a chain":                  {"org_b", "org_c"},
		"there and back":           {"org_b", "org_a"},
		"there and back and forth": {"org_b", "org_a", "org_b"},
		"round and round":          {"org_b", "org_c", "org_a", "org_c"},
	} {
		for way, between := range map[string]func(*world){
			"one after the other": (*world).settle,
			"all at once":         func(*world) {},
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				w := newWorld(t)
				w.learn("org_a")
				w.settle()
				again := []*kgo.Record{w.event(billing.InvoicePaid), w.event(billing.PaymentFailed)}
				for _, e := range again {
					w.send(e, 0)
				}
				w.settle()
				for _, to := range flips {
					w.learn(to)
					between(w)
				}
				for _, e := range again {
					w.send(e, 0)
					between(w)
				}
				w.settle()
				effects := w.effects()
				require.Len(t, effects, 3+len(flips))
				require.Equal(t, []string{"org_a"}, effects["evt_002"])
				require.Equal(t, []string{"org_a"}, effects["evt_003"])
			})
		}
	}
}

func TestWhoKeepsALearntAccountKeepsWhatItHas(t *testing.T) {
	w := newWorld(t)
	w.send(naming(w.event(billing.SubscriptionCreated), "org_a"), 0)
	w.settle()
	before := w.record("org_a")
	w.learn("org_b")
	w.settle()
	after := w.record("org_a")
	after.SettledInvoices, after.SettledUnixMs = nil, nil // it is told of them
	require.True(t, proto.Equal(before, after))
	require.Equal(t, []string{"org_a"}, w.holders())
}

// It was paid at the first, and the failure comes late, to the second.
func TestAnInvoiceThatWasSettledBeforeTheAccountWasLearntAnewOpensNothing(t *testing.T) {
	w := newWorld(t)
	w.learn("org_a")
	w.settle()
	w.send(naming(w.event(billing.SubscriptionUpdated), "org_b"), 0)
	w.settle()
	w.send(w.event(billing.PaymentFailed), 0)
	w.settle()
	failed := w.record("org_b").FailedInvoices
	require.Len(t, failed, 1)
	require.NotZero(t, failed[0].EndedUnixMs)
}

func TestAnInvoiceIsSettledByWhatComesToAnotherOrganization(t *testing.T) {
	for name, c := range map[string]struct {
		failure string // whom it names
		last    bool
	}{
		"the failure names the first": {failure: "org_a"},
		"the failure names nobody":    {},
		"the failure comes last":      {failure: "org_a", last: true},
	} {
		for _, settles := range []string{billing.InvoicePaid, billing.InvoiceVoided, billing.InvoiceUncollectible} {
			t.Run(name+", "+settles, func(t *testing.T) {
				w := newWorld(t)
				w.send(naming(w.event(billing.SubscriptionCreated), "org_a"), 0)
				w.settle()
				events := []*kgo.Record{naming(w.event(billing.PaymentFailed), c.failure), naming(w.event(settles), "org_b")}
				if c.last {
					slices.Reverse(events)
				}
				for _, e := range events {
					w.send(e, 0)
					w.settle()
				}
				invoices := w.record("org_a").FailedInvoices
				require.Len(t, invoices, 1)
				require.NotZero(t, invoices[0].EndedUnixMs)
			})
		}
	}
}

// The edge has not seen that the account is shared.
func TestAnEventThatComesToTheFirstOrganizationAfterAllIsSentOnUnlessItNamesIt(t *testing.T) {
	for named, want := range map[string]string{"": "org_b", "org_a": "org_a", "org_b": "org_b", "org_c": "org_b"} {
		t.Run("names "+named, func(t *testing.T) {
			w := newWorld(t)
			w.learn("org_a")
			w.settle()
			w.learn("org_b")
			w.settle()
			event := naming(w.event(billing.InvoicePaid), named)
			w.routes = append(w.routes, &webhooksv1.Route{OrganizationId: "org_a"}) // one made by API, before all that
			w.send(event, 0)
			w.settle()
			require.Equal(t, []string{want}, w.effects()["evt_003"])
			w.routes = w.routes[:len(w.routes)-1]
			w.send(event, 0)
			w.settle()
			require.Equal(t, []string{want}, w.effects()["evt_003"])
		})
	}
}

// Before, what the first organization had stayed there.
func TestAMoveByAPITakesASharedAccountFromAll(t *testing.T) {
	for _, to := range organizations {
		t.Run(to, func(t *testing.T) {
			w := newWorld(t)
			subscription := naming(w.event(billing.SubscriptionCreated), "org_a")
			w.send(subscription, 0)
			w.settle()
			w.learn("org_b")
			w.settle()
			w.connect(to)
			w.settle()
			require.Equal(t, to, w.live())
			for _, name := range organizations {
				want := 0
				if name == to {
					want = 1
				}
				require.Len(t, w.record(name).Subscriptions, want, name)
			}
			w.send(subscription, 0)
			w.settle()
			require.Equal(t, []string{"org_a"}, w.effects()["evt_001"])
		})
	}
}

// The account's owner has waited in vain, and has learnt the account anew: what comes after all is the organization's that it was
// meant for, and the copy goes on.
func TestWhatComesAfterACopyWasHandedOnStays(t *testing.T) {
	r := newRig(t)
	told := func(org string, action *webhooksv1.Command) *kgo.Record {
		action.Id, action.OrganizationId = id.New(id.Command), org
		return command(t, action)
	}
	r.Process(told(org, &webhooksv1.Command{Action: &webhooksv1.Command_ReleaseAccount{ReleaseAccount: &webhooksv1.ReleaseAccount{
		Source: "stripe", Account: "cus_1", ToOrganizationId: "org_3", MovedUnixMs: r.Now.UnixMilli(), Order: 10, Learnt: true,
	}}}))
	out := r.Process(told(org, &webhooksv1.Command{Action: &webhooksv1.Command_AdoptAccount{AdoptAccount: &webhooksv1.AdoptAccount{
		Source: "stripe", Account: "cus_1", Order: 5, FromOrganizationId: "org_2", SettledInvoices: []uint64{7}, SettledUnixMs: []int64{1},
		Subscriptions: []*webhooksv1.Subscription{{Id: "sub_1", CustomerId: "cus_1", Status: "active",
			Position: &webhooksv1.SubscriptionPosition{EventUnixMs: 1}, Items: []*webhooksv1.SubscriptionItem{{LookupKey: "scm_pro"}}}},
	}}}))
	require.Equal(t, "SCM_PRO", r.plan(org))
	require.Empty(t, out.Topic(schemas.InboundUnrouted), "who gets the copy says that it is there")
	on := &webhooksv1.Command{}
	require.Len(t, inboundOf(out), 1)
	require.NoError(t, proto.Unmarshal(inboundOf(out)[0].Value, on))
	require.Equal(t, "org_3", on.OrganizationId)
	require.Len(t, on.GetAdoptAccount().Subscriptions, 1)
	require.Equal(t, org, on.GetAdoptAccount().Subscriptions[0].ElsewhereOrganizationId)
	require.Equal(t, []uint64{7}, on.GetAdoptAccount().SettledInvoices)
}

// holders are those that have the subscription obj_1.
func (w *world) holders() (all []string) {
	for _, name := range organizations {
		for _, s := range w.record(name).Subscriptions {
			if s.ElsewhereOrganizationId == "" {
				all = append(all, name)
			}
		}
	}
	return all
}

func TestASubscriptionThatIsRelabelledGoesToTheOtherOrganization(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"org_a", "org_b", "org_c", "org_a"} {
		w.send(naming(w.event(billing.SubscriptionUpdated), name), 0)
		w.settle()
		require.Equal(t, []string{name}, w.holders())
	}
	plan := func(name string) (plan string, version uint64) {
		snapshot := &webhooksv1.TenantCapabilitySnapshot{}
		require.NoError(t, proto.Unmarshal(w.tasks[name].Newest(schemas.Entitlements, []byte(name)), snapshot))
		return snapshot.Plan, snapshot.Version
	}
	for name, want := range map[string]struct {
		plan    string
		version uint64
	}{"org_a": {"SCM_PRO", 3}, "org_b": {"FREE", 2}, "org_c": {"FREE", 2}} {
		got, version := plan(name)
		require.Equal(t, want.plan, got, name)
		require.Equal(t, want.version, version, name)
	}
	require.Len(t, w.out.Topic(schemas.Events), 7, "each change is told")
}

// Whoever else the account was learnt for meanwhile: what is known of the subscription comes there ahead of the event.
func TestAnOlderEventGivesNothingToAnotherOrganization(t *testing.T) {
	for name, between := range map[string][]string{
		"the other is new":                     {},
		"the other is connected":               {"org_b"},
		"the other was connected":              {"org_b", "org_a"},
		"the other was connected before":       {"org_b", "org_c"},
		"a third is connected":                 {"org_c"},
		"the other is connected after a third": {"org_c", "org_b"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.send(naming(w.event(billing.SubscriptionCreated), "org_a"), 0)
			older := naming(w.event(billing.SubscriptionUpdated), "org_b")
			w.send(naming(w.event(billing.SubscriptionDeleted), "org_a"), 0)
			w.settle()
			for _, org := range between {
				w.learn(org)
				w.settle()
			}
			before := len(w.out.Topic(schemas.Events))
			w.send(older, 0)
			w.settle()
			require.Len(t, w.out.Topic(schemas.Events), before, "nothing is told")
			require.Equal(t, []string{"org_b"}, w.effects()["evt_002"])
			require.Equal(t, []string{"org_a"}, w.holders())
		})
	}
}

// Its edge has not seen that the account is shared: the owner of the account does not see the event.
func TestASubscriptionThatComesBackByAnEdgeThatIsBehind(t *testing.T) {
	w := newWorld(t)
	w.send(naming(w.event(billing.SubscriptionCreated), "org_a"), 0)
	w.settle()
	w.send(naming(w.event(billing.SubscriptionUpdated), "org_b"), 0)
	w.settle()
	w.send(naming(w.event(billing.SubscriptionUpdated), "org_a"), 2)
	require.Len(t, w.inbox["org_a"], 1)
	w.settle()
	require.Equal(t, []string{"org_a"}, w.holders())
}

func TestWhatTellsOfASubscriptionAndCannotBeReadIsADeadLetter(t *testing.T) {
	for name, cmd := range map[string]*webhooksv1.Command{
		"released": {Action: &webhooksv1.Command_ReleaseSubscription{ReleaseSubscription: &webhooksv1.ReleaseSubscription{ToOrganizationId: "org_2"}}},
		"adopted":  {Action: &webhooksv1.Command_AdoptSubscription{AdoptSubscription: &webhooksv1.AdoptSubscription{}}},
		"passed on for ever": {Action: &webhooksv1.Command_AdoptSubscription{AdoptSubscription: &webhooksv1.AdoptSubscription{
			Subscription: &webhooksv1.Subscription{Id: "sub_1", Position: &webhooksv1.SubscriptionPosition{EventUnixMs: 1}}, Passed: maxPassed,
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			cmd.Id, cmd.OrganizationId = id.New(id.Command), org
			require.Len(t, r.Process(command(t, cmd)).Topic(schemas.InboundDead), 1)
		})
	}
}

func TestWhatIsOfOnePartitionIsNotCopied(t *testing.T) {
	r := newRig(t)
	neighbour, stranger := "", ""
	for n := 0; neighbour == "" || stranger == ""; n++ {
		if name := "org_" + string(rune('a'+n)); kafka.PartitionOf(name, streamtest.Partitions) == 0 {
			neighbour = name
		} else {
			stranger = name
		}
	}
	r.Process(stripeEvent("evt_1", billing.InvoicePaid, r.Now, `{"created":1,"data":{"object":{"id":"in_1","customer":"cus_1"}}}`))
	kinds := func(to string) (kinds []string) {
		told := r.release(org, to)
		cmd := &webhooksv1.Command{}
		require.NoError(t, proto.Unmarshal(told.Value, cmd))
		cmd.GetReleaseAccount().Learnt = true
		for _, in := range inboundOf(r.Process(command(t, cmd))) {
			cmd := &webhooksv1.Command{}
			require.NoError(t, proto.Unmarshal(in.Value, cmd))
			switch {
			case cmd.GetRememberEvents() != nil:
				kinds = append(kinds, "remember")
			case cmd.GetAdoptAccount() != nil:
				require.Len(t, cmd.GetAdoptAccount().SettledInvoices, 1)
				kinds = append(kinds, "adopt")
			}
		}
		return kinds
	}
	require.Equal(t, []string{"adopt"}, kinds(neighbour))
	require.Equal(t, []string{"remember", "adopt"}, kinds(stranger))
}

// TestOneEffectWhoeverTheAccountIsLearntFor: events that name an organization, or nobody, are sent and sent again, by edges
// whose routes are old, while the account is moved by API too, and each task goes on when it likes.
func TestOneEffectWhoeverTheAccountIsLearntFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		var events []*kgo.Record
		some := func(label string) string { return rapid.SampledFrom(append(organizations, "", "")).Draw(t, label) }
		steps := []string{"take", "take", "take", "take", "send", "send", "again", "again", "again", "connect", "disconnect", "crash"}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.SampledFrom(steps).Draw(t, "step") {
			case "take":
				w.take(rapid.SampledFrom(append(organizations, owner)).Draw(t, "who"))
			case "send":
				eventType := rapid.SampledFrom([]string{billing.SubscriptionUpdated, billing.InvoicePaid, billing.PaymentFailed}).Draw(t, "type")
				events = append(events, naming(w.event(eventType), some("names")))
				w.send(events[len(events)-1], rapid.IntRange(0, 2).Draw(t, "behind"))
			case "again":
				if len(events) > 0 {
					w.send(rapid.SampledFrom(events).Draw(t, "event"), rapid.IntRange(0, 2).Draw(t, "behind"))
				}
			case "connect":
				w.connect(rapid.SampledFrom(organizations).Draw(t, "to"))
			case "disconnect":
				w.disconnect()
			case "crash":
				w.tasks[rapid.SampledFrom(append(organizations, owner)).Draw(t, "who")].Crash()
			}
		}
		w.settle()
		events = append(events, w.learn("org_a")) // it may have been disconnected
		w.settle()
		for range 2 {
			effects := w.effects()
			require.Len(t, effects, len(events))
			for event, at := range effects {
				require.Len(t, at, 1, "%s took effect at %v", event, at)
			}
			for _, e := range events {
				w.send(e, 0)
			}
			w.settle()
		}
		require.LessOrEqual(t, len(w.holders()), 1, "who has the subscription: %v", w.holders())
		require.Empty(t, w.tasks[owner].Newest(schemas.UnroutedHeld, []byte("!handing-on/stripe/cus_1")))
	})
}

// TestASubscriptionIsOfWhoItsNewestEventNames: events come in any order, by edges whose routes are old, each task goes on when it
// likes, and its transactions abort.
func TestASubscriptionIsOfWhoItsNewestEventNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		var waiting, events []*kgo.Record
		newest := ""
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			newest = rapid.SampledFrom(organizations).Draw(t, "names")
			waiting = append(waiting, naming(w.event(billing.SubscriptionUpdated), newest))
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"take", "take", "take", "send", "again", "crash"}).Draw(t, "step") {
			case "take":
				w.take(rapid.SampledFrom(append(organizations, owner)).Draw(t, "who"))
			case "send":
				if len(waiting) > 0 {
					at := rapid.IntRange(0, len(waiting)-1).Draw(t, "which")
					events = append(events, waiting[at])
					waiting = slices.Delete(waiting, at, at+1)
					w.send(events[len(events)-1], rapid.IntRange(0, 2).Draw(t, "behind"))
				}
			case "again":
				if len(events) > 0 {
					w.send(rapid.SampledFrom(events).Draw(t, "event"), rapid.IntRange(0, 2).Draw(t, "behind"))
				}
			case "crash":
				w.tasks[rapid.SampledFrom(append(organizations, owner)).Draw(t, "who")].Crash()
			}
		}
		for _, e := range waiting {
			w.send(e, 0)
		}
		w.settle()
		require.Equal(t, []string{newest}, w.holders())
		for _, name := range organizations {
			if name != newest && w.record(name).Plan != "" {
				require.Equal(t, "FREE", w.record(name).Plan, name)
			}
		}
		require.Equal(t, "SCM_PRO", w.record(newest).Plan)
	})
}
