package billing

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const org = "org_1"

const testPlans = `
version: test
defaultPlan: FREE
graceDays: 7
plans:
  FREE: {tier: 0}
  STARTER: {tier: 1, match: [price_starter], capabilities: [REPLENISHMENT], limits: {locations: 2}}
  PRO: {tier: 2, match: [price_pro, "lookup:pro", prod_pro], capabilities: [FORECASTING], limits: {locations: 10}}
`

func parsedPlans(t require.TestingT) *plans.Plans {
	p, err := plans.Parse([]byte(testPlans))
	require.NoError(t, err)
	return p
}

// Times of the tests, in seconds: periods are a month apart.
const (
	day     = int64(24 * 60 * 60)
	period1 = int64(1_760_000_000)
	period2 = period1 + 30*day
	period3 = period2 + 30*day
)

// sub describes a subscription event.
type sub struct {
	eventID, eventType string
	id, status, price  string
	created            int64
	period             int64
	// accepted is when the edge took it; created when 0.
	accepted int64
}

func (s sub) event(t require.TestingT) *Event {
	e := &Event{
		Organization: org, ID: s.eventID, EventID: id.Derive(id.Event, "stripe", s.eventID), Type: s.eventType,
		AcceptedUnixMS: 1000 * max(s.created, s.accepted),
	}
	require.Equal(t, Usable, Decode(s.body(), e))
	return e
}

func (s sub) body() []byte {
	return fmt.Appendf(nil, `{"id":%q,"type":%q,"created":%d,"livemode":false,"data":{"object":{"id":%q,"object":"subscription",
		"customer":"cus_1","status":%q,"items":{"data":[{"id":"si_1","quantity":1,"price":{"id":%q,"product":"prod_1","lookup_key":null},
		"current_period_start":%d,"current_period_end":%d}]}}}}`,
		s.eventID, s.eventType, s.created, s.id, s.status, s.price, s.period, s.period+30*day)
}

// inv describes an invoice event.
type inv struct {
	eventID, eventType, id string
	amount, created        int64
}

func (i inv) event(t require.TestingT) *Event {
	e := &Event{
		Organization: org, ID: i.eventID, EventID: id.Derive(id.Event, "stripe", i.eventID), Type: i.eventType,
		AcceptedUnixMS: 1000 * i.created,
	}
	require.Equal(t, Usable, Decode(fmt.Appendf(nil, `{"created":%d,"data":{"object":{"id":%q,"object":"invoice","customer":"cus_1",
		"amount_paid":%d,"amount_due":%d,"currency":"usd","attempt_count":1,"next_payment_attempt":null,"subscription":"sub_1"}}}`,
		i.created, i.id, i.amount, i.amount), e))
	return e
}

// eventer is sub or inv.
type eventer interface {
	event(t require.TestingT) *Event
}

// apply plays a history from nothing and returns what every event did. Each step is given copies, as the store does.
func apply(t require.TestingT, p *plans.Plans, history ...eventer) (State, []Result) {
	var (
		s       State
		results []Result
	)
	for _, h := range history {
		r := Apply(copyOf(s), h.event(t), p)
		s = r.State
		results = append(results, r)
	}
	return s, results
}

func copyOf(s State) (c State) {
	if s.Record != nil {
		c.Record = proto.Clone(s.Record).(*webhooksv1.BillingRecord)
	}
	if s.Snapshot != nil {
		c.Snapshot = proto.Clone(s.Snapshot).(*webhooksv1.TenantCapabilitySnapshot)
	}
	return c
}

func asJSON(t *testing.T, v any) string {
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return string(text)
}

func at(seconds int64) string {
	return time.Unix(seconds, 0).UTC().Format("2006-01-02T15:04:05.000Z")
}
