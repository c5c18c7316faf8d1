package ingest_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const subscriptionCreated = `{
  "id": "evt_1", "object": "event", "type": "customer.subscription.created", "created": 1700000000, "livemode": false,
  "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "note": "caf\u00e9 \/ "}}
}
`

func TestAnAcceptedEventIsOnTheLogByteForByte(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	body := []byte(subscriptionCreated)
	before := time.Now()

	unrouted := e.post(body, sign(body))
	require.Equal(t, 200, unrouted.status, "%s", unrouted.body)
	e.routes.route("stripe/cus_1", "org_1")
	routed := e.post(body, sign(body))

	evt := id.Derive(id.Event, "stripe", "evt_1")
	require.JSONEq(t, `{"id":"`+evt+`"}`, string(routed.body))
	require.Equal(t, unrouted.body, routed.body, "a re-send gets the same id")
	require.Equal(t, "application/json", routed.header.Get("Content-Type"))
	require.True(t, id.Valid(id.Request, routed.header.Get("X-Request-Id")))

	for topic, want := range map[string]struct{ key, org string }{
		schemas.InboundUnrouted: {"stripe/cus_1", ""}, schemas.Inbound: {"org_1", "org_1"},
	} {
		r := records(t, e.kafka, topic, 1)[0]
		require.Equal(t, subscriptionCreated, string(r.Value))
		require.Equal(t, want.key, string(r.Key))
		require.Equal(t, e.kafka.PartitionOf(want.key), r.Partition)
		header := func(key string) string { return kafka.ReadHeader(r.Headers, key) }
		require.Equal(t, "1.0", header(schemas.HeaderSpecVersion))
		require.Equal(t, "evt_1", header(schemas.HeaderID))
		require.Equal(t, "stripe", header(schemas.HeaderSource))
		require.Equal(t, "customer.subscription.created", header(schemas.HeaderType))
		require.Equal(t, "2023-11-14T22:13:20.000Z", header(schemas.HeaderTime))
		require.Equal(t, "application/json", header(schemas.HeaderContentType))
		require.Equal(t, evt, header(schemas.HeaderEventID))
		require.Equal(t, "cus_1", header(schemas.HeaderAccount))
		require.Equal(t, want.org, header(schemas.HeaderOrganization))
		accepted, err := time.Parse("2006-01-02T15:04:05.000Z", header(schemas.HeaderAcceptedAt))
		require.NoError(t, err)
		require.WithinRange(t, accepted, before.Add(-time.Second), time.Now())
	}
}

func TestWhatIsAnswered200AndProducedAllTheSame(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	e.routes.route("stripe/cus_1", "org_1")
	for name, c := range map[string]struct{ body, topic string }{
		"an unhandled type of a live account": {`{"id":"evt_a","type":"charge.refunded","data":{"object":{"customer":"cus_1"}}}`, schemas.Inbound},
		"an unhandled type without account":   {`{"id":"evt_b","type":"product.created","data":{"object":{"id":"prod_1"}}}`, schemas.InboundUnrouted},
		"an unknown account":                  {`{"id":"evt_c","type":"invoice.paid","data":{"object":{"customer":"cus_9"}}}`, schemas.InboundUnrouted},
		"a v2 thin event":                     {`{"id":"evt_d","object":"v2.core.event","type":"v1.x","created":"2026-01-02T03:04:05.000Z"}`, schemas.InboundUnrouted},
		"a handled type without data":         {`{"id":"evt_e","type":"invoice.paid"}`, schemas.InboundUnrouted},
		"a handled type, data of wrong types": {`{"id":"evt_f","type":"invoice.paid","created":"x","data":{"object":[null]}}`, schemas.InboundUnrouted},
		"nulls everywhere":                    {`{"id":"evt_g","type":"invoice.paid","created":null,"livemode":null,"data":null}`, schemas.InboundUnrouted},
	} {
		t.Run(name, func(t *testing.T) {
			a := e.post([]byte(c.body), sign([]byte(c.body)))
			require.Equal(t, 200, a.status, "%s", a.body)
		})
	}
	require.Len(t, records(t, e.kafka, schemas.Inbound, 1), 1)
	require.Len(t, records(t, e.kafka, schemas.InboundUnrouted, 6), 6)
}

func TestARouteThatEndsSendsToTheRouterAgain(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	e.routes.route("stripe/cus_1", "org_1")
	e.routes.fn([]byte("stripe/cus_1"), nil)
	e.post([]byte(subscriptionCreated), sign([]byte(subscriptionCreated)))
	records(t, e.kafka, schemas.InboundUnrouted, 1)
}

// TestRefusals is CONTRACT §2, row by row.
func TestRefusals(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.MaxBodyBytes = 1 << 20 })
	ok := subscriptionCreated
	huge := `{"id":"evt_1","type":"x","pad":"` + strings.Repeat("x", 2<<20) + `"}`
	for _, c := range []struct {
		name, method, path, body, signature string
		headers                             []string
		status                              int
		code, source                        string
	}{
		{name: "an unknown source", path: "/webhooks/paypal", body: ok, status: 404, code: "unknown_source", source: "unknown"},
		{name: "an unknown source by GET", method: "GET", path: "/webhooks/paypal", status: 404, code: "unknown_source", source: "unknown"},
		{name: "a source in other case", path: "/webhooks/Stripe", body: ok, status: 404, code: "unknown_source", source: "unknown"},
		{name: "no name", path: "/webhooks/", body: ok, status: 404, code: "unknown_source", source: "unknown"},
		{name: "a deeper path", path: "/webhooks/stripe/x", body: ok, status: 404, code: "unknown_source", source: "unknown"},
		{name: "an unknown source, too large", path: "/webhooks/paypal", body: huge, status: 404, code: "unknown_source", source: "unknown"},
		{name: "GET", method: "GET", status: 405, code: "method_not_allowed"},
		{name: "PUT, too large", method: "PUT", body: huge, status: 405, code: "method_not_allowed"},
		{name: "too large, and encoded", body: huge, headers: []string{"Content-Encoding", "gzip"}, status: 413, code: "body_too_large"},
		{name: "encoded, and unsigned", body: ok, headers: []string{"Content-Encoding", "gzip"}, status: 415, code: "encoding_unsupported"},
		{name: "unsigned", body: ok, status: 400, code: "signature_missing"},
		{name: "unsigned and malformed", body: `{`, status: 400, code: "signature_missing"},
		{name: "signed with another secret", body: ok, signature: signAt([]byte(ok), "whsec_other", time.Now()), status: 400, code: "signature_invalid"},
		{name: "a wrong signature is named before its age", body: ok, signature: signAt([]byte(ok), "whsec_other", time.Now().Add(-time.Hour)), status: 400, code: "signature_invalid"},
		{name: "signed too long ago", body: ok, signature: signAt([]byte(ok), secret, time.Now().Add(-302*time.Second)), status: 400, code: "timestamp_out_of_tolerance"},
		{name: "signed in the future", body: ok, signature: signAt([]byte(ok), secret, time.Now().Add(302*time.Second)), status: 400, code: "timestamp_out_of_tolerance"},
		{name: "old and malformed", body: `{`, signature: signAt([]byte(`{`), secret, time.Now().Add(-time.Hour)), status: 400, code: "timestamp_out_of_tolerance"},
		{name: "no body", body: ``, signature: sign(nil), status: 400, code: "malformed_body"},
		{name: "no JSON", body: `{`, signature: sign([]byte(`{`)), status: 400, code: "malformed_body"},
		{name: "an array", body: `[]`, signature: sign([]byte(`[]`)), status: 400, code: "malformed_body"},
		{name: "no id", body: `{"type":"x"}`, signature: sign([]byte(`{"type":"x"}`)), status: 400, code: "malformed_body"},
		{name: "not UTF-8", body: "{\"id\":\"\xff\",\"type\":\"x\"}", signature: sign([]byte("{\"id\":\"\xff\",\"type\":\"x\"}")), status: 400, code: "malformed_body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, path, source := c.method, c.path, c.source
			if method == "" {
				method = http.MethodPost
			}
			if path == "" {
				path = "/webhooks/stripe"
			}
			if source == "" {
				source = "stripe"
			}
			headers := c.headers
			if c.signature != "" {
				headers = append(headers, "Stripe-Signature", c.signature)
			}
			counted := func() float64 {
				return e.metric("webhooks_ingest_rejected_total", "source", source, "reason", c.code)
			}
			before := counted()
			a := e.do(e.request(method, path, []byte(c.body), headers...))
			require.Equal(t, c.status, a.status, "%s", a.body)
			p := a.problem(t)
			require.Equal(t, c.code, p.Code)
			require.Equal(t, "/problems/"+c.code, p.Type)
			require.Equal(t, c.status, p.Status)
			require.NotEmpty(t, p.Detail)
			require.Equal(t, a.header.Get("X-Request-Id"), p.RequestID)
			require.True(t, id.Valid(id.Request, p.RequestID))
			require.Equal(t, c.status == 405, a.header.Get("Allow") == "POST")
			require.InDelta(t, before+1, counted(), 0)
		})
	}
	require.Zero(t, e.metric("webhooks_ingest_held_bytes"), "nothing is held of refused bodies")
}

func TestRefusalsAreRecorded(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for range 50 {
		e.post([]byte(`{}`), "t=1,v1=00", "User-Agent", "curl/8")
	}
	require.NoError(t, e.stop(), "a clean stop hands over what is folded")
	weight := uint32(0)
	rows := recordsUntil(t, e.kafka, schemas.Rejections, func(got []*kgo.Record) bool {
		weight = 0
		for _, r := range got {
			var row webhooksv1.RejectionRow
			require.NoError(t, proto.Unmarshal(r.Value, &row))
			if row.Reason != "signature_invalid" {
				continue
			}
			weight += row.Weight
			require.Equal(t, "stripe", row.Source)
			require.Equal(t, "curl/8", row.UserAgent)
			require.EqualValues(t, 400, row.Status)
			require.EqualValues(t, 2, row.ContentLength)
			require.Len(t, row.RemoteIp, 16)
			require.Equal(t, "w1", row.Worker)
		}
		return weight >= 50
	})
	require.EqualValues(t, 50, weight)
	require.Less(t, len(rows), 50, "they are sampled")
}

func TestTheOtherLivemodeIsIgnored(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.Stripe.Livemode = stripe.Live })
	a := e.post([]byte(subscriptionCreated), sign([]byte(subscriptionCreated)))
	require.Equal(t, 200, a.status)
	require.Contains(t, string(a.body), id.Derive(id.Event, "stripe", "evt_1"))
	require.EqualValues(t, 1, e.metric("webhooks_ingest_ignored_total", "source", "stripe"))
	e.routes.route("stripe/cus_1", "org_1")
	live := strings.Replace(subscriptionCreated, `"livemode": false`, `"livemode": true`, 1)
	e.post([]byte(live), sign([]byte(live)))
	ignored := []string{}
	for _, r := range records(t, e.kafka, schemas.InboundUnrouted, 1) {
		ignored = append(ignored, kafka.ReadHeader(r.Headers, schemas.HeaderIgnored))
	}
	require.Equal(t, []string{"livemode"}, ignored, "no organization sees it")
}

func TestEveryStripeFixtureIsAccepted(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for _, name := range []string{
		"stripe-ruby-mock/customer.subscription.created", "stripe-ruby-mock/customer.subscription.updated",
		"stripe-ruby-mock/customer.subscription.deleted", "stripe-ruby-mock/invoice.paid", "stripe-ruby-mock/invoice.payment_failed",
		"stripe-ruby-mock/invoice.created", "stripe-ruby-mock/checkout.session.completed", "stripe-sync-engine/subscription_created",
		"stripe-sync-engine/subscription_updated", "stripe-sync-engine/subscription_deleted", "stripe-sync-engine/invoice_paid",
		"stripe-sync-engine/active_entitlement_summary_updated", "pay/account.updated",
	} {
		body := testenv.Fixture(t, "stripe/"+name+".json")
		require.Equal(t, 200, e.post(body, sign(body)).status, name)
	}
	// Objects alone are not events.
	body := testenv.Fixture(t, "stripe/pay/subscription.updated.object-only.json")
	require.Equal(t, "malformed_body", e.post(body, sign(body)).problem(t).Code)
}

func TestNewRefusesAnEmptySecret(t *testing.T) {
	_, err := ingest.New(ingest.Config{Stripe: stripe.Config{Secrets: []string{""}}}, ingest.Deps{Routes: &table{}})
	require.ErrorContains(t, err, "empty secret")
}
