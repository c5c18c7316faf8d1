package stripe_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/testenv"
)

const secret = "whsec_current"

func now() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC) }

func newSource(t testing.TB, livemode stripe.Livemode, secrets ...string) *stripe.Source {
	s, err := stripe.New(stripe.Config{Secrets: secrets, Livemode: livemode})
	require.NoError(t, err)
	return s
}

func sign(body, secret string, at time.Time) string {
	return fmt.Sprintf("%x", webhook.ComputeSignature(at, []byte(body), secret))
}

func header(signature string) *fasthttp.RequestHeader {
	h := &fasthttp.RequestHeader{}
	if signature != "" {
		h.Set("Stripe-Signature", signature)
	}
	return h
}

func TestConfigurationThatIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  stripe.Config
		want string
	}{
		"no secret":                   {stripe.Config{}, "STRIPE_WEBHOOK_SECRET"},
		"an empty secret":             {stripe.Config{Secrets: []string{""}}, "empty secret"},
		"an empty one while rotating": {stripe.Config{Secrets: []string{"whsec_a", " "}}, "empty secret"},
		"an unknown mode":             {stripe.Config{Secrets: []string{"whsec_a"}, Livemode: "both"}, "STRIPE_LIVEMODE"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := stripe.New(c.cfg)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestSignatures(t *testing.T) {
	const body = `{"id":"evt_1","type":"x"}`
	s := newSource(t, stripe.Any, secret, "whsec_previous")
	at := now()
	good := sign(body, secret, at)
	t0 := fmt.Sprintf("t=%d", at.Unix())
	signed := func(off time.Duration) string {
		return fmt.Sprintf("t=%d,v1=%s", at.Add(off).Unix(), sign(body, secret, at.Add(off)))
	}
	for name, c := range map[string]struct {
		signature string
		want      source.Reason
	}{
		"signed":                                {t0 + ",v1=" + good, ""},
		"signed with the other secret":          {t0 + ",v1=" + sign(body, "whsec_previous", at), ""},
		"signed with both":                      {t0 + ",v1=" + sign(body, "whsec_gone", at) + ",v1=" + good, ""},
		"v0 beside it":                          {t0 + ",v1=" + good + ",v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39", ""},
		"upper-case hex":                        {t0 + ",v1=" + strings.ToUpper(good), ""},
		"an undecodable v1 beside it":           {t0 + ",v1=zz,v1=" + good, ""},
		"several times, the last one signed":    {"t=1," + t0 + ",v1=" + good, ""},
		"300 s ago":                             {signed(-300 * time.Second), ""},
		"300 s ahead":                           {signed(300 * time.Second), ""},
		"301 s ago":                             {signed(-301 * time.Second), source.OutOfTolerance},
		"301 s ahead":                           {signed(301 * time.Second), source.OutOfTolerance},
		"ten years ahead":                       {signed(10 * 365 * 24 * time.Hour), source.OutOfTolerance},
		"none":                                  {"", source.SignatureMissing},
		"forged, with an old time":              {"t=1,v1=" + good, source.SignatureInvalid},
		"made with an unknown secret":           {t0 + ",v1=" + sign(body, "whsec_gone", at), source.SignatureInvalid},
		"made with an empty secret":             {t0 + ",v1=" + sign(body, "", at), source.SignatureInvalid},
		"of another body":                       {t0 + ",v1=" + sign(body+" ", secret, at), source.SignatureInvalid},
		"v0 only":                               {t0 + ",v0=" + good, source.SignatureInvalid},
		"no time":                               {"v1=" + good, source.SignatureInvalid},
		"no signature":                          {t0, source.SignatureInvalid},
		"several times, not the last signed":    {t0 + ",t=1,v1=" + good, source.SignatureInvalid},
		"a time that is no number":              {"t=now,v1=" + good, source.SignatureInvalid},
		"a time out of range":                   {"t=99999999999999999999,v1=" + good, source.SignatureInvalid},
		"a space after the comma":               {t0 + ", v1=" + good, source.SignatureInvalid},
		"a trailing comma":                      {t0 + ",v1=" + good + ",", source.SignatureInvalid},
		"two equals signs":                      {t0 + ",v1=" + good + ",a==b", source.SignatureInvalid},
		"rubbish":                               {"\xff\x00", source.SignatureInvalid},
		"the signature of another scheme alone": {"v1," + good, source.SignatureInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			refusal := s.Verify(header(c.signature), []byte(body), now())
			if c.want == "" {
				require.Nil(t, refusal)
				return
			}
			require.NotNil(t, refusal)
			require.Equal(t, c.want, refusal.Reason)
			require.Equal(t, 400, refusal.Reason.Status())
		})
	}
}

func TestRead(t *testing.T) {
	at := time.Date(2024, 3, 4, 5, 6, 7, 0, time.UTC)
	event := func(id, kind, account string, occurred time.Time) source.Event {
		return source.Event{ID: id, Type: kind, Account: account, Occurred: occurred}
	}
	unix := fmt.Sprint(at.Unix())
	for name, c := range map[string]struct {
		body string
		want source.Event
	}{
		"customer as id":       {`{"id":"evt_1","type":"invoice.paid","created":` + unix + `,"data":{"object":{"id":"in_1","customer":"cus_1"}}}`, event("evt_1", "invoice.paid", "cus_1", at)},
		"customer expanded":    {`{"id":"evt_1","type":"invoice.paid","created":` + unix + `,"data":{"object":{"customer":{"id":"cus_1"}}}}`, event("evt_1", "invoice.paid", "cus_1", at)},
		"the customer itself":  {`{"id":"evt_1","type":"customer.updated","data":{"object":{"id":"cus_1","object":"customer"}}}`, event("evt_1", "customer.updated", "cus_1", time.Time{})},
		"an object without":    {`{"id":"evt_1","type":"product.created","data":{"object":{"id":"prod_1","object":"product"}}}`, event("evt_1", "product.created", "", time.Time{})},
		"customer null":        {`{"id":"evt_1","type":"x","data":{"object":{"customer":null}}}`, event("evt_1", "x", "", time.Time{})},
		"customer of no kind":  {`{"id":"evt_1","type":"x","data":{"object":{"customer":[7]}}}`, event("evt_1", "x", "", time.Time{})},
		"no data":              {`{"id":"evt_1","type":"invoice.paid"}`, event("evt_1", "invoice.paid", "", time.Time{})},
		"data null":            {`{"id":"evt_1","type":"invoice.paid","data":null}`, event("evt_1", "invoice.paid", "", time.Time{})},
		"a v2 thin event":      {`{"id":"evt_2","object":"v2.core.event","type":"v1.billing.meter.no_meter_found","created":"2024-03-04T05:06:07.000Z","related_object":null}`, event("evt_2", "v1.billing.meter.no_meter_found", "", at)},
		"an old request field": {`{"id":"evt_1","type":"x","request":"req_1","api_version":null}`, event("evt_1", "x", "", time.Time{})},
		"created a fraction":   {`{"id":"evt_1","type":"x","created":1.5}`, event("evt_1", "x", "", time.Time{})},
		"created out of range": {`{"id":"evt_1","type":"x","created":9223372036854775807}`, event("evt_1", "x", "", time.Time{})},
		"created negative":     {`{"id":"evt_1","type":"x","created":-1}`, event("evt_1", "x", "", time.Time{})},
		"duplicate keys":       {`{"id":"evt_1","type":"x","data":{"object":{"customer":"cus_1"}},"id":"evt_9","data":{"object":{}}}`, event("evt_9", "x", "", time.Time{})},
		"escaped text":         {`{"\u0069d":"evt_\u0031","type":"x"}`, event("evt_1", "x", "", time.Time{})},
		"a very long customer": {`{"id":"evt_1","type":"x","data":{"object":{"customer":"` + strings.Repeat("c", 256) + `"}}}`, event("evt_1", "x", "", time.Time{})},
	} {
		t.Run(name, func(t *testing.T) {
			got, refusal := newSource(t, stripe.Any, secret).Read(header(""), []byte(c.body))
			require.Nil(t, refusal)
			require.Equal(t, c.want, got)
		})
	}
}

func TestOrganizationThatAnObjectNames(t *testing.T) {
	for name, c := range map[string]struct{ object, want string }{
		"organizationId comes first":              {`{"metadata":{"organizationId":"a","org_id":"b"}}`, "a"},
		"then org_id":                             {`{"metadata":{"organization_id":"c","org_id":"b"}}`, "b"},
		"then organization_id":                    {`{"metadata":{"organization_id":"c"}}`, "c"},
		"the invoice's subscription, before 2025": {`{"metadata":{},"subscription_details":{"metadata":{"org_id":"d"}}}`, "d"},
		"the invoice's subscription, since 2025": {
			`{"parent":{"subscription_details":{"metadata":{"organizationId":"e"}}},"subscription_details":{"metadata":{"org_id":"d"}}}`, "e"},
		"what is no organization's id is passed over": {`{"metadata":{"organizationId":"a b","org_id":"f"}}`, "f"},
		"no text":     {`{"metadata":{"organizationId":7}}`, ""},
		"no metadata": {`{"metadata":null}`, ""},
		"no object":   {`7`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, refusal := newSource(t, stripe.Any, secret).Read(header(""), []byte(`{"id":"evt_1","type":"x","data":{"object":`+c.object+`}}`))
			require.Nil(t, refusal)
			require.Equal(t, c.want, got.Organization)
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"nothing":             ``,
		"no JSON":             `id=evt_1`,
		"an array":            `[{"id":"evt_1","type":"x"}]`,
		"null":                `null`,
		"cut":                 `{"id":"evt_1","type":"x"`,
		"something behind":    `{"id":"evt_1","type":"x"}{}`,
		"no id":               `{"type":"x"}`,
		"no type":             `{"id":"evt_1"}`,
		"id null":             `{"id":null,"type":"x"}`,
		"id a number":         `{"id":7,"type":"x"}`,
		"id an object":        `{"id":{"id":"evt_1"},"type":"x"}`,
		"id empty":            `{"id":"","type":"x"}`,
		"type empty":          `{"id":"evt_1","type":""}`,
		"a later id is null":  `{"id":"evt_1","type":"x","id":null}`,
		"a very long id":      `{"id":"` + strings.Repeat("e", 256) + `","type":"x"}`,
		"a very long type":    `{"id":"evt_1","type":"` + strings.Repeat("e", 256) + `"}`,
		"not UTF-8":           "{\"id\":\"evt_1\",\"type\":\"x\",\"a\":\"\xff\"}",
		"65 levels":           `{"id":"evt_1","type":"x","a":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`,
		"one million levels":  `{"id":"evt_1","type":"x","a":` + strings.Repeat(`{"a":`, 1000000),
		"a control character": "{\"id\":\"evt_1\",\"type\":\"x\n\"}",
	} {
		t.Run(name, func(t *testing.T) {
			_, refusal := newSource(t, stripe.Any, secret).Read(header(""), []byte(body))
			require.NotNil(t, refusal)
			require.Equal(t, source.Malformed, refusal.Reason)
			require.Less(t, len(refusal.Detail), 100, "the detail does not quote the body")
		})
	}
}

func TestLivemode(t *testing.T) {
	const live, test, neither = `{"id":"e","type":"x","livemode":true}`, `{"id":"e","type":"x","livemode":false}`, `{"id":"e","type":"x"}`
	for mode, ignored := range map[stripe.Livemode]map[string]bool{
		stripe.Any:  {live: false, test: false, neither: false},
		stripe.Live: {live: false, test: true, neither: false},
		stripe.Test: {live: true, test: false, neither: false},
	} {
		for body, want := range ignored {
			e, refusal := newSource(t, mode, secret).Read(header(""), []byte(body))
			require.Nil(t, refusal)
			require.Equal(t, want, e.Ignored != "", "%s %s", mode, body)
		}
	}
}

// The envelope of every captured event is read as encoding/json reads it.
func TestFixtures(t *testing.T) {
	for _, path := range []string{
		"pay/account.updated.json", "stripe-ruby-mock/customer.subscription.created.json", "stripe-ruby-mock/invoice.paid.json",
		"stripe-ruby-mock/checkout.session.completed.json", "stripe-sync-engine/subscription_created.json",
		"stripe-sync-engine/active_entitlement_summary_updated.json", "stripe-sync-engine/invoice_paid.json",
	} {
		t.Run(path, func(t *testing.T) {
			body := testenv.Fixture(t, "stripe/"+path)
			var want struct {
				ID, Type string
				Created  int64
				Data     struct{ Object struct{ Customer *string } }
			}
			require.NoError(t, json.Unmarshal(body, &want))
			got, refusal := newSource(t, stripe.Any, secret).Read(header(""), body)
			require.Nil(t, refusal)
			require.Equal(t, want.ID, got.ID)
			require.Equal(t, want.Type, got.Type)
			require.Equal(t, want.Created, got.Occurred.Unix())
			if want.Data.Object.Customer != nil {
				require.Equal(t, *want.Data.Object.Customer, got.Account)
			}
		})
	}
}

func FuzzVerifyAndRead(f *testing.F) {
	f.Add("t=1767323045,v1=00", []byte(`{"id":"evt_1","type":"x","created":1,"data":{"object":{"customer":"cus_1"}}}`))
	f.Add("", []byte(`{}`))
	f.Add("t=,v1", []byte("\xff"))
	f.Fuzz(func(t *testing.T, signature string, body []byte) {
		s := newSource(t, stripe.Live, secret)
		refusal := s.Verify(header(signature), body, now())
		if refusal == nil {
			require.NoError(t, webhook.ValidatePayloadIgnoringTolerance(body, string(header(signature).Peek("Stripe-Signature")), secret))
		}
		at := fmt.Sprintf("t=%d,v1=%s", now().Unix(), sign(string(body), secret, now()))
		require.Nil(t, s.Verify(header(at), body, now()))
		e, refusal := s.Read(header(""), body)
		if refusal == nil {
			require.True(t, json.Valid(body))
			require.True(t, e.ID != "" && e.Type != "" && len(e.ID) < 256 && len(e.Type) < 256 && len(e.Account) < 256)
		}
	})
}
