package routing_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/routing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const handled = "invoice.paid"

// world is a router over one partition.
type world struct {
	*streamtest.Harness
	t   *testing.T
	reg *prometheus.Registry
}

func newWorld(t *testing.T) *world {
	reg := prometheus.NewRegistry()
	router, err := routing.New(routing.Config{
		Handles: func(source, eventType string) bool { return source == "stripe" && eventType == handled },
		Subscription: func(_, _, id string, body []byte) (string, *webhooksv1.SubscriptionPosition) {
			_, subscription, _ := bytes.Cut(body, []byte("of "))
			return string(subscription), &webhooksv1.SubscriptionPosition{EventId: id}
		},
		Settled: func(_, _, _ string, body []byte) (string, int64) {
			_, invoice, _ := bytes.Cut(body, []byte("settles "))
			return string(invoice), 7
		},
	}, slog.New(slog.DiscardHandler), reg)
	require.NoError(t, err)
	return &world{Harness: streamtest.New(t, router.Spec()), t: t, reg: reg}
}

// event is a Stripe event as the edge sends it here; named is the organization that it names itself, "" for none.
func event(sourceID, account, eventType, named string) *kgo.Record {
	r := record(sourceID, account, eventType, fmt.Sprintf(`{"id":%q}`, sourceID))
	if named != "" {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: schemas.HeaderNamedOrganization, Value: []byte(named)})
	}
	return r
}

func record(sourceID, account, eventType, body string) *kgo.Record {
	return &kgo.Record{Value: []byte(body), Headers: []kgo.RecordHeader{
		{Key: schemas.HeaderID, Value: []byte(sourceID)}, {Key: schemas.HeaderSource, Value: []byte("stripe")},
		{Key: schemas.HeaderType, Value: []byte(eventType)}, {Key: schemas.HeaderAccount, Value: []byte(account)},
		{Key: schemas.HeaderEventID, Value: []byte(id.Derive(id.Event, "stripe", sourceID))},
		{Key: schemas.HeaderAcceptedAt, Value: []byte("2026-01-01T00:00:00.000Z")},
	}}
}

func command(org string, cmd *webhooksv1.Command) *kgo.Record {
	cmd.Id, cmd.OrganizationId = id.New(id.Command), org
	value, _ := proto.Marshal(cmd)
	return &kgo.Record{Value: value, Headers: []kgo.RecordHeader{
		{Key: schemas.HeaderSource, Value: []byte(schemas.SourceManagement)}, {Key: schemas.HeaderType, Value: []byte(schemas.TypeCommand)},
	}}
}

func connect(org, account string, move bool) *kgo.Record {
	return command(org, &webhooksv1.Command{Action: &webhooksv1.Command_CreateConnection{CreateConnection: &webhooksv1.CreateConnection{
		Connection: &webhooksv1.Connection{Id: id.New(id.Connection), OrganizationId: org, Source: "stripe", Account: account}, Move: move,
	}}})
}

func disconnect(org, account, connectionID string) *kgo.Record {
	return command(org, &webhooksv1.Command{Action: &webhooksv1.Command_DeleteConnection{DeleteConnection: &webhooksv1.DeleteConnection{
		ConnectionId: connectionID, Source: "stripe", Account: account,
	}}})
}

func (w *world) outcome(out streamtest.Outputs) *webhooksv1.CommandOutcome {
	w.t.Helper()
	records := out.Topic(schemas.CommandOutcomes)
	require.Len(w.t, records, 1)
	outcome := &webhooksv1.CommandOutcome{}
	require.NoError(w.t, proto.Unmarshal(records[0].Value, outcome))
	require.Equal(w.t, outcome.CommandId, string(records[0].Key))
	return outcome
}

// handedOn lists what went to organizations: "org sourceEventID", with " held" where it was.
func handedOn(out streamtest.Outputs) []string {
	var all []string
	for _, r := range out.Topic(schemas.Inbound) {
		if kafka.ReadHeader(r.Headers, schemas.HeaderSource) == schemas.SourceManagement {
			continue
		}
		line := kafka.ReadHeader(r.Headers, schemas.HeaderOrganization) + " " + kafka.ReadHeader(r.Headers, schemas.HeaderID)
		if kafka.ReadHeader(r.Headers, schemas.HeaderRetained) != "" {
			line += " held"
		}
		all = append(all, line)
	}
	return all
}

// rows lists inbound rows: "sourceEventID outcome reason".
func (w *world) rows(out streamtest.Outputs) []string {
	w.t.Helper()
	var all []string
	for _, r := range out.Topic(schemas.InboundRows) {
		var row webhooksv1.InboundRow
		require.NoError(w.t, proto.Unmarshal(r.Value, &row))
		all = append(all, textOf(&row))
	}
	return all
}

func textOf(row *webhooksv1.InboundRow) string {
	return fmt.Sprintf("%s %s %s", row.SourceEventId, row.Outcome, row.Reason)
}

func (w *world) route(account string) string {
	w.t.Helper()
	var route webhooksv1.Route
	require.NoError(w.t, proto.Unmarshal(w.Get(schemas.Routes, []byte("stripe/"+account)), &route))
	return route.OrganizationId
}

func TestEventsWaitForTheirConnection(t *testing.T) {
	w := newWorld(t)
	out := w.Process(event("evt_1", "cus_1", handled, ""), event("evt_2", "cus_2", handled, ""), event("evt_3", "cus_1", handled, ""))
	require.Empty(t, handedOn(out))
	require.Equal(t, []string{"evt_1 unrouted ", "evt_2 unrouted ", "evt_3 unrouted "}, w.rows(out))
	require.Empty(t, w.route("cus_1"))

	out = w.Process(connect("org_1", "cus_1", false))
	require.Equal(t, []string{"org_1 evt_1 held", "org_1 evt_3 held"}, handedOn(out), "in order, and only that account's")
	made := w.outcome(out).GetConnection()
	require.Equal(t, "org_1", made.GetOrganizationId())
	require.Equal(t, "active", made.GetStatus())
	require.Equal(t, w.Now.UnixMilli(), made.GetCreatedUnixMs())
	require.False(t, made.GetLearned())
	require.Equal(t, "org_1", w.route("cus_1"))

	out = w.Process(event("evt_4", "cus_1", handled, ""), event("evt_5", "cus_1", "charge.succeeded", ""))
	require.Equal(t, []string{"org_1 evt_4", "org_1 evt_5"}, handedOn(out), "stragglers are forwarded, whatever their type")
	require.Empty(t, w.rows(out))
}

func TestHandedOnIsWhatCame(t *testing.T) {
	w := newWorld(t)
	in := event("evt_1", "cus_1", handled, "")
	headers, body := append([]kgo.RecordHeader(nil), in.Headers...), string(in.Value)
	w.Process(in)
	out := w.Process(connect("org_1", "cus_1", false)).Topic(schemas.Inbound)
	got := out[len(out)-1]
	require.Equal(t, body, string(got.Value))
	require.Equal(t, append(headers,
		kgo.RecordHeader{Key: schemas.HeaderOrganization, Value: []byte("org_1")},
		kgo.RecordHeader{Key: schemas.HeaderRetained, Value: []byte("held")}), got.Headers)
}

func TestMetadataTeachesTheOrganization(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, ""))
	out := w.Process(event("evt_2", "cus_1", handled, "org_1"))
	require.Equal(t, []string{"org_1 evt_1 held", "org_1 evt_2"}, handedOn(out))
	require.Empty(t, w.rows(out))
	require.Equal(t, "org_1", w.route("cus_1"))

	var learned webhooksv1.Connection
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Connections, []byte("stripe/cus_1")), &learned))
	require.True(t, learned.Learned)
	require.True(t, id.Valid(id.Connection, learned.Id))

	out = w.Process(event("evt_3", "cus_1", handled, ""))
	require.Equal(t, []string{"org_1 evt_3"}, handedOn(out))
}

func TestWhatWasLearntGivesWayToWhatAnEventNames(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	out := w.Process(event("evt_2", "cus_1", handled, "org_2"), event("evt_3", "cus_1", handled, ""))
	require.Equal(t, []string{"org_2 evt_2 held", "org_2 evt_3 held"}, handedOn(w.handOver(out)))
	require.Equal(t, []string{"org_2 evt_4"}, handedOn(w.Process(event("evt_4", "cus_1", handled, ""))),
		"an event that names none goes where the last one did that named one")

	w.handOver(w.Process(connect("org_3", "cus_1", true)))
	out = w.Process(event("evt_5", "cus_1", handled, "org_1"))
	require.Equal(t, []string{"org_3 evt_5"}, handedOn(out), "a connection made by API holds against what an event names")
}

func TestWhatWasLearntHoldsOnceItIsAskedForByAPI(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	var learnt webhooksv1.Connection
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Connections, []byte("stripe/cus_1")), &learnt))

	made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	require.Equal(t, learnt.Id, made.Id)
	require.False(t, made.Learned)
	var route webhooksv1.Route
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Routes, []byte("stripe/cus_1")), &route))
	require.False(t, route.Learned, "edges are told")
	out := w.Process(event("evt_2", "cus_1", handled, "org_2"))
	require.Equal(t, []string{"org_1 evt_2"}, handedOn(out))
}

func TestNamedOrganizationsMustHaveTheFormOfOne(t *testing.T) {
	w := newWorld(t)
	out := w.Process(event("evt_1", "cus_1", handled, "a b"))
	require.Empty(t, handedOn(out))
	require.Equal(t, []string{"evt_1 unrouted "}, w.rows(out))
}

func TestUnhandledTypesAreIgnored(t *testing.T) {
	w := newWorld(t)
	out := w.Process(event("evt_1", "cus_1", "charge.succeeded", "org_1"), event("evt_2", "", "ping", ""))
	require.Equal(t, []string{"evt_1 ignored unhandled_type", "evt_2 ignored unhandled_type"}, w.rows(out))
	require.Empty(t, handedOn(out))
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	require.Empty(t, w.Keys(schemas.Connections))
}

func TestWhatIsToBeIgnoredTakesNoEffect(t *testing.T) {
	w := newWorld(t)
	other := func(sourceID, account, named string) *kgo.Record {
		r := event(sourceID, account, handled, named)
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: schemas.HeaderIgnored, Value: []byte("livemode")})
		return r
	}
	out := w.Process(other("evt_1", "cus_1", "org_1"), other("evt_2", "", "org_1"))
	require.Equal(t, []string{"evt_1 ignored livemode", "evt_2 ignored livemode"}, w.rows(out))
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	require.Empty(t, w.Keys(schemas.Connections), "it teaches nothing")

	w.Process(event("evt_3", "cus_1", handled, "org_1"))
	out = w.Process(other("evt_4", "cus_1", ""))
	require.Equal(t, []string{"evt_4 ignored livemode"}, w.rows(out))
	require.Empty(t, handedOn(out))
}

func TestEventWithoutAccount(t *testing.T) {
	w := newWorld(t)
	out := w.Process(event("evt_1", "", handled, "org_1"), event("evt_2", "", handled, ""))
	require.Equal(t, []string{"org_1 evt_1"}, handedOn(out))
	require.Equal(t, "evt_2 dead no_account", textOf(w.letter(out).Event))
	require.Empty(t, w.Keys(schemas.Connections))
}

// TestALetterGoesToWhoKnowsItsEvent: whoever it is, it is the same for each repeat, and buries it once.
func TestALetterGoesToWhoKnowsItsEvent(t *testing.T) {
	for name, test := range map[string]struct {
		account, reason string
		body            int
	}{
		"no account":       {"", "no_account", 10},
		"too large":        {"cus_1", "too_large", schemas.MaxInboundBody + 1},
		"both":             {"", "too_large", schemas.MaxInboundBody + 1},
		"the largest body": {"", "no_account", schemas.MaxInboundBody},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			sent := func() *kgo.Record { return record("evt_1", test.account, handled, strings.Repeat("x", test.body)) }
			out := w.Process(sent(), sent(), record("evt_2", test.account, handled, strings.Repeat("x", test.body)))
			require.Empty(t, out.Topic(schemas.InboundDead))
			require.Empty(t, out.Topic(schemas.InboundRows))
			var to []int32
			for _, p := range out {
				require.Equal(t, schemas.Inbound, p.Topic)
				letter := readLetter(p.Record)
				require.Equal(t, test.reason, letter.Event.Reason)
				require.Equal(t, test.account, letter.Event.Account)
				require.Equal(t, kafka.PartitionOf(letter.Event.EventId, streamtest.Partitions), p.Partition)
				to = append(to, p.Partition)
			}
			require.Len(t, to, 3)
			require.Equal(t, to[0], to[1])
			require.Equal(t, float64(3), counter(t, w.reg, "forwarded"))
			require.Zero(t, counter(t, w.reg, "dead"), "it is counted where it is buried")
		})
	}
}

func TestWhatHasNoIDIsBuriedByTheRouter(t *testing.T) {
	nameless := event("evt_1", "", handled, "")
	nameless.Headers = slices.DeleteFunc(nameless.Headers, func(h kgo.RecordHeader) bool { return h.Key == schemas.HeaderEventID })
	broken := command("org_1", &webhooksv1.Command{})
	broken.Value = []byte("\xff")
	for reason, in := range map[string]*kgo.Record{"no_account": nameless, "malformed_command": broken} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t)
			out := w.Process(in)
			require.Empty(t, out.Topic(schemas.Inbound))
			letter := &webhooksv1.DeadInbound{}
			require.Len(t, out.Topic(schemas.InboundDead), 1)
			require.NoError(t, proto.Unmarshal(out.Topic(schemas.InboundDead)[0].Value, letter))
			require.Equal(t, reason, letter.Event.Reason)
			require.Len(t, w.rows(out), 1)
			require.Equal(t, float64(1), counter(t, w.reg, "dead"))
		})
	}
}

func TestALetterHasTheRecordAlsoOfAReplay(t *testing.T) {
	w := newWorld(t)
	in := event("evt_1", "", handled, "")
	in.Key, in.Headers = []byte("stripe/"), append(in.Headers, kgo.RecordHeader{Key: "\xff", Value: []byte{}})
	first := w.letter(w.Process(in))
	original := deadletters.Original(first)
	require.Equal(t, schemas.InboundUnrouted, original.Topic)
	require.Equal(t, in.Key, original.Key)
	require.Equal(t, in.Value, original.Value)
	require.Equal(t, in.Headers, original.Headers)

	second := w.letter(w.Process(original)) // of no use still
	require.Equal(t, first.Offset+1, second.Offset)
	second.Offset = first.Offset
	require.True(t, proto.Equal(first, second))
}

// letter is the one that was handed on.
func (w *world) letter(out streamtest.Outputs) (letter *webhooksv1.DeadInbound) {
	w.t.Helper()
	for _, r := range out.Topic(schemas.Inbound) {
		if l := readLetter(r); l != nil {
			require.Nil(w.t, letter, "there is one")
			letter = l
		}
	}
	require.NotNil(w.t, letter)
	return letter
}

func readLetter(r *kgo.Record) *webhooksv1.DeadInbound {
	header := func(key string) string { return kafka.ReadHeader(r.Headers, key) }
	return deadletters.ReadHandedOn(header(schemas.HeaderSource), header(schemas.HeaderType), r.Value)
}

func counter(t *testing.T, reg *prometheus.Registry, result string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "webhooks_router_events_total" && m.Label[0].GetValue() == result {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// TestARecordThatIsReplayedTwiceIsOneEvent: its organization's owner tells by the id that it is the same.
func TestARecordThatIsReplayedTwiceIsOneEvent(t *testing.T) {
	for name, prepare := range map[string]func(*world) streamtest.Outputs{
		"forwarded": func(w *world) streamtest.Outputs {
			w.Process(connect("org_1", "cus_1", false))
			return w.Process(event("evt_1", "cus_1", handled, ""), event("evt_1", "cus_1", handled, ""))
		},
		"held": func(w *world) streamtest.Outputs {
			w.Process(event("evt_1", "cus_1", handled, ""), event("evt_1", "cus_1", handled, ""))
			return w.Process(connect("org_1", "cus_1", false))
		},
		"learnt": func(w *world) streamtest.Outputs {
			return w.Process(event("evt_1", "cus_1", handled, "org_1"), event("evt_1", "cus_1", handled, "org_1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			ids := map[string]int{}
			for _, r := range prepare(w).Topic(schemas.Inbound) {
				if kafka.ReadHeader(r.Headers, schemas.HeaderType) == handled {
					ids[string(r.Key)+" "+kafka.ReadHeader(r.Headers, schemas.HeaderEventID)]++
				}
			}
			require.Equal(t, map[string]int{"org_1 " + id.Derive(id.Event, "stripe", "evt_1"): 2}, ids)
		})
	}
}

func TestHeldHeadersAreHandedOnByteForByte(t *testing.T) {
	w := newWorld(t)
	in := event("evt_1", "cus_1", handled, "")
	hostile := []kgo.RecordHeader{{Key: "\xff\xfe", Value: []byte{0xff}}, {Key: "", Value: nil}, {Key: "\xff\xfe", Value: []byte{}}}
	in.Headers = append(in.Headers, hostile...)
	n := len(in.Headers)
	w.Process(in)
	for _, r := range w.Process(connect("org_1", "cus_1", false)).Topic(schemas.Inbound) {
		if kafka.ReadHeader(r.Headers, schemas.HeaderType) == handled {
			require.Equal(t, in.Headers, r.Headers[:n])
			return
		}
	}
	require.Fail(t, "nothing was handed on")
}

func TestConnectAgainAndByOthers(t *testing.T) {
	w := newWorld(t)
	first := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	again := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	require.True(t, proto.Equal(first, again), "the connection there is")

	refused := w.outcome(w.Process(connect("org_2", "cus_1", false))).GetRefusal()
	require.EqualValues(t, 409, refused.GetStatus())
	require.Equal(t, "org_1", w.route("cus_1"))

	out := w.Process(connect("org_2", "cus_1", true))
	moved := w.outcome(out).GetConnection()
	require.Equal(t, "org_2", moved.GetOrganizationId())
	require.NotEqual(t, first.Id, moved.Id)
	w.handOver(out)
	require.Equal(t, "org_2", w.route("cus_1"))
	require.Equal(t, []string{"org_2 evt_1"}, handedOn(w.Process(event("evt_1", "cus_1", handled, ""))))
}

func TestChangesOfAConnectionAreInOrderWhateverTheClockSays(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, "org_1"))
	moved := w.Process(connect("org_2", "cus_1", true))
	w.Process(disconnect("org_2", "cus_1", w.outcome(moved).GetConnection().Id))
	w.Now = w.Now.Add(-time.Hour)
	again := w.told(w.Process(connect("org_1", "cus_1", false)))[0].GetReleaseAccount()
	require.Greater(t, again.Order, w.told(moved)[0].GetReleaseAccount().Order)
}

// told lists the commands that went to organizations.
func (w *world) told(out streamtest.Outputs) []*webhooksv1.Command {
	w.t.Helper()
	var all []*webhooksv1.Command
	for _, r := range out.Topic(schemas.Inbound) {
		if kafka.ReadHeader(r.Headers, schemas.HeaderType) != schemas.TypeCommand {
			continue
		}
		cmd := &webhooksv1.Command{}
		require.NoError(w.t, proto.Unmarshal(r.Value, cmd))
		require.Equal(w.t, cmd.OrganizationId, kafka.ReadHeader(r.Headers, schemas.HeaderOrganization))
		require.Equal(w.t, schemas.SourceManagement, kafka.ReadHeader(r.Headers, schemas.HeaderSource))
		all = append(all, cmd)
	}
	return all
}

// handOver is what organizations answer that were told to release an account, once it is where it belongs.
func (w *world) handOver(out streamtest.Outputs) streamtest.Outputs {
	w.t.Helper()
	var answers []*kgo.Record
	for _, told := range w.told(out) {
		if release := told.GetReleaseAccount(); release != nil {
			answers = append(answers, command(release.ToOrganizationId, &webhooksv1.Command{Action: &webhooksv1.Command_AccountAdopted{
				AccountAdopted: &webhooksv1.AccountAdopted{Source: release.Source, Account: release.Account, Order: release.Order},
			}}))
		}
	}
	require.NotEmpty(w.t, answers, "nobody was told to release anything")
	return w.Process(answers...)
}

func TestAMovedAccountWaitsUntilItIsHandedOver(t *testing.T) {
	w := newWorld(t)
	w.Process(connect("org_1", "cus_1", false))
	moved := w.Process(connect("org_2", "cus_1", true))
	require.Empty(t, w.route("cus_1"))
	out := w.Process(event("evt_1", "cus_1", handled, ""), event("evt_2", "cus_1", "charge.succeeded", ""))
	require.Empty(t, handedOn(out))
	require.Equal(t, []string{"evt_1 unrouted ", "evt_2 unrouted "}, w.rows(out))
	w.Crash()
	require.Empty(t, w.Advance(w.Now), "there is nothing to do")
	require.False(t, w.Woken())
	out = w.handOver(moved)
	require.Equal(t, []string{"org_2 evt_1 held", "org_2 evt_2 held"}, handedOn(out))
	require.Equal(t, "org_2", w.route("cus_1"))
	require.Empty(t, out.Topic(schemas.CommandOutcomes))
	require.Empty(t, w.Keys(schemas.UnroutedHeld), "nothing is left of it")
	require.Empty(t, w.handOver(moved), "an answer that nobody waits for")
}

func TestAnAccountThatIsMovedOnWaitsForAllOfItsHandOvers(t *testing.T) {
	w := newWorld(t)
	w.Process(connect("org_1", "cus_1", false))
	first := w.Process(connect("org_2", "cus_1", true))
	second := w.Process(connect("org_3", "cus_1", true))
	w.Process(event("evt_1", "cus_1", handled, ""))
	require.Empty(t, handedOn(w.handOver(second)))
	require.Empty(t, w.route("cus_1"))
	w.Process(connect("org_3", "cus_1", false))
	require.Empty(t, w.route("cus_1"), "asking again makes it live no earlier")
	require.Equal(t, []string{"org_3 evt_1 held"}, handedOn(w.handOver(first)))
	require.Equal(t, "org_3", w.route("cus_1"))
}

func TestAnAccountThatIsDisconnectedWhileItIsHandedOver(t *testing.T) {
	w := newWorld(t)
	w.Process(connect("org_1", "cus_1", false))
	moved := w.Process(connect("org_2", "cus_1", true))
	w.Process(disconnect("org_2", "cus_1", w.outcome(moved).GetConnection().Id))
	require.Empty(t, handedOn(w.Process(event("evt_1", "cus_1", handled, "org_2"))))
	require.Empty(t, w.route("cus_1"))
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(w.handOver(moved)))
	require.Equal(t, "org_2", w.route("cus_1"))
}

func TestOrganizationsAreToldOfTheirAccounts(t *testing.T) {
	w := newWorld(t)
	adopted := func(out streamtest.Outputs, org string) {
		t.Helper()
		told := w.told(out)
		require.Len(t, told, 1)
		require.Equal(t, org, told[0].OrganizationId)
		adopt := told[0].GetAdoptAccount()
		require.Equal(t, []string{"stripe", "cus_1"}, []string{adopt.GetSource(), adopt.GetAccount()})
		require.Empty(t, adopt.Subscriptions)
	}
	adopted(w.Process(connect("org_1", "cus_1", false)), "org_1")
	require.Empty(t, w.told(w.Process(connect("org_1", "cus_1", false))), "nothing new")

	told := w.told(w.Process(connect("org_2", "cus_1", true)))
	require.Len(t, told, 1)
	require.Equal(t, "org_1", told[0].OrganizationId)
	release := told[0].GetReleaseAccount()
	require.Equal(t, []string{"stripe", "cus_1", "org_2"}, []string{release.Source, release.Account, release.ToOrganizationId})

	var moved webhooksv1.Connection
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Connections, []byte("stripe/cus_1")), &moved))
	w.Process(disconnect("org_2", "cus_1", moved.Id))
	w.Process(event("evt_1", "cus_2", handled, ""))
	out := w.Process(event("evt_2", "cus_2", handled, "org_1"))
	require.Equal(t, "cus_2", w.told(out)[0].GetAdoptAccount().GetAccount())
	require.Equal(t, schemas.TypeCommand, kafka.ReadHeader(out.Topic(schemas.Inbound)[0].Headers, schemas.HeaderType), "before the events")
}

func TestNewAccessTokenIsTaken(t *testing.T) {
	w := newWorld(t)
	first := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	in := command("org_1", &webhooksv1.Command{Action: &webhooksv1.Command_CreateConnection{CreateConnection: &webhooksv1.CreateConnection{
		Connection: &webhooksv1.Connection{Id: id.New(id.Connection), Source: "stripe", Account: "cus_1", SealedAccessToken: []byte("sealed")},
	}}})
	again := w.outcome(w.Process(in)).GetConnection()
	require.Equal(t, first.Id, again.Id)
	require.Equal(t, "sealed", string(again.SealedAccessToken))
}

func TestDisconnect(t *testing.T) {
	w := newWorld(t)
	made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	require.EqualValues(t, 404, w.outcome(w.Process(disconnect("org_2", "cus_1", made.Id))).GetRefusal().GetStatus())
	require.EqualValues(t, 404, w.outcome(w.Process(disconnect("org_1", "cus_1", "con_other"))).GetRefusal().GetStatus())
	require.EqualValues(t, 404, w.outcome(w.Process(disconnect("org_1", "cus_2", made.Id))).GetRefusal().GetStatus())

	require.NotNil(t, w.outcome(w.Process(disconnect("org_1", "cus_1", made.Id))).GetDeleted())
	require.Empty(t, w.route("cus_1"))
	require.Empty(t, handedOn(w.Process(event("evt_1", "cus_1", handled, ""))))
	require.Equal(t, []string{"org_2 evt_1 held"}, handedOn(w.handOver(w.Process(connect("org_2", "cus_1", false)))))
}

func TestWhoWasConnectedLastHandsTheAccountOver(t *testing.T) {
	for name, next := range map[string]*kgo.Record{
		"a connection by API":     connect("org_2", "cus_1", false),
		"a connection by a move":  connect("org_2", "cus_1", true),
		"one that an event names": event("evt_1", "cus_1", handled, "org_2"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
			w.Process(disconnect("org_1", "cus_1", made.Id))
			require.Empty(t, w.Keys(schemas.Connections))
			w.Crash()

			out := w.Process(next)
			told := w.told(out)
			require.Len(t, told, 1)
			require.Equal(t, "org_1", told[0].OrganizationId)
			require.Equal(t, "org_2", told[0].GetReleaseAccount().GetToOrganizationId())
			require.Empty(t, w.route("cus_1"))
			w.Crash()
			w.handOver(out)
			require.Equal(t, "org_2", w.route("cus_1"))
			require.Empty(t, w.Keys(schemas.UnroutedHeld), "and is forgotten")
		})
	}
}

func TestWhoIsConnectedAgainHasTheAccountStill(t *testing.T) {
	for name, next := range map[string]*kgo.Record{
		"by API":      connect("org_1", "cus_1", false),
		"by an event": event("evt_1", "cus_1", handled, "org_1"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
			w.Process(disconnect("org_1", "cus_1", made.Id))
			require.Empty(t, w.told(w.Process(next)))
			require.Equal(t, "org_1", w.route("cus_1"))
			require.Empty(t, w.Keys(schemas.UnroutedHeld))
		})
	}
}

func TestADisconnectionThatIsAbortedLeavesNoTrace(t *testing.T) {
	w := newWorld(t)
	made := w.outcome(w.Process(connect("org_1", "cus_1", false))).GetConnection()
	w.Abort(disconnect("org_1", "cus_1", made.Id))
	require.Equal(t, "org_1", w.route("cus_1"))
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	w.Redeliver()
	require.Equal(t, []string{"!holders/stripe/cus_1"}, w.Keys(schemas.UnroutedHeld))
}

// A command that the organization's owner handed on is concluded there, and answered there.
func TestConclusionsGoBackToWhoHandedTheCommandOn(t *testing.T) {
	guarded := func(r *kgo.Record) (*kgo.Record, *webhooksv1.Command) {
		cmd := &webhooksv1.Command{}
		require.NoError(t, proto.Unmarshal(r.Value, cmd))
		cmd.IdempotencyKey = &webhooksv1.IdempotencyKey{Hash: []byte("hash"), Fingerprint: []byte("fingerprint")}
		r.Value, _ = proto.Marshal(cmd)
		return r, cmd
	}
	conclusions := func(out streamtest.Outputs) (list []*webhooksv1.Command) {
		for _, p := range out {
			cmd := &webhooksv1.Command{}
			if p.Topic != schemas.Inbound || proto.Unmarshal(p.Record.Value, cmd) != nil || cmd.GetConcludeCommand() == nil {
				continue
			}
			require.Equal(t, cmd.OrganizationId, p.Key)
			require.Equal(t, schemas.TypeCommand, kafka.ReadHeader(p.Record.Headers, schemas.HeaderType))
			list = append(list, cmd)
		}
		return list
	}
	w := newWorld(t)
	in, cmd := guarded(connect("org_1", "cus_1", false))
	out := w.Process(in)
	require.Empty(t, out.Topic(schemas.CommandOutcomes))
	all := conclusions(out)
	require.Len(t, all, 1)
	require.Equal(t, "org_1", all[0].OrganizationId)
	require.NotEqual(t, cmd.Id, all[0].Id)
	require.Equal(t, "hash", string(all[0].GetConcludeCommand().KeyHash))
	require.Equal(t, cmd.Id, all[0].GetConcludeCommand().Outcome.CommandId)
	require.Equal(t, cmd.GetCreateConnection().Connection.Id, all[0].GetConcludeCommand().Outcome.GetConnection().GetId())
	require.Equal(t, "org_1", w.route("cus_1"))

	in, _ = guarded(connect("org_2", "cus_1", false))
	out = w.Process(in)
	require.Empty(t, out.Topic(schemas.CommandOutcomes))
	all = conclusions(out)
	require.Len(t, all, 1)
	require.Equal(t, "org_2", all[0].OrganizationId)
	require.Equal(t, "account_taken", all[0].GetConcludeCommand().Outcome.GetRefusal().GetCode())
}

func TestCommandThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	in := command("org_1", &webhooksv1.Command{})
	require.EqualValues(t, 400, w.outcome(w.Process(in)).GetRefusal().GetStatus())

	in = command("org_1", &webhooksv1.Command{})
	in.Value = []byte{0xff}
	require.Equal(t, []string{" dead malformed_command"}, w.rows(w.Process(in)))
}

// TestThousandsHeldAreHandedOnInPieces checks that no transaction is overfull, that the route is written only with the
// last piece, and that what comes meanwhile stays behind.
func TestThousandsHeldAreHandedOnInPieces(t *testing.T) {
	const count = 1000
	w := newWorld(t)
	for i := range count {
		w.Process(event(fmt.Sprintf("evt_%04d", i), "cus_1", handled, ""))
	}
	out := w.Process(connect("org_1", "cus_1", false))
	require.NotNil(t, w.outcome(out).GetConnection())
	all := handedOn(out)
	require.Less(t, len(all), count)
	require.Empty(t, w.route("cus_1"))

	all = append(all, handedOn(w.Process(event("evt_late", "cus_1", handled, "")))...)
	w.Crash()
	for w.route("cus_1") == "" {
		w.WaitWoken()
		piece := handedOn(w.Advance(w.Now))
		require.NotEmpty(t, piece)
		all = append(all, piece...)
	}
	require.Len(t, all, count+1)
	for i := range count {
		require.Equal(t, fmt.Sprintf("org_1 evt_%04d held", i), all[i])
	}
	require.Equal(t, "org_1 evt_late held", all[count])
	require.Empty(t, w.Keys(schemas.UnroutedHeld))
	require.Empty(t, handedOn(w.Advance(w.Now)))
}

func TestAbortHandsOnAgain(t *testing.T) {
	w := newWorld(t)
	for i := range 600 {
		w.Process(event(fmt.Sprintf("evt_%04d", i), "cus_1", handled, ""))
	}
	w.Abort(connect("org_1", "cus_1", false))
	require.Empty(t, w.route("cus_1"))
	all := handedOn(w.Redeliver())
	for w.route("cus_1") == "" {
		w.WaitWoken()
		all = append(all, handedOn(w.Advance(w.Now))...)
	}
	require.Len(t, all, 600)
}

func TestMoveAndDisconnectWhileHandingOn(t *testing.T) {
	w := newWorld(t)
	for i := range 600 {
		w.Process(event(fmt.Sprintf("evt_%04d", i), "cus_1", handled, ""))
	}
	first := len(handedOn(w.Process(connect("org_1", "cus_1", false))))
	out := w.Process(connect("org_2", "cus_1", true))
	require.Empty(t, handedOn(out))
	moved := handedOn(w.handOver(out))
	require.NotEmpty(t, moved)
	require.Equal(t, fmt.Sprintf("org_2 evt_%04d held", first), moved[0])

	connectionID := ""
	var connection webhooksv1.Connection
	require.NoError(t, proto.Unmarshal(w.Get(schemas.Connections, []byte("stripe/cus_1")), &connection))
	connectionID = connection.Id
	w.Process(disconnect("org_2", "cus_1", connectionID))
	rest := len(w.Keys(schemas.UnroutedHeld)) - 1 // and who held the account
	require.Equal(t, 600-first-len(moved), rest, "what was not handed on is kept, without a marker")
	require.Empty(t, handedOn(w.Advance(w.Now)))
}

func TestAccountsThatPrefixEachOther(t *testing.T) {
	w := newWorld(t)
	w.Process(event("evt_1", "cus_1", handled, ""), event("evt_2", "cus_1/00000000000000000009", handled, ""), event("evt_3", "cus_10", handled, ""))
	require.Equal(t, []string{"org_1 evt_1 held"}, handedOn(w.Process(connect("org_1", "cus_1", false))))
}

func FuzzRouter(f *testing.F) {
	f.Add("evt_1", "cus_1", handled, `{"data":{"object":{"metadata":{"org_id":"org_1"}}}}`)
	f.Fuzz(func(t *testing.T, sourceID, account, eventType, body string) {
		w := newWorld(t)
		out := w.Process(record(sourceID, account, eventType, body))
		traces := len(out.Topic(schemas.Inbound)) + len(out.Topic(schemas.InboundRows))
		require.Positive(t, traces, "every event leaves a trace")
	})
}

// A transaction that hands on much for others goes on to do so for this one.
func TestWhatIsHandedOnAtOnceDoesNotDependOnOthers(t *testing.T) {
	w := newWorld(t)
	for i := range 250 {
		w.Process(event(fmt.Sprintf("evt_%d", i), "cus_1", handled, ""), event(fmt.Sprintf("evt_%d", 1000+i), "cus_2", handled, ""))
	}
	out := w.Process(connect("org_1", "cus_1", false), connect("org_2", "cus_2", false), connect("org_3", "cus_2", true))
	require.Len(t, handedOn(out), 500)
	for _, line := range handedOn(out) {
		require.NotContains(t, line, "org_3")
	}
}
