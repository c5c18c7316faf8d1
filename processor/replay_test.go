package processor

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestADeadEventTakesEffectOnceAfterAFix lets a processor bury an event because its plans make more of it than Kafka takes,
// and starts it with plans that do not.
func TestADeadEventTakesEffectOnceAfterAFix(t *testing.T) {
	cfg, clickhouseURL, stateDir := testenv.Kafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state")
	wrong := plans.Builtin()
	wrong.Named("SCM_PRO").Limits = map[string]int64{strings.Repeat("x", 3<<20): 1}
	r := start(t, cfg, clickhouseURL, stateDir, func(c *Config) { c.Plans = wrong })
	now := time.Now().Unix()
	r.subscription(schemas.Inbound, org, "evt_1", billing.SubscriptionCreated, "active", now)
	testenv.Eventually(t, patience, func() bool { return len(r.letters()) == 1 }, "it is buried")
	require.Equal(t, "too_large", r.letters()[0].Event.Reason)
	require.Equal(t, 1, r.replay(deadletters.Replay{}).Replayed)
	r.pass()
	require.Len(t, r.letters(), 1, "of no use still: no second letter")
	require.Equal(t, []string{"dead"}, r.outcomes("evt_1"))
	r.stop()

	r = start(t, cfg, clickhouseURL, stateDir)
	require.Equal(t, deadletters.Tally{Before: 1}, r.replay(deadletters.Replay{}))
	require.Equal(t, 1, r.replay(deadletters.Replay{Again: true}).Replayed)
	r.subscription(schemas.Inbound, org, "evt_1", billing.SubscriptionCreated, "active", now)
	require.Equal(t, 1, r.replay(deadletters.Replay{Again: true}).Replayed)
	require.Equal(t, "SCM_PRO", r.awaitVersion(1)["plan"])

	// The next event says that what came before had its effect: one.
	r.subscription(schemas.Inbound, org, "evt_2", billing.SubscriptionUpdated, "past_due", now+1)
	require.Equal(t, "grace", r.awaitVersion(2)["status"])
	require.Equal(t, []string{"dead", "processed"}, r.outcomes("evt_1"))
	require.Len(t, r.letters(), 1)
}

// TestLettersOfTheOtherTopicsAreReplayed replays what a version before this one could not use.
func TestLettersOfTheOtherTopicsAreReplayed(t *testing.T) {
	r := start(t, testenv.Kafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state"))
	r.command(schemas.Inbound, org, &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_CreateEndpoint{
		CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: &webhooksv1.Endpoint{
			Id: id.New(id.Endpoint), OrganizationId: org, Url: "https://example.com/hook", EventTypes: []string{"loop.started"}, Enabled: true,
		}},
	}})
	r.await("/v1/orgs/org_1/endpoints", func(body map[string]any) bool { return len(body["data"].([]any)) == 1 })

	r.bury(schemas.Events, org, (&cloudevent.Event{ID: "evt_loop", Type: "loop.started", Organization: org, Data: []byte(`{}`)}).Record())
	require.Equal(t, 1, r.replay(deadletters.Replay{}).Replayed)
	require.Equal(t, deadletters.Tally{Before: 1}, r.replay(deadletters.Replay{}))
	delivery := deliveries(t, r.cfg, 1)
	require.Len(t, delivery, 1, "once")
	require.Equal(t, deadletters.Tally{Before: 1}, r.replay(deadletters.Replay{Again: true}), "its attempts would be counted anew")

	unrouted := &kgo.Record{Key: []byte("stripe/cus_1"), Value: []byte(`{"id":"evt_s","created":1700000000,"data":{"object":{"id":"sub_1",
		"object":"subscription","customer":"cus_1","status":"active","items":{"data":[{"price":{"id":"price_1","lookup_key":"scm_pro"}}]}}}}`)}
	headers := append(stripeHeaders("evt_s", billing.SubscriptionCreated), schemas.HeaderNamedOrganization, org)
	for i := 0; i < len(headers); i += 2 {
		unrouted.Headers = append(unrouted.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
	}
	r.bury(schemas.InboundUnrouted, "stripe/cus_1", unrouted)
	only := deadletters.Filter{EventIDs: []string{id.Derive(id.Event, schemas.SourceStripe, "evt_s")}}
	require.Equal(t, 1, r.replay(deadletters.Replay{Filter: only}).Replayed)
	require.Equal(t, 1, r.replay(deadletters.Replay{Filter: only, Again: true}).Replayed)
	require.Equal(t, "SCM_PRO", r.awaitVersion(1)["plan"])
	r.subscription(schemas.InboundUnrouted, "stripe/cus_1", "evt_2", billing.SubscriptionDeleted, "canceled", time.Now().Unix())
	require.Equal(t, "FREE", r.awaitVersion(2)["plan"])
	require.Equal(t, []string{"processed"}, r.outcomes("evt_s"))
}

// bury leaves the letter of a record, as if it had stood on the topic.
func (r *rig) bury(topic, routingKey string, record *kgo.Record) {
	record.Partition = r.cfg.PartitionOf(routingKey)
	row := &webhooksv1.InboundRow{Outcome: schemas.OutcomeDead, Reason: "of an earlier version"}
	for _, h := range record.Headers {
		switch h.Key {
		case schemas.HeaderID:
			row.SourceEventId = string(h.Value)
		case schemas.HeaderEventID:
			row.EventId = string(h.Value)
		}
	}
	value, err := proto.Marshal(deadletters.New(topic, record, row, time.Now()))
	require.NoError(r.t, err)
	r.produce(schemas.InboundDead, routingKey, value)
}

func (r *rig) replay(replay deadletters.Replay) deadletters.Tally {
	r.t.Helper()
	tally, err := replay.Run(r.t.Context(), r.cfg, slog.New(slog.DiscardHandler), func(*deadletters.Letter) {})
	require.NoError(r.t, err)
	return tally
}

func (r *rig) letters() (all []*deadletters.Letter) {
	r.t.Helper()
	require.NoError(r.t, deadletters.Each(r.t.Context(), r.cfg, deadletters.Filter{}, slog.New(slog.DiscardHandler), func(l *deadletters.Letter) error {
		all = append(all, l)
		return nil
	}))
	return all
}

// pass waits until the processor is past what the organization's partition holds.
func (r *rig) pass() {
	r.t.Helper()
	marker := id.New(id.Event)
	r.produce(schemas.Inbound, org, []byte(`{}`), append(stripeHeaders(marker, "customer.created"), schemas.HeaderOrganization, org)...)
	testenv.Eventually(r.t, patience, func() bool { return len(r.outcomes(marker)) == 1 }, "the processor is past it")
}

// outcomes are those of the rows of a source's event, in their order.
func (r *rig) outcomes(sourceID string) (all []string) {
	r.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(r.cfg.Brokers...), kgo.ConsumeTopics(r.cfg.Topic(schemas.InboundRows)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	require.NoError(r.t, err)
	defer client.Close()
	for {
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
		fetches := client.PollFetches(ctx)
		cancel()
		if fetches.NumRecords() == 0 {
			return all
		}
		for it := fetches.RecordIter(); !it.Done(); {
			row := &webhooksv1.InboundRow{}
			require.NoError(r.t, proto.Unmarshal(it.Next().Value, row))
			if row.SourceEventId == sourceID && row.Outcome != schemas.OutcomeUnrouted {
				all = append(all, row.Outcome)
			}
		}
	}
}
