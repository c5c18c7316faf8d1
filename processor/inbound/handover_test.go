package inbound

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/plans"
	accounts "github.com/betterdata/webhooks/processor/routing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// world is the owner of cus_1 and three organizations, each of a partition of its own. What one sends to another waits in
// that one's inbox until the test lets it be taken: one owner may stand still while the others go on.
type world struct {
	t     streamtest.TB
	now   time.Time
	tasks map[string]*streamtest.Harness // by organization, the accounts' owner by ""
	inbox map[string][]*kgo.Record
	out   streamtest.Outputs
	// routes are all that the account had; the last one is in force.
	routes []*webhooksv1.Route
	made   int
}

const owner = ""

var organizations = []string{"org_a", "org_b", "org_c"}

func newWorld(t streamtest.TB) *world {
	log := slog.New(slog.DiscardHandler)
	router, err := accounts.New(accounts.Config{
		Handles:      func(_, eventType string) bool { return billing.Handles(eventType) },
		Subscription: billing.SubscriptionOf, Settled: billing.SettledBy,
	}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	w := &world{
		t: t, tasks: map[string]*streamtest.Harness{owner: streamtest.New(t, router.Spec())},
		inbox: map[string][]*kgo.Record{}, routes: []*webhooksv1.Route{{}},
	}
	w.now = w.tasks[owner].Now
	keys, err := seal.NewKeyring(base64.StdEncoding.EncodeToString(make([]byte, 32)))
	require.NoError(t, err)
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 10}, keys)
	require.NoError(t, err)
	for _, name := range organizations {
		in, err := New(Config{Plans: plans.Builtin(), DedupeRetention: 8 * day}, applier, log, prometheus.NewRegistry())
		require.NoError(t, err)
		w.tasks[name] = streamtest.New(t, in.Spec())
	}
	return w
}

// take lets one task take what is first in its inbox, and reports whether there was anything.
func (w *world) take(name string) bool {
	w.now = w.now.Add(10 * time.Millisecond)
	w.tasks[name].Now = w.now
	if len(w.inbox[name]) == 0 {
		return false
	}
	first := w.inbox[name][0]
	w.inbox[name] = w.inbox[name][1:]
	w.post(w.tasks[name].Process(first))
	return true
}

// post puts what a task sends into the inboxes.
func (w *world) post(out streamtest.Outputs) {
	w.out = append(w.out, out...)
	for _, p := range out {
		r := &kgo.Record{Key: p.Record.Key, Value: p.Record.Value, Headers: p.Record.Headers}
		switch p.Topic {
		case schemas.Inbound:
			w.inbox[p.Key] = append(w.inbox[p.Key], r)
		case schemas.InboundUnrouted:
			w.inbox[owner] = append(w.inbox[owner], r)
		case schemas.Routes:
			route := &webhooksv1.Route{}
			require.NoError(w.t, proto.Unmarshal(r.Value, route))
			w.routes = append(w.routes, route)
		}
	}
}

// settle lets all take what there is.
func (w *world) settle() {
	for rounds := 0; ; rounds++ {
		require.Less(w.t, rounds, 10_000, "records go round in circles")
		any := w.take(owner)
		for _, name := range organizations {
			any = w.take(name) || any
		}
		if !any {
			return
		}
	}
}

// send is what an edge does whose copy of the routes is some changes behind.
func (w *world) send(event *kgo.Record, behind int) {
	route := w.routes[max(0, len(w.routes)-1-behind)]
	to, named := route.OrganizationId, kafka.ReadHeader(event.Headers, schemas.HeaderNamedOrganization)
	if route.Learned && named != "" && named != to {
		to = ""
	}
	r := &kgo.Record{Key: []byte(to), Value: event.Value, Headers: headers(
		schemas.HeaderAccount, "cus_1", schemas.HeaderAcceptedAt, w.now.Format(time.RFC3339Nano),
	)}
	for _, h := range event.Headers {
		if h.Key != schemas.HeaderAccount && h.Key != schemas.HeaderAcceptedAt && h.Key != schemas.HeaderOrganization {
			r.Headers = append(r.Headers, h)
		}
	}
	if to != "" {
		r.Headers = append(r.Headers, headers(schemas.HeaderOrganization, to)...)
	}
	w.inbox[to] = append(w.inbox[to], r)
}

// event is a new one; of the subscription's, each is newer than those before it.
func (w *world) event(eventType string) *kgo.Record {
	w.made++
	eventID, created := fmt.Sprintf("evt_%03d", w.made), w.now.Unix()+int64(w.made)
	return stripeEvent(eventID, eventType, w.now, fmt.Sprintf(`{"created":%d,"data":{"object":{"id":"obj_1","customer":"cus_1","status":"active",
		"amount_paid":100,"amount_due":100,"currency":"usd","items":{"data":[{"id":"si_1","price":{"id":"price_1","lookup_key":"scm_pro"}}]}}}}`, created))
}

// live is the organization that edges send to.
func (w *world) live() string { return w.routes[len(w.routes)-1].OrganizationId }

// naming makes an event name an organization itself, "" for none.
func naming(event *kgo.Record, org string) *kgo.Record {
	if org != "" {
		event.Headers = append(event.Headers, headers(schemas.HeaderNamedOrganization, org)...)
	}
	return event
}

// connect is the command by which an organization takes the account over.
func (w *world) connect(org string) {
	w.command(org, &webhooksv1.Command{Action: &webhooksv1.Command_CreateConnection{CreateConnection: &webhooksv1.CreateConnection{
		Connection: &webhooksv1.Connection{Id: id.New(id.Connection), Source: "stripe", Account: "cus_1"}, Move: true,
	}}})
}

// disconnect takes the connection away that there is.
func (w *world) disconnect() {
	connection := &webhooksv1.Connection{}
	require.NoError(w.t, proto.Unmarshal(w.tasks[owner].Get(schemas.Connections, []byte("stripe/cus_1")), connection))
	w.command(connection.OrganizationId, &webhooksv1.Command{Action: &webhooksv1.Command_DeleteConnection{DeleteConnection: &webhooksv1.DeleteConnection{
		ConnectionId: connection.Id, Source: "stripe", Account: "cus_1",
	}}})
}

func (w *world) command(org string, cmd *webhooksv1.Command) {
	cmd.Id, cmd.OrganizationId = id.New(id.Command), org
	value, err := proto.Marshal(cmd)
	require.NoError(w.t, err)
	w.inbox[owner] = append(w.inbox[owner], &kgo.Record{Key: []byte("stripe/cus_1"), Value: value, Headers: headers(
		schemas.HeaderID, cmd.Id, schemas.HeaderSource, schemas.SourceManagement, schemas.HeaderType, schemas.TypeCommand,
	)})
}

// effects says at which organizations each event took effect: that is where its audit rows are.
func (w *world) effects() map[string][]string {
	at := map[string][]string{}
	for _, r := range w.out.Topic(schemas.BillingAudit) {
		row := &webhooksv1.BillingAuditRow{}
		require.NoError(w.t, proto.Unmarshal(r.Value, row))
		at[row.SourceEventId] = append(at[row.SourceEventId], row.OrganizationId)
	}
	return at
}

func (w *world) record(org string) *webhooksv1.BillingRecord {
	record := &webhooksv1.BillingRecord{}
	require.NoError(w.t, proto.Unmarshal(w.tasks[org].Get(schemas.Billing, []byte(org)), record))
	return record
}

func TestAnEventThatIsSentAgainAfterAMoveHasNoEffect(t *testing.T) {
	for name, moves := range map[string][]string{
		"a move":                     {"org_b"},
		"a chain":                    {"org_b", "org_c"},
		"there and back":             {"org_b", "org_a"},
		"round and round":            {"org_b", "org_c", "org_a", "org_b"},
		"to who asks again":          {"org_b", "org_b"},
		"there and back and forth":   {"org_b", "org_a", "org_b"},
		"through everybody and back": {"org_b", "org_c", "org_b", "org_a"},
	} {
		for way, between := range map[string]func(*world){
			"one after the other": (*world).settle,
			"all at once":         func(*world) {},
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				w := newWorld(t)
				w.connect("org_a")
				w.settle()
				events := []*kgo.Record{w.event(billing.SubscriptionCreated), w.event(billing.InvoicePaid), w.event(billing.PaymentFailed)}
				for _, e := range events {
					w.send(e, 0)
				}
				w.settle()
				for _, to := range moves {
					w.connect(to)
					between(w)
				}
				w.settle()
				last := moves[len(moves)-1]
				before := w.record(last)
				for _, e := range events {
					w.send(e, 0)
				}
				w.settle()
				require.True(t, proto.Equal(before, w.record(last)), "nothing has changed")
				require.Equal(t, "SCM_PRO", before.Plan)
				require.Equal(t, map[string][]string{"evt_001": {"org_a"}, "evt_002": {"org_a"}, "evt_003": {"org_a"}}, w.effects())
				for _, name := range organizations {
					if name != last {
						require.Empty(t, w.record(name).Subscriptions, name)
					}
				}
			})
		}
	}
}

// Nobody holds the account when it is connected: the organization that had it last is told all the same.
func TestWhoIsConnectedNextHasWhatTheLastKnew(t *testing.T) {
	w := newWorld(t)
	w.connect("org_a")
	w.settle()
	events := []*kgo.Record{w.event(billing.SubscriptionCreated), w.event(billing.PaymentFailed)}
	for _, e := range events {
		w.send(e, 0)
	}
	w.settle()
	w.disconnect()
	w.settle()
	require.Equal(t, "SCM_PRO", w.record("org_a").Plan, "until another is connected")

	w.connect("org_b")
	w.send(events[1], 0)
	w.settle()
	require.Equal(t, "FREE", w.record("org_a").Plan)
	require.Empty(t, w.record("org_a").FailedInvoices)
	require.Equal(t, "SCM_PRO", w.record("org_b").Plan)
	require.Len(t, w.record("org_b").FailedInvoices, 1)
	require.Equal(t, map[string][]string{"evt_001": {"org_a"}, "evt_002": {"org_a"}}, w.effects())
}

// It is not yet known to the second organization while the first stands still.
func TestAnEventThatIsSentAgainDuringAMoveHasNoEffect(t *testing.T) {
	w := newWorld(t)
	w.connect("org_a")
	w.settle()
	again := w.event(billing.InvoicePaid)
	w.send(again, 0)
	w.settle()

	w.connect("org_b")
	for range 10 {
		w.take(owner)
		w.take("org_b")
		w.send(again, 0)
	}
	w.settle()
	require.Equal(t, map[string][]string{"evt_001": {"org_a"}}, w.effects())
	require.Equal(t, "org_b", w.live(), "and then it is live")
}

// What org_a hands over goes on from org_b, which has had to release the account meanwhile, and comes back to it: an event that
// org_a sends on behind it must not overtake it there.
func TestAnEventDoesNotOvertakeWhatIsKnownOfIt(t *testing.T) {
	w := newWorld(t)
	w.connect("org_a")
	w.settle()
	again := w.event(billing.InvoicePaid)
	w.send(again, 0)
	w.settle()

	for _, to := range []string{"org_b", "org_c", "org_b"} {
		w.connect(to)
		w.take(owner)
	}
	for w.live() == "" { // an edge that has seen nothing of it
		w.routes = w.routes[:len(w.routes)-1]
	}
	w.send(again, 0)
	for _, who := range []string{"org_b", "org_a", "org_c", "org_a"} {
		require.True(t, w.take(who))
	}
	for range 4 { // the events, the account, the account once more, and the event
		require.True(t, w.take("org_b"))
	}
	w.settle()
	require.Equal(t, map[string][]string{"evt_001": {"org_a"}}, w.effects())
}

func TestADeadEventTakesEffectOnceWhereTheAccountWasMovedTo(t *testing.T) {
	w := newWorld(t)
	w.connect("org_a")
	w.settle()
	event := w.event(billing.InvoicePaid)
	unusable := *event
	unusable.Value = []byte("{}")
	w.send(&unusable, 0)
	w.settle()
	w.connect("org_b")
	w.settle()
	w.send(&unusable, 0)
	w.settle()
	require.Len(t, w.out.Topic(schemas.InboundDead), 1, "it is dead already")
	require.Empty(t, w.effects())
	for range 2 {
		w.send(event, 0)
		w.settle()
	}
	require.Equal(t, map[string][]string{"evt_001": {"org_b"}}, w.effects())
}

func TestWhatAnAccountHasSeenIsHandedOverInPieces(t *testing.T) {
	const count = maxRemembered/13 + 1
	r := newRig(t)
	var events []*kgo.Record
	for i := range count {
		events = append(events, stripeEvent(fmt.Sprint("evt_", i), "customer.updated", r.Now, "{}"))
	}
	r.Process(events...)
	out := r.Process(r.release(org, "org_2"))
	var kinds []string
	for _, in := range inboundOf(out) {
		cmd := &webhooksv1.Command{}
		require.NoError(t, proto.Unmarshal(in.Value, cmd))
		switch action := cmd.Action.(type) {
		case *webhooksv1.Command_RememberEvents:
			require.LessOrEqual(t, len(action.RememberEvents.Events), maxRemembered)
			kinds = append(kinds, "remember")
		case *webhooksv1.Command_AdoptAccount:
			kinds = append(kinds, "adopt")
		}
	}
	require.Equal(t, []string{"remember", "remember", "adopt"}, kinds)
	other := newRig(t)
	other.Process(inboundOf(out)...)
	require.Len(t, other.Keys(schemas.InboundSeen), count)
}

func TestAHandOverThatIsAbortedIsMadeOnce(t *testing.T) {
	r, other := newRig(t), newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	r.Abort(r.release(org, "org_2"))
	handed := inboundOf(r.Redeliver())
	require.Len(t, handed, 2)
	other.Abort(handed...)
	require.Empty(t, other.Keys(schemas.InboundSeen))
	require.Empty(t, other.Keys(schemas.Billing))
	out := other.Redeliver()
	require.Len(t, out.Topic(schemas.InboundUnrouted), 1, "the account's owner is told")
	require.Equal(t, r.Keys(schemas.InboundSeen), other.Keys(schemas.InboundSeen))
	require.Equal(t, "SCM_PRO", other.plan("org_2"))
}

func TestAHandOverThatCannotBeReadIsADeadLetter(t *testing.T) {
	r := newRig(t)
	out := r.Process(command(t, &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_RememberEvents{
		RememberEvents: &webhooksv1.RememberEvents{Source: "stripe", Account: "cus_1", Events: []byte("short")},
	}}))
	require.Len(t, out.Topic(schemas.InboundDead), 1)
}

// TestOneEffectWhoeverHoldsTheAccount: events are sent and sent again, by edges whose routes are old, while the account is
// moved and each task goes on when it likes. In the end each event took effect once, and the last
// organization has what the account pays for.
func TestOneEffectWhoeverHoldsTheAccount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		holder := rapid.SampledFrom(organizations).Draw(t, "first holder")
		w.connect(holder)
		w.settle()
		events := []*kgo.Record{w.event(billing.SubscriptionCreated)}
		w.send(events[0], 0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"take", "take", "take", "take", "send", "again", "again", "connect", "disconnect", "crash"}).Draw(t, "step") {
			case "take":
				w.take(rapid.SampledFrom(append(organizations, owner)).Draw(t, "who"))
			case "send":
				eventType := rapid.SampledFrom([]string{billing.SubscriptionUpdated, billing.InvoicePaid, billing.PaymentFailed}).Draw(t, "type")
				events = append(events, w.event(eventType))
				w.send(events[len(events)-1], rapid.IntRange(0, 2).Draw(t, "behind"))
			case "again":
				w.send(rapid.SampledFrom(events).Draw(t, "event"), rapid.IntRange(0, 2).Draw(t, "behind"))
			case "connect":
				holder = rapid.SampledFrom(organizations).Draw(t, "to")
				w.connect(holder)
			case "disconnect":
				w.disconnect()
			case "crash":
				w.tasks[rapid.SampledFrom(append(organizations, owner)).Draw(t, "who")].Crash()
			}
		}
		w.connect(holder) // it may have been disconnected
		w.settle()
		require.Equal(t, holder, w.live())
		effects := w.effects()
		require.Len(t, slices.Collect(maps.Keys(effects)), len(events))
		for event, at := range effects {
			require.Len(t, at, 1, "%s took effect at %v", event, at)
		}
		for _, name := range organizations {
			plan := "FREE"
			if name == holder {
				plan = "SCM_PRO"
			}
			if record := w.record(name); record.OrganizationId != "" {
				require.Equal(t, plan, record.Plan, name)
			}
		}
	})
}
