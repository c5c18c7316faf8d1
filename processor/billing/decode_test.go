package billing

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// eventOf wraps the fixtures that are not whole events: some are `data`, some `data.object`.
func eventOf(t *testing.T, file, eventType string) []byte {
	body := testenv.Fixture(t, file)
	if !strings.Contains(file, "object-only") {
		return body
	}
	var v [1]jsonscan.Value
	require.NoError(t, jsonscan.Compile("/object").Scan(body, v[:]))
	if v[0].Kind != jsonscan.Object {
		body = fmt.Appendf(nil, `{"object":%s}`, body)
	}
	return fmt.Appendf(nil, `{"id":"evt_1","created":1745433970,"livemode":true,"type":%q,"data":%s}`, eventType, body)
}

func TestDecodeCapturedSubscriptions(t *testing.T) {
	quantity := func(n int64) *int64 { return &n }
	for file, test := range map[string]struct {
		eventType string
		want      *webhooksv1.Subscription
	}{
		"stripe/stripe-ruby-mock/customer.subscription.created.json": {SubscriptionCreated, &webhooksv1.Subscription{
			Id: "sub_000000000000000000000000", CustomerId: "cus_00000000000000", Status: "active",
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_00000000000000", PriceId: "price_000000000000000000000000", ProductId: "prod_00000000000000", Quantity: quantity(1),
			}},
			CurrentPeriodStartUnixMs: 1648320110000, CurrentPeriodEndUnixMs: 1650998510000,
			Position: &webhooksv1.SubscriptionPosition{EventUnixMs: 1648320110000, Rank: 1, PeriodStartUnixMs: 1648320110000, EventId: "evt_test"},
		}},
		"stripe/stripe-ruby-mock/customer.subscription.updated.json": {SubscriptionUpdated, &webhooksv1.Subscription{
			Id: "sub_000000000000000000000000", CustomerId: "cus_00000000000000", Status: "active",
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_00000000000000", PriceId: "price_000000000000000000000000", ProductId: "prod_00000000000000", Quantity: quantity(1),
			}},
			CurrentPeriodStartUnixMs: 1648320105000, CurrentPeriodEndUnixMs: 1650998505000,
			Position: &webhooksv1.SubscriptionPosition{EventUnixMs: 1648320106000, Rank: 2, PeriodStartUnixMs: 1648320105000, EventId: "evt_test"},
		}},
		"stripe/stripe-ruby-mock/customer.subscription.deleted.json": {SubscriptionDeleted, &webhooksv1.Subscription{
			Id: "sub_000000000000000000000000", CustomerId: "cus_00000000000000", Status: "canceled",
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_00000000000000", PriceId: "price_000000000000000000000000", ProductId: "prod_00000000000000", Quantity: quantity(1),
			}},
			CurrentPeriodStartUnixMs: 1648320096000, CurrentPeriodEndUnixMs: 1650998496000,
			CanceledUnixMs: 1648320097000, EndedUnixMs: 1648320097000,
			Position: &webhooksv1.SubscriptionPosition{
				Terminal: true, EventUnixMs: 1648320097000, Rank: 3, PeriodStartUnixMs: 1648320096000, EventId: "evt_test",
			},
		}},
		"stripe/stripe-sync-engine/subscription_updated.json": {SubscriptionUpdated, &webhooksv1.Subscription{
			Id: "sub_JLEPMp81LApOJl", CustomerId: "cus_IhGfebO16cMIGN", Status: "active",
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_JLEPdb3X81qQ9L", PriceId: "price_1IDQm5JDPojXS6LNM31hxKzp", ProductId: "prod_Ip4vqwv3EJ7Mi0", Quantity: quantity(1),
			}},
			CurrentPeriodStartUnixMs: 1618980344000, CurrentPeriodEndUnixMs: 1621572344000,
			Position: &webhooksv1.SubscriptionPosition{EventUnixMs: 1619706820000, Rank: 2, PeriodStartUnixMs: 1618980344000, EventId: "evt_test"},
		}},
		// Periods of the item, a terminal status in an update, a price id that an account chose itself.
		"stripe/pay/subscription.updated.object-only.json": {SubscriptionUpdated, &webhooksv1.Subscription{
			Id: "sub_00000000000000", CustomerId: "cus_00000000000000", Status: "canceled", Livemode: true,
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_00000000000000", PriceId: "FFBEGINNER_00000000000000", ProductId: "prod_00000000000000", Quantity: quantity(2),
			}},
			CurrentPeriodStartUnixMs: 1486568724000, CurrentPeriodEndUnixMs: 1488987924000,
			CanceledUnixMs: 1487872069000, EndedUnixMs: 1487872069000, TrialEndUnixMs: 1467992724000,
			Position: &webhooksv1.SubscriptionPosition{
				Terminal: true, EventUnixMs: 1745433970000, Rank: 2, PeriodStartUnixMs: 1486568724000, EventId: "evt_test",
			},
		}},
		"stripe/pay/subscription.deleted.object-only.json": {SubscriptionDeleted, &webhooksv1.Subscription{
			Id: "sub_00000000000000", CustomerId: "cus_00000000000000", Status: "canceled", Livemode: true,
			Items: []*webhooksv1.SubscriptionItem{{
				Id: "si_00000000000000", PriceId: "FFBEGINNER_00000000000000", ProductId: "prod_00000000000000", Quantity: quantity(1),
			}},
			CurrentPeriodStartUnixMs: 1486568724000, CurrentPeriodEndUnixMs: 1488987924000,
			CanceledUnixMs: 1487872069000, EndedUnixMs: 1546925027000, TrialEndUnixMs: 1467992724000,
			Position: &webhooksv1.SubscriptionPosition{
				Terminal: true, EventUnixMs: 1745433970000, Rank: 3, PeriodStartUnixMs: 1486568724000, EventId: "evt_test",
			},
		}},
	} {
		t.Run(file, func(t *testing.T) {
			e := &Event{ID: "evt_test", Type: test.eventType}
			require.Equal(t, Usable, Decode(eventOf(t, file, test.eventType), e))
			require.Equal(t, asJSON(t, test.want), asJSON(t, e.Subscription))
			require.Equal(t, test.want.Livemode, e.Livemode)
			require.Equal(t, test.want.CustomerId, e.CustomerID)
		})
	}
}

func TestDecodeCapturedInvoices(t *testing.T) {
	amount := func(n int64) *int64 { return &n }
	for file, test := range map[string]struct {
		eventType, customer string
		want                Invoice
	}{
		"stripe/stripe-ruby-mock/invoice.paid.json": {InvoicePaid, "cus_00000000000000", Invoice{
			ID: "in_000000000000000000000000", Amount: amount(2000), Currency: "usd", AttemptCount: 1,
		}},
		"stripe/stripe-ruby-mock/invoice.payment_failed.json": {PaymentFailed, "cus_00000000000000", Invoice{
			ID: "in_000000000000000000000000", Amount: amount(2000), Currency: "usd", AttemptCount: 1,
		}},
		"stripe/stripe-sync-engine/invoice_paid.json": {InvoicePaid, "cus_JsuO3bmrj0QlAw", Invoice{
			ID: "in_1KJqKBJDPojXS6LNJbvLUgEy", SubscriptionID: "sub_JsuPyCPhXWfZar", Amount: amount(0), Currency: "usd",
		}},
		// Since API 2025-03-31 the subscription is named by the invoice's parent.
		"stripe/pay/invoice.payment_failed.object-only.json": {PaymentFailed, "cus_1234", Invoice{
			ID: "in_1234", SubscriptionID: "sub_1234", Amount: amount(24900), Currency: "usd", AttemptCount: 1, NextAttemptUnixMS: 1745552783000,
		}},
		"stripe/pay/invoice.object-only.json": {InvoicePaid, "cus_S9YwWMaQEgeJYO", Invoice{
			ID: "in_1RFFohKXBGcbgpbZk9MxzDMc", Amount: amount(24512), Currency: "usd", AttemptCount: 1,
		}},
	} {
		t.Run(file, func(t *testing.T) {
			e := &Event{ID: "evt_test", Type: test.eventType}
			require.Equal(t, Usable, Decode(eventOf(t, file, test.eventType), e))
			require.Equal(t, test.customer, e.CustomerID)
			require.Equal(t, test.want, *e.Invoice)
		})
	}
}

// subscriptionBody is a usable event whose object has the given members instead or besides.
func subscriptionBody(members string) string {
	return withoutItems(`,"items":{"data":[{"price":"price_1"}]}` + members)
}

// withoutItems is one that lacks them, and so a price.
func withoutItems(members string) string {
	return `{"created":1760000000,"livemode":false,"data":{"object":{"id":"sub_1","object":"subscription","customer":"cus_1","status":"active"` + members + `}}}`
}

func TestDecodeShapes(t *testing.T) {
	for name, test := range map[string]struct {
		members string
		check   func(t *testing.T, s *webhooksv1.Subscription)
	}{
		"the period of the item before the subscription's": {
			`,"current_period_start":1,"current_period_end":2,"items":{"data":[{"price":"price_1","current_period_start":10,"current_period_end":20}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, int64(10000), s.CurrentPeriodStartUnixMs)
				require.Equal(t, int64(20000), s.CurrentPeriodEndUnixMs)
			},
		},
		"the latest of several items": {
			`,"items":{"data":[{"price":"price_1","current_period_start":10,"current_period_end":40},{"price":"price_2","current_period_start":20,"current_period_end":30}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, int64(20000), s.CurrentPeriodStartUnixMs)
				require.Equal(t, int64(40000), s.CurrentPeriodEndUnixMs)
			},
		},
		"the subscription's period where items have none": {
			`,"current_period_start":1,"current_period_end":2`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, int64(1000), s.CurrentPeriodStartUnixMs)
			},
		},
		"an expanded customer": {
			`,"customer":{"id":"cus_2","name":"x"}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "cus_2", s.CustomerId) },
		},
		"an expanded product and a lookup key": {
			`,"items":{"data":[{"price":{"id":"price_1","lookup_key":"pro","product":{"id":"prod_1"}}}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, "prod_1", s.Items[0].ProductId)
				require.Equal(t, "pro", s.Items[0].LookupKey)
				require.Nil(t, s.Items[0].Quantity)
			},
		},
		"a price given by its id": {
			`,"items":{"data":[{"price":"price_1"}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "price_1", s.Items[0].PriceId) },
		},
		"a legacy plan beside no price": {
			`,"items":{"data":[{"price":null,"plan":{"id":"gold","product":"prod_1"},"quantity":3}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, "gold", s.Items[0].PriceId)
				require.Equal(t, int64(3), *s.Items[0].Quantity)
			},
		},
		"null items beside a plan": {
			`,"items":null,"plan":{"id":"gold"}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "gold", s.Items[0].PriceId) },
		},
		"no items beside a plan": {
			`,"items":{"object":"list","data":[]},"plan":{"id":"gold"}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "gold", s.Items[0].PriceId) },
		},
		"a price known by its lookup key alone": {
			`,"items":{"data":[{"price":{"lookup_key":"pro"}}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "pro", s.Items[0].LookupKey) },
		},
		"a price known by its product alone": {
			`,"items":{"data":[{"price":{"id":null,"product":"prod_1"}}]}`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "prod_1", s.Items[0].ProductId) },
		},
		"cancel_at": {
			`,"cancel_at":50,"cancel_at_period_end":true,"current_period_end":40`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, int64(50000), s.CancelUnixMs) },
		},
		"cancel_at_period_end": {
			`,"cancel_at":null,"cancel_at_period_end":true,"current_period_end":40`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, int64(40000), s.CancelUnixMs) },
		},
		"the last of duplicate keys": {
			`,"status":"unpaid","items":{"data":[{"id":"si_1"}]},"items":{"data":[{"id":"si_2","price":"price_1"}]},"status":"paused"`,
			func(t *testing.T, s *webhooksv1.Subscription) {
				require.Equal(t, "paused", s.Status)
				require.Len(t, s.Items, 1)
				require.Equal(t, "si_2", s.Items[0].Id)
			},
		},
		"keys in another case are other keys": {
			`,"Status":"unpaid","STATUS":7`,
			func(t *testing.T, s *webhooksv1.Subscription) { require.Equal(t, "active", s.Status) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := &Event{ID: "evt_test", Type: SubscriptionUpdated}
			require.Equal(t, Usable, Decode([]byte(subscriptionBody(test.members)), e))
			test.check(t, e.Subscription)
		})
	}
}

func TestASubscriptionFromBeforeThereWereItems(t *testing.T) {
	for _, named := range []string{"price", "plan"} {
		e := &Event{ID: "evt_test", Type: SubscriptionUpdated}
		require.Equal(t, Usable, Decode([]byte(withoutItems(`,"`+named+`":{"id":"gold"},"quantity":2`)), e))
		require.Len(t, e.Subscription.Items, 1)
		require.Equal(t, "gold", e.Subscription.Items[0].PriceId)
		require.Equal(t, int64(2), *e.Subscription.Items[0].Quantity)
	}
}

// TestWhatGivesAccessSaysToWhat: it would be the default plan otherwise, of a customer that pays for another.
func TestWhatGivesAccessSaysToWhat(t *testing.T) {
	gives := map[string]bool{active: true, trialing: true, pastDue: true}
	for name, members := range map[string]string{
		"no items":                    ``,
		"null items":                  `,"items":null`,
		"a list without items":        `,"items":{"object":"list","data":[]}`,
		"a list of null":              `,"items":{"object":"list","data":null}`,
		"an item without price":       `,"items":{"data":[{"id":"si_1","quantity":1}]}`,
		"a null price":                `,"items":{"data":[{"id":"si_1","price":null,"plan":null}]}`,
		"an empty price":              `,"items":{"data":[{"id":"si_1","price":{}}]}`,
		"a price of no name":          `,"items":{"data":[{"id":"si_1","price":{"id":"","lookup_key":null,"product":null}}]}`,
		"one of two":                  `,"items":{"data":[{"price":"price_1"},{"price":null}]}`,
		"null price and plan its own": `,"price":null,"plan":null`,
	} {
		for _, status := range statuses {
			for _, eventType := range []string{SubscriptionCreated, SubscriptionUpdated, SubscriptionDeleted} {
				t.Run(name+"/"+status+"/"+eventType, func(t *testing.T) {
					want := Usable // what gives none must be able to end what was given
					if gives[status] && eventType != SubscriptionDeleted {
						want = NoPrice
					}
					e := &Event{ID: "evt_1", Type: eventType}
					require.Equal(t, want, Decode([]byte(withoutItems(members+`,"status":"`+status+`"`)), e))
				})
			}
		}
	}
}

func TestDecodeTakesTheLastOfDuplicateParents(t *testing.T) {
	e := &Event{Type: SubscriptionUpdated}
	require.Equal(t, NoID, Decode([]byte(`{"created":1,"data":{"object":{"id":"sub_1","customer":"cus_1","status":"active"},
		"object":{"customer":"cus_2","status":"active"}}}`), e))
}

func TestDecodeRefuses(t *testing.T) {
	invoiceBody := func(members string) string {
		return `{"created":1760000000,"data":{"object":{"id":"in_1","customer":"cus_1"` + members + `}}}`
	}
	for name, test := range map[string]struct {
		eventType, body string
		want            Reason
	}{
		"no bytes":                  {InvoicePaid, ``, Malformed},
		"not an object":             {InvoicePaid, `[]`, Malformed},
		"not UTF-8":                 {InvoicePaid, "{\"a\":\"\xff\"}", Malformed},
		"no data":                   {SubscriptionCreated, `{"created":1}`, NoObject},
		"null data":                 {SubscriptionCreated, `{"created":1,"data":null}`, NoObject},
		"an object that is a list":  {SubscriptionCreated, `{"created":1,"data":{"object":[]}}`, NoObject},
		"no created":                {SubscriptionCreated, `{"data":{"object":{}}}`, NoTime},
		"created as a string":       {SubscriptionCreated, `{"created":"2025-01-01","data":{"object":{}}}`, NoTime},
		"created negative":          {SubscriptionCreated, `{"created":-5,"data":{"object":{}}}`, NoTime},
		"created beyond all time":   {SubscriptionCreated, `{"created":9223372036854775807,"data":{"object":{}}}`, NoTime},
		"created with a fraction":   {SubscriptionCreated, `{"created":1.5,"data":{"object":{}}}`, NoTime},
		"livemode as a string":      {SubscriptionCreated, `{"created":1,"livemode":"yes","data":{"object":{}}}`, BadField},
		"another object":            {SubscriptionCreated, subscriptionBody(`,"object":"charge"`), WrongObject},
		"an invoice as another":     {InvoicePaid, invoiceBody(`,"object":"subscription"`), WrongObject},
		"an empty object":           {SubscriptionCreated, `{"created":1,"data":{"object":{}}}`, NoID},
		"a null id":                 {SubscriptionCreated, subscriptionBody(`,"id":null`), NoID},
		"a number as id":            {SubscriptionCreated, subscriptionBody(`,"id":7`), BadField},
		"an id too long":            {SubscriptionCreated, subscriptionBody(`,"id":"` + strings.Repeat("x", 256) + `"`), BadField},
		"no customer":               {SubscriptionCreated, subscriptionBody(`,"customer":null`), NoCustomer},
		"a customer without id":     {SubscriptionCreated, subscriptionBody(`,"customer":{}`), NoCustomer},
		"no status":                 {SubscriptionCreated, subscriptionBody(`,"status":null`), UnknownStatus},
		"an unknown status":         {SubscriptionUpdated, subscriptionBody(`,"status":"happy"`), UnknownStatus},
		"items that are a list":     {SubscriptionUpdated, subscriptionBody(`,"items":[{"price":{"id":"price_1"}}]`), BadField},
		"items that are a string":   {SubscriptionUpdated, subscriptionBody(`,"items":"si_1"`), BadField},
		"items that are a number":   {SubscriptionUpdated, subscriptionBody(`,"items":0`), BadField},
		"items that are a boolean":  {SubscriptionUpdated, subscriptionBody(`,"items":false`), BadField},
		"items that are bad last":   {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":"price_1"}]},"items":[]`), BadField},
		"bad items beside a plan":   {SubscriptionUpdated, subscriptionBody(`,"items":[],"plan":{"id":"gold"}`), BadField},
		"items' data, an object":    {SubscriptionUpdated, subscriptionBody(`,"items":{"data":{}}`), BadField},
		"items' data, a string":     {SubscriptionUpdated, subscriptionBody(`,"items":{"data":"si_1"}`), BadField},
		"an item that is a string":  {SubscriptionUpdated, subscriptionBody(`,"items":{"data":["x"]}`), BadField},
		"a period that is a string": {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"current_period_start":"x"}]}`), BadField},
		"a price that is a number":  {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":1}]}`), BadField},
		"a price that is a list":    {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":[]}]}`), BadField},
		"a price id, a number":      {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":{"id":1}}]}`), BadField},
		"a lookup key, a number":    {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":{"lookup_key":1}}]}`), BadField},
		"a product that is a list":  {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"price":{"product":[]}}]}`), BadField},
		"a plan that is a number":   {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"plan":1}]}`), BadField},
		"an own price, a number":    {SubscriptionUpdated, withoutItems(`,"price":1`), BadField},
		"an own plan, a list":       {SubscriptionUpdated, withoutItems(`,"plan":[]`), BadField},
		"a quantity as a string":    {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{"quantity":"1"}]}`), BadField},
		"an own period, a string":   {SubscriptionUpdated, subscriptionBody(`,"current_period_end":"x"`), BadField},
		"a status that is a list":   {SubscriptionUpdated, subscriptionBody(`,"status":["active"]`), BadField},
		"a customer that is a list": {SubscriptionUpdated, subscriptionBody(`,"customer":["cus_1"]`), BadField},
		"a customer id, a number":   {SubscriptionUpdated, subscriptionBody(`,"customer":{"id":1}`), BadField},
		"a trial's end, a string":   {SubscriptionUpdated, subscriptionBody(`,"trial_end":"x"`), BadField},
		"too many items":            {SubscriptionUpdated, subscriptionBody(`,"items":{"data":[{}` + strings.Repeat(`,{}`, maxItems) + `]}`), BadField},
		"an invoice without id":     {InvoicePaid, invoiceBody(`,"id":null`), NoID},
		"an invoice for nobody":     {InvoicePaid, invoiceBody(`,"customer":null`), NoCustomer},
		"an amount as a string":     {InvoicePaid, invoiceBody(`,"amount_paid":"12"`), BadField},
		"an amount with a fraction": {PaymentFailed, invoiceBody(`,"amount_due":1.5`), BadField},
		"an amount due, a list":     {PaymentFailed, invoiceBody(`,"amount_due":[]`), BadField},
		"a currency, a number":      {InvoicePaid, invoiceBody(`,"currency":840`), BadField},
		"a currency, an object":     {InvoicePaid, invoiceBody(`,"currency":{}`), BadField},
		"attempts below none":       {PaymentFailed, invoiceBody(`,"attempt_count":-1`), BadField},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, Decode([]byte(test.body), &Event{ID: "evt_1", Type: test.eventType}))
			require.Contains(t, Reasons(), test.want)
		})
	}
}

// FuzzDecode: no bytes make Decode panic, and whatever it takes can be applied, twice, and shown.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(subscriptionBody(`,"items":{"data":[{"price":{"id":"price_1"},"current_period_start":1}]}`)))
	f.Add([]byte(`{"created":1,"data":{"object":{"id":"in_1","customer":"cus_1","amount_paid":5,"parent":{"subscription_details":{"subscription":{"id":"sub_1"}}}}}}`))
	f.Add([]byte(`{"created":1,"data":null}`))
	p := parsedPlans(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, eventType := range Types() {
			e := &Event{Organization: org, ID: "evt_1", EventID: "evt_x", Type: eventType}
			if reason := Decode(body, e); reason != Usable {
				require.Contains(t, Reasons(), reason)
				continue
			}
			r := Apply(State{}, e, p)
			require.False(t, r.Stale)
			_, err := json.Marshal(ViewRecord(r.State.Record))
			require.NoError(t, err)
			again := *e
			require.True(t, Apply(r.State, &again, p).Stale)
		}
	})
}
