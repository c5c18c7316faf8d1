package routing_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// sharing is a world whose cus_1 was learnt for org_1, and then for org_2.
func sharing(t *testing.T) *world {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	w.handOver(w.Process(event("evt_2", "cus_1", handled, "org_2")))
	return w
}

// releases lists who is told to hand cus_1 to whom: "org to other", with " a copy" where it keeps what it has, and " and stays"
// where it is connected after that too.
func (w *world) releases(out streamtest.Outputs) []string {
	w.t.Helper()
	var all []string
	for _, cmd := range w.told(out) {
		if r := cmd.GetReleaseAccount(); r != nil {
			line := fmt.Sprintf("%s to %s", cmd.OrganizationId, r.ToOrganizationId)
			if r.Learnt {
				line += " a copy"
			}
			if r.Stays {
				line += " and stays"
			}
			all = append(all, line)
		}
	}
	return all
}

// handOverAll answers releases until there are none, and returns all that there was.
func (w *world) handOverAll(out streamtest.Outputs) streamtest.Outputs {
	w.t.Helper()
	for next := out; len(w.releases(next)) > 0; {
		next = w.handOver(next)
		out = append(out, next...)
	}
	return out
}

func TestAnAccountThatIsLearntAnewWaitsForWhatTheFirstKnows(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	require.Equal(t, "org_1", w.route("cus_1"))

	learnt := w.Process(event("evt_2", "cus_1", handled, "org_2"))
	require.Equal(t, []string{"org_1 to org_2 a copy"}, w.releases(learnt))
	require.Empty(t, handedOn(learnt))
	require.Equal(t, []string{"evt_2 unrouted "}, w.rows(learnt))
	require.Nil(t, w.Get(schemas.Routes, []byte("stripe/cus_1")))
	require.Empty(t, handedOn(w.Process(event("evt_3", "cus_1", handled, ""), event("evt_4", "cus_1", handled, "org_2"))))
	w.Crash()
	require.Equal(t, []string{"org_2 evt_2 held", "org_2 evt_3 held", "org_2 evt_4 held"}, handedOn(w.handOver(learnt)))
}

func TestEdgesFollowNoRouteOfASharedAccount(t *testing.T) {
	w := sharing(t)
	require.Empty(t, w.route("cus_1"))
	w.Crash()
	out := w.Process(event("evt_3", "cus_1", handled, ""), event("evt_4", "cus_1", handled, "org_2"))
	require.Equal(t, []string{"org_2 evt_3", "org_2 evt_4"}, handedOn(out), "they are forwarded, not held")
	require.Empty(t, w.rows(out))
}

func TestASharedAccountGoesToAndFroOneStepAfterTheOther(t *testing.T) {
	w := sharing(t)
	back := w.Process(event("evt_3", "cus_1", handled, "org_1"))
	require.Equal(t, []string{"org_2 to org_1 a copy"}, w.releases(back))
	waits := w.Process(event("evt_4", "cus_1", handled, ""), event("evt_5", "cus_1", handled, "org_2"), event("evt_6", "cus_1", handled, ""))
	require.Empty(t, w.releases(waits), "first things first")
	w.Crash()

	forth := w.handOver(back)
	require.Equal(t, []string{"org_1 evt_3 held", "org_1 evt_4 held"}, handedOn(forth), "up to the one that teaches")
	require.Equal(t, []string{"org_1 to org_2 a copy"}, w.releases(forth))
	require.Equal(t, 1, w.handingOver())
	require.Equal(t, []string{"org_2 evt_5 held", "org_2 evt_6 held"}, handedOn(w.handOver(forth)))

	require.Greater(t, w.told(forth)[0].GetReleaseAccount().Order, w.told(back)[0].GetReleaseAccount().Order)
}

// evt_1 to evt_9 occurred one after the other. Whatever is sent in between and again, those that name nobody are of the
// organization that the newest names, as far as it is known.
func TestOnlyANewerEventTeaches(t *testing.T) {
	named := map[string]string{"evt_3": "org_1", "evt_5": "org_2", "evt_7": "org_1"}
	for name, c := range map[string]struct {
		sent []string
		want string
	}{
		"in order":                     {[]string{"evt_3", "evt_5"}, "org_2"},
		"the older last":               {[]string{"evt_5", "evt_3"}, "org_2"},
		"sent again":                   {[]string{"evt_3", "evt_5", "evt_3"}, "org_2"},
		"there and back":               {[]string{"evt_3", "evt_5", "evt_7"}, "org_1"},
		"there and back, mixed":        {[]string{"evt_5", "evt_7", "evt_3"}, "org_1"},
		"there and back, sent again":   {[]string{"evt_3", "evt_5", "evt_7", "evt_5"}, "org_1"},
		"the newest first":             {[]string{"evt_7", "evt_5", "evt_3"}, "org_1"},
		"an older one behind a shared": {[]string{"evt_3", "evt_5", "evt_7", "evt_3", "evt_5"}, "org_1"},
		"the newest before the middle": {[]string{"evt_3", "evt_7", "evt_5"}, "org_1"},
		"a newer one of the same":      {[]string{"evt_5", "evt_3", "evt_7", "evt_5"}, "org_1"},
	} {
		for way, between := range map[string]func(*world, streamtest.Outputs) streamtest.Outputs{
			"one after the other": (*world).handOverAll,
			"all at once":         func(_ *world, out streamtest.Outputs) streamtest.Outputs { return out },
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				w := newWorld(t)
				var out streamtest.Outputs
				for _, e := range c.sent {
					out = append(out, between(w, w.Process(event(e, "cus_1", handled, named[e])))...)
				}
				out = append(out, w.Process(event("evt_0", "cus_1", handled, ""))...)
				out = w.handOverAll(out)
				got := map[string][]string{}
				for _, line := range handedOn(out) {
					f := strings.Fields(line)
					got[f[1]] = append(got[f[1]], f[0])
				}
				require.Equal(t, []string{c.want}, got["evt_0"])
				for _, e := range c.sent {
					require.Contains(t, got, e)
					for _, org := range got[e] {
						require.Equal(t, named[e], org, "what names an organization is its own")
					}
				}
			})
		}
	}
}

func TestWhoIsNamedByAnOlderEventIsIntroducedOnce(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_5", "cus_1", handled, "org_1"))
	out := w.Process(event("evt_2", "cus_1", handled, "org_2"))
	require.Equal(t, []string{"org_1 to org_2 a copy and stays"}, w.releases(out))
	require.Equal(t, []string{"evt_2 unrouted "}, w.rows(out))
	require.Empty(t, handedOn(w.Process(event("evt_6", "cus_1", handled, ""))))
	w.Crash()
	require.Equal(t, []string{"org_2 evt_2 held", "org_1 evt_6 held"}, handedOn(w.handOver(out)))
	require.Empty(t, w.route("cus_1"), "it is shared")

	again := w.Process(event("evt_2", "cus_1", handled, "org_2"), event("evt_7", "cus_1", handled, ""))
	require.Empty(t, w.releases(again))
	require.Equal(t, []string{"org_2 evt_2", "org_1 evt_7"}, handedOn(again))
}

// What is held is handed on in pieces, and in one of them is an event that teaches.
func TestAnAccountIsLearntAnewInTheMidstOfHandingOn(t *testing.T) {
	w := newWorld(t)
	for i := range 1800 {
		w.Process(event(fmt.Sprintf("evt_%04d", i), "cus_1", handled, ""))
	}
	made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	w.Process(event("evt_teaches", "cus_1", handled, "org_2"))
	w.Process(disconnect("org_1", "cus_1", made.Id))
	first := w.Process(event("evt_first", "cus_1", handled, "org_1"))
	all := handedOn(first)
	w.Crash()
	out := streamtest.Outputs{}
	for len(w.releases(out)) == 0 {
		w.WaitWoken()
		out = w.Advance(w.Now)
		all = append(all, handedOn(out)...)
	}
	require.Equal(t, []string{"org_1 to org_2 a copy"}, w.releases(out))
	require.Positive(t, w.told(out)[0].GetReleaseAccount().Order)
	require.NotContains(t, all, "org_1 evt_teaches held")
	back := w.handOver(out)
	require.Equal(t, []string{"org_2 evt_teaches held", "org_1 evt_first held"}, handedOn(back))
	require.Empty(t, w.releases(back), "the one that came behind it is older")
}

func TestWhoIsConnectedByAPIHasASharedAccountAlone(t *testing.T) {
	for name, c := range map[string]struct {
		to       string
		releases []string
	}{
		"a third":                         {"org_3", []string{"org_2 to org_3", "org_1 to org_3"}},
		"who it was learnt for last":      {"org_2", []string{"org_1 to org_2"}},
		"who it was learnt for before it": {"org_1", []string{"org_2 to org_1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := sharing(t)
			out := w.Process(connect(c.to, "cus_1", true))
			require.NotNil(t, w.outcome(out).GetConnection())
			require.Equal(t, c.releases, w.releases(out))
			w.Process(event("evt_3", "cus_1", handled, "org_1"))
			w.Crash()
			require.Equal(t, []string{c.to + " evt_3 held"}, handedOn(w.handOver(out)))
			require.Equal(t, c.to, w.route("cus_1"), "and edges follow its route")
			require.Empty(t, w.Keys(schemas.UnroutedHeld))
		})
	}
}

func TestASharedAccountWaitsForEverybodyWhoHandsItOver(t *testing.T) {
	w := sharing(t)
	out := w.Process(connect("org_3", "cus_1", true))
	require.Len(t, w.releases(out), 2)
	w.Process(event("evt_3", "cus_1", handled, ""))
	require.Empty(t, handedOn(w.handOver(out.Emitted()[:1])))
	require.Equal(t, []string{"org_3 evt_3 held"}, handedOn(w.handOver(out.Emitted()[1:2])))
}

// An API call has ended its connection to org_2: that one hands all it has to the next, whoever keeps the rest.
func TestASharedAccountThatIsDisconnected(t *testing.T) {
	w := sharing(t)
	connection := &webhooksv1.Connection{}
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Connections, []byte("stripe/cus_1")), connection))
	w.Process(disconnect("org_2", "cus_1", connection.Id))
	out := w.Process(event("evt_3", "cus_1", handled, "org_3"))
	require.Equal(t, []string{"org_2 to org_3"}, w.releases(out))
	w.handOver(out)
	require.Equal(t, []string{"org_3 to org_1 a copy"}, w.releases(w.Process(event("evt_4", "cus_1", handled, "org_1"))))
	require.Equal(t, []string{"org_1 to org_2", "org_3 to org_2"}, w.releases(w.Process(connect("org_2", "cus_1", true))))
}

func TestAnAccountThatIsLearntAnewInATransactionThatIsAborted(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	w.Abort(event("evt_2", "cus_1", handled, "org_2"))
	require.Equal(t, "org_1", w.route("cus_1"))
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	require.Zero(t, w.handingOver())
	require.Equal(t, []string{"org_2 evt_2 held"}, handedOn(w.handOver(w.Redeliver())))
}

// of is an event of a subscription.
func of(subscription, sourceID, named string) *kgo.Record {
	r := event(sourceID, "cus_1", handled, named)
	r.Value = []byte("of " + subscription)
	return r
}

// settling is an event that settles an invoice.
func settling(invoice, sourceID, named string) *kgo.Record {
	r := event(sourceID, "cus_1", handled, named)
	r.Value = []byte("settles " + invoice)
	return r
}

// partings lists what goes to organizations of subscriptions, invoices and their events, in order: "org: sub_1 is other's since
// evt_1", "org: in_1 is settled".
func (w *world) partings(out streamtest.Outputs) []string {
	w.t.Helper()
	var all []string
	for _, r := range out.Topic(schemas.Inbound) {
		cmd := &webhooksv1.Command{}
		if kafka.ReadHeader(r.Headers, schemas.HeaderType) != schemas.TypeCommand {
			all = append(all, kafka.ReadHeader(r.Headers, schemas.HeaderOrganization)+" "+kafka.ReadHeader(r.Headers, schemas.HeaderID))
		} else if require.NoError(w.t, proto.Unmarshal(r.Value, cmd)); cmd.GetReleaseSubscription() != nil {
			r := cmd.GetReleaseSubscription()
			all = append(all, fmt.Sprintf("%s: %s is %s's since %s", cmd.OrganizationId, r.SubscriptionId, r.ToOrganizationId, r.Position.EventId))
		} else if s := cmd.GetSettleInvoice(); s != nil {
			require.EqualValues(w.t, 7, s.SettledUnixMs)
			all = append(all, fmt.Sprintf("%s: %s is settled", cmd.OrganizationId, s.InvoiceId))
		}
	}
	return all
}

func TestWhoSharesAnAccountIsToldWhoseASubscriptionIsAheadOfItsEvent(t *testing.T) {
	w := sharing(t)
	require.Equal(t, []string{"org_1: sub_1 is org_2's since evt_3", "org_2 evt_3"}, w.partings(w.Process(of("sub_1", "evt_3", "org_2"))))
	require.Equal(t, []string{"org_1: sub_1 is org_2's since evt_4", "org_2 evt_4"}, w.partings(w.Process(of("sub_1", "evt_4", ""))))
	require.Equal(t, []string{"org_2 evt_5"}, w.partings(w.Process(event("evt_5", "cus_1", handled, ""))), "an event of none")

	held := w.Process(of("sub_1", "evt_6", "org_3"), of("sub_2", "evt_7", ""))
	require.Empty(t, w.partings(held))
	w.Crash()
	require.Equal(t, []string{
		"org_1: sub_1 is org_3's since evt_6", "org_2: sub_1 is org_3's since evt_6", "org_3 evt_6",
		"org_1: sub_2 is org_3's since evt_7", "org_2: sub_2 is org_3's since evt_7", "org_3 evt_7",
	}, w.partings(w.handOver(held)))
}

// The failure may have come to any of them.
func TestWhoSharesAnAccountIsToldOfInvoicesThatAreSettled(t *testing.T) {
	w := sharing(t)
	require.Equal(t, []string{"org_1: in_1 is settled", "org_2 evt_3"}, w.partings(w.Process(settling("in_1", "evt_3", ""))))
	require.Equal(t, []string{"org_2: in_1 is settled", "org_1 evt_1"}, w.partings(w.Process(settling("in_1", "evt_1", "org_1"))))
	w = newWorld(t)
	require.Equal(t, []string{"org_1 evt_1"}, w.partings(w.Process(settling("in_1", "evt_1", "org_1"))))
}

func TestNobodyIsToldOfSubscriptionsWhoseAccountIsNotShared(t *testing.T) {
	w := newWorld(t)
	require.Equal(t, []string{"org_1 evt_1"}, w.partings(w.Process(of("sub_1", "evt_1", "org_1"))))
	require.Equal(t, []string{"org_1 evt_2"}, w.partings(w.Process(of("sub_1", "evt_2", ""))))
	w = sharing(t)
	w.handOver(w.Process(connect("org_3", "cus_1", true)))
	require.Equal(t, []string{"org_3 evt_3"}, w.partings(w.Process(of("sub_1", "evt_3", "org_1"))))
}
