package inbound

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestOneEffectWhateverHappens: events come in any order, several times, in transactions that abort and under owners that
// crash. What was committed is what each event, once, in the order of its first commit, leaves.
func TestOneEffectWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inbound, err := New(Config{Plans: plans.Builtin(), DedupeRetention: 8 * day}, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.NoError(t, err)
		h := streamtest.New(t, inbound.Spec())
		var committed streamtest.Outputs
		given := map[string]*kgo.Record{}
		for range rapid.IntRange(1, 12).Draw(t, "transactions") {
			records := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *kgo.Record { return drawSubscription(t, h.Now) }), 1, 5).Draw(t, "records")
			for _, r := range records {
				given[kafka.ReadHeader(r.Headers, schemas.HeaderEventID)] = r
			}
			switch rapid.SampledFrom([]string{"commit", "commit", "abort", "abort and crash"}).Draw(t, "end") {
			case "commit":
				committed = append(committed, h.Process(records...)...)
			case "abort":
				h.Abort(records...)
				committed = append(committed, h.Redeliver()...)
			case "abort and crash":
				h.Abort(records...)
				h.Crash()
				committed = append(committed, h.Redeliver()...)
			}
		}
		requireOneEffect(t, h, given, committed)
	})
}

// drawSubscription draws one of twenty events; one that is drawn again is the same event, sent again.
func drawSubscription(t *rapid.T, accepted time.Time) *kgo.Record {
	n := rapid.IntRange(0, 19).Draw(t, "event")
	status := []string{"active", "past_due", "unpaid", "trialing", "canceled"}[n%5]
	eventType := []string{billing.SubscriptionCreated, billing.SubscriptionUpdated}[n%2]
	body := fmt.Sprintf(`{"created":%d,"data":{"object":{"id":"sub_%d","customer":"cus_1","status":%q,
		"items":{"data":[{"price":{"id":"price_1","lookup_key":"scm_pro"}}]}}}}`, accepted.Unix()-int64(n*7%11), n%3, status)
	return stripeEvent(fmt.Sprintf("evt_%02d", n), eventType, accepted, body)
}

func requireOneEffect(t *rapid.T, h *streamtest.Harness, given map[string]*kgo.Record, committed streamtest.Outputs) {
	var want billing.State
	rows := map[string]int{}
	for _, r := range committed.Topic(schemas.InboundRows) {
		row := &webhooksv1.InboundRow{}
		require.NoError(t, proto.Unmarshal(r.Value, row))
		rows[row.EventId]++
		in := read(given[row.EventId])
		e := &billing.Event{Organization: org, ID: in.id, EventID: in.eventID, Type: in.eventType, AcceptedUnixMS: in.acceptedAt.UnixMilli()}
		require.Equal(t, billing.Usable, billing.Decode(in.body, e))
		want = billing.Apply(want, e, plans.Builtin()).State
	}
	for eventID := range given {
		require.Equal(t, 1, rows[eventID], "rows of %s", eventID)
	}
	record, snapshot := &webhooksv1.BillingRecord{}, &webhooksv1.TenantCapabilitySnapshot{}
	require.NoError(t, proto.Unmarshal(h.Get(schemas.Billing, []byte(org)), record))
	require.NoError(t, proto.Unmarshal(h.Newest(schemas.Entitlements, []byte(org)), snapshot))
	require.True(t, proto.Equal(want.Record, record))
	require.True(t, proto.Equal(want.Snapshot, snapshot))

	sent := map[string]bool{}
	for _, r := range committed.Topic(schemas.Events) {
		eventID := kafka.ReadHeader(r.Headers, schemas.HeaderID)
		require.False(t, sent[eventID], "%s was sent twice", eventID)
		sent[eventID] = true
	}
	require.Len(t, sent, int(snapshot.Version))
}
