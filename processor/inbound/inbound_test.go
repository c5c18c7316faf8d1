package inbound

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
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
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org = "org_1"
	day = 24 * time.Hour
)

// rig is a task with its harness and metrics.
type rig struct {
	*streamtest.Harness
	t   *testing.T
	reg *prometheus.Registry
}

func newInbound(t testing.TB, reg *prometheus.Registry, change ...func(*Config)) *Inbound {
	keys, err := seal.NewKeyring(base64.StdEncoding.EncodeToString(make([]byte, 32)))
	require.NoError(t, err)
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 10}, keys)
	require.NoError(t, err)
	cfg := Config{
		Plans: plans.Builtin(), DedupeRetention: 8 * day, DedupeBySource: map[string]time.Duration{"stripe": 32 * day},
	}
	for _, c := range change {
		c(&cfg)
	}
	i, err := New(cfg, applier, slog.New(slog.DiscardHandler), reg)
	require.NoError(t, err)
	return i
}

func newRig(t *testing.T, change ...func(*Config)) rig {
	reg := prometheus.NewRegistry()
	return rig{streamtest.New(t, newInbound(t, reg, change...).Spec()), t, reg}
}

// stripeEvent is an inbound record as the edge writes it.
func stripeEvent(eventID, eventType string, acceptedAt time.Time, body string) *kgo.Record {
	return &kgo.Record{Key: []byte(org), Value: []byte(body), Headers: headers(
		schemas.HeaderID, eventID,
		schemas.HeaderSource, schemas.SourceStripe,
		schemas.HeaderType, eventType,
		schemas.HeaderEventID, id.Derive(id.Event, schemas.SourceStripe, eventID),
		schemas.HeaderAccount, "cus_1",
		schemas.HeaderOrganization, org,
		schemas.HeaderAcceptedAt, acceptedAt.UTC().Format(time.RFC3339Nano),
	)}
}

func headers(pairs ...string) (list []kgo.RecordHeader) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return list
}

// subscription is an event of sub_1, created and accepted now.
func (r rig) subscription(eventID, eventType, status, lookupKey string) *kgo.Record {
	created := r.Now.Unix()
	return stripeEvent(eventID, eventType, r.Now, fmt.Sprintf(`{"id":%q,"created":%d,"livemode":true,"data":{"object":{"id":"sub_1",
		"object":"subscription","customer":"cus_1","status":%q,"current_period_start":%d,"current_period_end":%d,
		"items":{"data":[{"id":"si_1","price":{"id":"price_1","lookup_key":%q}}]}}}}`,
		eventID, created, status, created, created+1000, lookupKey))
}

func (r rig) paymentFailed(eventID string) *kgo.Record {
	return r.invoice(eventID, billing.PaymentFailed)
}

// invoice is an event of in_1, created and accepted now.
func (r rig) invoice(eventID, eventType string) *kgo.Record {
	return stripeEvent(eventID, eventType, r.Now, fmt.Sprintf(`{"created":%d,"data":{"object":{"id":"in_1","object":"invoice",
		"customer":"cus_1","amount_due":100,"currency":"usd","attempt_count":1}}}`, r.Now.Unix()))
}

// rows decodes the records of a topic.
func rows[M proto.Message](t *testing.T, out streamtest.Outputs, topic string, newMessage func() M) (list []M) {
	for _, r := range out.Topic(topic) {
		m := newMessage()
		require.NoError(t, proto.Unmarshal(r.Value, m))
		list = append(list, m)
	}
	return list
}

func inboundRows(t *testing.T, out streamtest.Outputs) []*webhooksv1.InboundRow {
	return rows(t, out, schemas.InboundRows, func() *webhooksv1.InboundRow { return &webhooksv1.InboundRow{} })
}

func auditRows(t *testing.T, out streamtest.Outputs) []*webhooksv1.BillingAuditRow {
	return rows(t, out, schemas.BillingAudit, func() *webhooksv1.BillingAuditRow { return &webhooksv1.BillingAuditRow{} })
}

func snapshots(t *testing.T, out streamtest.Outputs) []*webhooksv1.TenantCapabilitySnapshot {
	return rows(t, out, schemas.Entitlements, func() *webhooksv1.TenantCapabilitySnapshot { return &webhooksv1.TenantCapabilitySnapshot{} })
}

func outcomes(t *testing.T, out streamtest.Outputs) []*webhooksv1.CommandOutcome {
	return rows(t, out, schemas.CommandOutcomes, func() *webhooksv1.CommandOutcome { return &webhooksv1.CommandOutcome{} })
}

// counter is webhooks_processor_events_total of a type and result.
func counter(t *testing.T, reg *prometheus.Registry, eventType, result string) float64 {
	return metric(t, reg, "webhooks_processor_events_total", result, eventType)
}

// metric is a counter by its name and the values of its labels, these in the order of the labels' names.
func metric(t *testing.T, reg *prometheus.Registry, name string, values ...string) float64 {
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var have []string
			for _, label := range m.GetLabel() {
				have = append(have, label.GetValue())
			}
			if family.GetName() == name && slices.Equal(have, values) {
				return m.GetCounter().GetValue()
			}
		}
	}
	require.Fail(t, "no such metric", "%s %s", name, values)
	return 0
}

func TestASubscriptionEventTakesEffect(t *testing.T) {
	r := newRig(t)
	out := r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))

	snapshot := snapshots(t, out)[0]
	require.Equal(t, "SCM_PRO", snapshot.Plan)
	require.Equal(t, uint64(1), snapshot.Version)
	require.Equal(t, org, string(out.Topic(schemas.Entitlements)[0].Key))
	require.Len(t, out.Topic(schemas.Billing), 1)

	row := inboundRows(t, out)[0]
	require.Equal(t, "processed", row.Outcome)
	require.Equal(t, "evt_a", row.SourceEventId)
	require.Equal(t, r.Now.UnixMilli(), row.ReceivedUnixMs)
	audit := auditRows(t, out)[0]
	require.Equal(t, billing.SubscriptionCreated, audit.Action)
	require.Equal(t, "FREE", audit.PlanBefore)
	require.Equal(t, "SCM_PRO", audit.PlanAfter)
	require.Equal(t, r.Now.UnixMilli(), audit.RecordedUnixMs)

	events := out.Topic(schemas.Events)
	require.Len(t, events, 1)
	cause := id.Derive(id.Event, schemas.SourceStripe, "evt_a")
	for header, want := range map[string]string{
		schemas.HeaderID:           id.Derive(id.Event, schemas.TypeSubscriptionUpdated, org, cause),
		schemas.HeaderType:         schemas.TypeSubscriptionUpdated,
		schemas.HeaderSubject:      "sub_1",
		schemas.HeaderOrganization: org,
		schemas.HeaderCausationID:  cause,
		schemas.HeaderCauseSource:  schemas.SourceStripe,
		schemas.HeaderCauseEventID: "evt_a",
		schemas.HeaderEndpointSet:  "",
		schemas.HeaderAcceptedAt:   "2026-01-01T00:00:00.000Z",
	} {
		require.Equal(t, want, kafka.ReadHeader(events[0].Headers, header), header)
	}
	var data struct {
		Change   string
		Snapshot struct{ Plan string }
	}
	require.NoError(t, json.Unmarshal(events[0].Value, &data))
	require.Equal(t, "created", data.Change)
	require.Equal(t, "SCM_PRO", data.Snapshot.Plan)
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionCreated, "processed"))
}

func TestADuplicateHasNoEffectAndNoRow(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	out := r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	require.Empty(t, out)
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionCreated, "duplicate"))

	// In one transaction as well.
	event := r.subscription("evt_b", billing.SubscriptionUpdated, "active", "scm_pro")
	again := *event
	out = r.Process(event, &again)
	require.Len(t, out.Topic(schemas.Events), 1)
	require.Equal(t, uint64(2), snapshots(t, out)[0].Version)
}

func TestAnEventIsOneOfItsAccountWhoeverHasThat(t *testing.T) {
	for name, test := range map[string]struct {
		header, value string
		want          int
	}{
		"another organization":            {schemas.HeaderOrganization, "org_2", 0},
		"another account":                 {schemas.HeaderAccount, "cus_2", 1},
		"no account":                      {schemas.HeaderAccount, "", 1},
		"another account of no such form": {schemas.HeaderAccount, "cus_1/", 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
			other := func() *kgo.Record {
				e := r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro")
				e.Headers = append(e.Headers, headers(test.header, test.value)...)
				return e
			}
			require.Len(t, auditRows(t, r.Process(other())), test.want)
			require.Empty(t, r.Process(other()), "and then it was seen")
		})
	}
}

func TestAnAbortedTransactionIsDoneOnce(t *testing.T) {
	r := newRig(t)
	r.Abort(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	require.Zero(t, counter(t, r.reg, billing.SubscriptionCreated, "processed"))
	out := r.Redeliver()
	require.Equal(t, uint64(1), snapshots(t, out)[0].Version)
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionCreated, "processed"))
}

func TestAStaleEvent(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_z", billing.SubscriptionDeleted, "canceled", "scm_pro"))
	r.Now = r.Now.Add(time.Hour)
	out := r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "active", "scm_pro"))
	require.Equal(t, "stale", inboundRows(t, out)[0].Outcome)
	audit := auditRows(t, out)[0]
	require.Equal(t, audit.PlanBefore, audit.PlanAfter)
	require.Equal(t, uint64(1), audit.SnapshotVersion)
	require.Empty(t, out.Topic(schemas.Events))
	require.Empty(t, out.Topic(schemas.Entitlements))
}

func TestAPaymentFailure(t *testing.T) {
	r := newRig(t)
	out := r.Process(r.paymentFailed("evt_a"))
	require.Equal(t, "in_1", auditRows(t, out)[0].InvoiceId)
	require.Empty(t, out.Topic(schemas.Events))
	require.Equal(t, float64(1), metric(t, r.reg, "webhooks_billing_payment_failures_total"))
}

func TestAFailedInvoiceEndsWithoutAPayment(t *testing.T) {
	for _, eventType := range []string{billing.InvoiceVoided, billing.InvoiceUncollectible} {
		t.Run(eventType, func(t *testing.T) {
			r := newRig(t)
			r.Process(r.paymentFailed("evt_a"))
			out := r.Process(r.invoice("evt_b", eventType))
			require.Equal(t, "processed", inboundRows(t, out)[0].Outcome)
			require.Empty(t, out.Topic(schemas.BillingAudit), "the audit log is of payments and subscriptions")
			record := &webhooksv1.BillingRecord{}
			require.NoError(t, proto.Unmarshal(r.Get(schemas.Billing, []byte(org)), record))
			require.Equal(t, r.Now.UnixMilli(), record.FailedInvoices[0].EndedUnixMs)

			out = r.Process(r.invoice("evt_c", eventType))
			require.Equal(t, "stale", inboundRows(t, out)[0].Outcome)
			require.Empty(t, out.Topic(schemas.Billing), "nothing changed, nothing is written")
		})
	}
}

func TestWhatCannotBeUsedIsADeadLetter(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*kgo.Record)
		reason string
	}{
		"no object":              {func(r *kgo.Record) { r.Value = []byte(`{"created":1,"data":null}`) }, string(billing.NoObject)},
		"no JSON":                {func(r *kgo.Record) { r.Value = []byte(`nonsense`) }, string(billing.Malformed)},
		"no headers":             {func(r *kgo.Record) { r.Headers = nil }, reasonNoOrganization},
		"a bad org":              {func(r *kgo.Record) { r.Headers = headers(schemas.HeaderOrganization, "../x\xff") }, reasonNoOrganization},
		"header keys of no text": {func(r *kgo.Record) { r.Headers = headers("\xff", "\xfe", schemas.HeaderOrganization, "") }, reasonNoOrganization},
		"no event id":            {func(r *kgo.Record) { r.Headers = headers(schemas.HeaderOrganization, org) }, reasonNoID},
		"a command of none": {func(r *kgo.Record) {
			r.Headers = headers(schemas.HeaderType, schemas.TypeCommand, schemas.HeaderSource, schemas.SourceManagement)
		}, reasonCommand},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			record := r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro")
			test.change(record)
			out := r.Process(record)
			letters := rows(t, out, schemas.InboundDead, func() *webhooksv1.DeadInbound { return &webhooksv1.DeadInbound{} })
			require.Len(t, letters, 1)
			require.Equal(t, test.reason, letters[0].Event.Reason)
			original := deadletters.Original(letters[0])
			require.Equal(t, schemas.Inbound, original.Topic)
			require.Equal(t, record.Key, original.Key)
			require.Equal(t, record.Value, original.Value)
			require.Equal(t, record.Headers, original.Headers)
			require.Equal(t, r.Now.UnixMilli(), letters[0].BuriedUnixMs)
			row := inboundRows(t, out)[0]
			require.Equal(t, "dead", row.Outcome)
			require.Equal(t, test.reason, row.Reason)
			require.Empty(t, out.Topic(schemas.BillingAudit))
		})
	}
}

func TestWhatIsNotHandledIsIgnoredOnce(t *testing.T) {
	r := newRig(t)
	out := r.Process(stripeEvent("evt_a", "customer.created", r.Now, `{}`))
	require.Equal(t, "ignored", inboundRows(t, out)[0].Outcome)
	require.Equal(t, reasonUnhandled, inboundRows(t, out)[0].Reason)
	require.Empty(t, r.Process(stripeEvent("evt_a", "customer.created", r.Now, `{}`)))
	require.Equal(t, float64(1), counter(t, r.reg, otherType, "ignored"))
}

func TestGraceEndsByItsTimer(t *testing.T) {
	r := newRig(t)
	start := r.Now
	r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "past_due", "scm_pro"))
	require.Empty(t, r.Advance(start.Add(7*day-time.Second)).Emitted())

	r.Now = start.Add(7 * day)
	r.WaitWoken()
	out := r.Advance(r.Now)
	snapshot := snapshots(t, out)[0]
	require.Equal(t, billing.StatusNone, snapshot.Status)
	require.Equal(t, uint64(2), snapshot.Version)
	events := out.Topic(schemas.Events)
	require.Len(t, events, 1)
	require.Equal(t, billing.TimerSource, kafka.ReadHeader(events[0].Headers, schemas.HeaderCauseSource))
	require.Empty(t, out.Topic(schemas.InboundRows), "a timer is no inbound event")
	require.Empty(t, r.Advance(r.Now.Add(time.Hour)).Emitted())
}

func TestEveryGracePeriodOfAnOrganizationEnds(t *testing.T) {
	r := newRig(t)
	start := r.Now
	r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "past_due", "scm_pro"))
	r.Now = start.Add(2 * day)
	second := r.subscription("evt_b", billing.SubscriptionUpdated, "past_due", "scm_pro")
	second.Value = bytes.ReplaceAll(second.Value, []byte("sub_1"), []byte("sub_2"))
	r.Process(second)

	require.Len(t, r.Advance(start.Add(7*day)).Topic(schemas.Events), 1, "the first ends")
	require.Equal(t, start.Add(8*day), r.WakeTime(), "the day's end comes before the second's")
	require.Empty(t, r.Advance(start.Add(8*day)).Topic(schemas.Events))
	require.Len(t, r.Advance(start.Add(9*day)).Topic(schemas.Events), 1, "the second ends")
}

func TestTimersOutliveTheirOwner(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "past_due", "scm_pro"))
	r.Crash()
	r.Now = r.Now.Add(8 * day)
	r.WaitWoken()
	require.Len(t, r.Advance(r.Now).Topic(schemas.Events), 1)
}

func TestATimerThatWasAbortedRunsAgain(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "past_due", "scm_pro"))
	r.Now = r.Now.Add(8 * day)
	r.Abort()
	r.WaitWoken()
	require.Len(t, r.Advance(r.Now).Topic(schemas.Events), 1)
}

func TestATimerThatWasOvertakenDoesNothing(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionUpdated, "past_due", "scm_pro"))
	r.Now = r.Now.Add(day)
	r.Process(r.subscription("evt_b", billing.SubscriptionUpdated, "active", "scm_pro"))
	require.Empty(t, r.Advance(r.Now.Add(10*day)).Emitted())
}

func TestSeenEventsAreForgottenAfterTheirSourcesTime(t *testing.T) {
	r := newRig(t)
	start := r.Now
	from := func(source string) *kgo.Record {
		e := stripeEvent("evt_a", "customer.created", r.Now, `{}`)
		for i, h := range e.Headers {
			if h.Key == schemas.HeaderSource {
				e.Headers[i].Value = []byte(source)
			}
			if h.Key == schemas.HeaderEventID {
				e.Headers[i].Value = []byte("evt_of_" + source)
			}
		}
		return e
	}
	r.Process(from("stripe"), from("shopify"))
	for _, step := range []struct {
		days time.Duration
		rows int
	}{{8, 0}, {9, 1}, {32, 1}, {33, 1}} { // shopify's is new on day 9, and on day 32, 23 days later, again
		r.Now = start.Add(step.days * day)
		out := r.Process(from("stripe"), from("shopify"))
		if step.days == 33 {
			require.Equal(t, "stripe", inboundRows(t, out)[0].Source)
		}
		require.Len(t, inboundRows(t, out), step.rows, "on day %d", step.days)
	}
}

func TestADeadEventTakesEffectWhenItCanBeUsed(t *testing.T) {
	r := newRig(t)
	broken := stripeEvent("evt_a", billing.SubscriptionUpdated, r.Now, `{"created":1,"data":{"object":{"id":"sub_1","status":"novel","customer":"cus_1"}}}`)
	out := r.Process(broken)
	require.Equal(t, "dead", inboundRows(t, out)[0].Outcome)
	require.Len(t, out.Topic(schemas.InboundDead), 1)

	again := *broken
	require.Empty(t, r.Process(&again).Emitted(), "as unusable as before: known already")
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionUpdated, "duplicate"))

	mended := r.subscription("evt_a", billing.SubscriptionUpdated, "active", "scm_pro")
	out = r.Process(mended)
	require.Equal(t, "processed", inboundRows(t, out)[0].Outcome)
	require.Len(t, snapshots(t, out), 1)
	more := *mended
	require.Empty(t, r.Process(&more).Emitted(), "once")
}

func TestHeadersOfMegabytesAreADeadLetterThatSaysSo(t *testing.T) {
	r := newRig(t)
	record := r.subscription("evt_a", strings.Repeat("\xffx", stream.MaxOutput/2), "active", "scm_pro")
	record.Headers = append(record.Headers, headers(schemas.HeaderOrganization, "")...)
	out := r.Process(record)
	letters := rows(t, out, schemas.InboundDead, func() *webhooksv1.DeadInbound { return &webhooksv1.DeadInbound{} })
	require.True(t, letters[0].Incomplete)
	require.True(t, proto.Equal(letters[0].Event, inboundRows(t, out)[0]))
}

// TestAReplayedLetterTakesEffectOnce buries an event by plans that make more of it than Kafka takes, and mends them.
func TestAReplayedLetterTakesEffectOnce(t *testing.T) {
	for name, order := range map[string]string{
		"the letter": "l", "twice": "ll", "before its source sends again": "ls", "after that": "sl", "over and over": "lslsl",
	} {
		t.Run(name, func(t *testing.T) {
			known := plans.Builtin()
			r := newRig(t, func(c *Config) { c.Plans = known })
			mended := known.Named("SCM_PRO").Limits
			known.Named("SCM_PRO").Limits = map[string]int64{strings.Repeat("x", maxEffect): 1}
			sent := r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro")
			out := r.Process(sent)
			letters := rows(t, out, schemas.InboundDead, func() *webhooksv1.DeadInbound { return &webhooksv1.DeadInbound{} })
			require.Len(t, letters, 1)
			require.Equal(t, reasonTooLarge, letters[0].Event.Reason)
			require.Empty(t, r.Process(deadletters.Original(letters[0])).Emitted(), "of no use still: no second letter, no row")

			known.Named("SCM_PRO").Limits = mended
			var again []*kgo.Record
			for _, which := range order {
				resent := *sent
				again = append(again, map[rune]*kgo.Record{'l': deadletters.Original(letters[0]), 's': &resent}[which])
			}
			out = r.Process(again...)
			require.Len(t, inboundRows(t, out), 1)
			require.Equal(t, "processed", inboundRows(t, out)[0].Outcome)
			require.Len(t, auditRows(t, out), 1)
			require.Len(t, out.Topic(schemas.Events), 1)
			require.Equal(t, uint64(1), snapshots(t, out)[0].Version)
			require.Empty(t, r.Process(deadletters.Original(letters[0])).Emitted(), "in a later transaction neither")
		})
	}
}

func command(t *testing.T, cmd *webhooksv1.Command) *kgo.Record {
	value, err := proto.Marshal(cmd)
	require.NoError(t, err)
	return &kgo.Record{Key: []byte(cmd.OrganizationId), Value: value, Headers: headers(
		schemas.HeaderID, cmd.Id, schemas.HeaderSource, schemas.SourceManagement, schemas.HeaderType, schemas.TypeCommand,
		schemas.HeaderOrganization, cmd.OrganizationId,
	)}
}

func TestCommandsAreAnswered(t *testing.T) {
	r := newRig(t)
	endpoint := id.New(id.Endpoint)
	create := &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_CreateEndpoint{
		CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: &webhooksv1.Endpoint{
			Id: endpoint, OrganizationId: org, Url: "https://example.com", EventTypes: []string{"*"}, Enabled: true,
		}},
	}}
	out := r.Process(command(t, create))
	require.Equal(t, endpoint, outcomes(t, out)[0].GetEndpoint().GetId())
	require.Equal(t, create.Id, string(out.Topic(schemas.CommandOutcomes)[0].Key))
	require.Len(t, out.Topic(schemas.Endpoints), 2)
	require.Empty(t, out.Topic(schemas.InboundRows), "a command is no source event")

	// What happens next carries the version of the set that the change made.
	out = r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	require.Equal(t, "1", kafka.ReadHeader(out.Topic(schemas.Events)[0].Headers, schemas.HeaderEndpointSet))

	disable := &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_DisableEndpoint{
		DisableEndpoint: &webhooksv1.DisableEndpoint{EndpointId: endpoint, JudgedVersion: 1, Reason: "gone"},
	}}
	out = r.Process(command(t, disable))
	require.Equal(t, schemas.TypeEndpointDisabled, kafka.ReadHeader(out.Topic(schemas.Events)[0].Headers, schemas.HeaderType))

	remove := &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_DeleteEndpoint{
		DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: id.New(id.Endpoint)},
	}}
	require.Equal(t, uint32(404), outcomes(t, r.Process(command(t, remove)))[0].GetRefusal().GetStatus())
	require.Equal(t, float64(1), counter(t, r.reg, schemas.TypeCommand, "refused"))
	require.Equal(t, float64(2), counter(t, r.reg, schemas.TypeCommand, "processed"))
}

func TestDueOf(t *testing.T) {
	for _, due := range []int64{0, 1, 1760000000000} {
		value, err := proto.Marshal(&webhooksv1.BillingRecord{
			OrganizationId: org, Plan: "FREE", DueUnixMs: due, EvaluatedUnixMs: 5,
			Subscriptions: []*webhooksv1.Subscription{{Id: "sub_1"}},
		})
		require.NoError(t, err)
		require.Equal(t, due, dueOf(value))
	}
	require.Zero(t, dueOf([]byte{0xff}))
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no plans":          func(c *Config) { c.Plans = nil },
		"no retention":      func(c *Config) { c.DedupeRetention = 0 },
		"longer than kept":  func(c *Config) { c.DedupeRetention = schemas.MaxDedupeRetention + time.Second },
		"none for a source": func(c *Config) { c.DedupeBySource = map[string]time.Duration{"stripe": 0} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Plans: plans.Builtin(), DedupeRetention: day}
			change(&cfg)
			_, err := New(cfg, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			require.Error(t, err)
		})
	}
}
