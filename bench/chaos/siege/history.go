package siege

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// way is how an organization's events come.
type way int

const (
	direct    way = iota // the edge knows the organization
	connected            // held until the organization connects its account
	learnt               // held until an event names the organization
	moving               // held until it is connected, and then moved about between organizations
	shared               // learnt for one organization after another, and moved by API now and then
	stranger             // held, for nobody ever connects the account
	nameless             // buried, for they name neither an account nor an organization
)

// organization is one as Stripe and its admins would know it: it says what comes next.
type organization struct {
	name, customer string
	way            way
	endpoints      [][]string // their patterns
	rng            *rand.Rand

	// sent counts what has been sent, known is set once its account can be known. connections counts how often that was
	// connected, and connection is the last of the commands that made one, nil while it is disconnected.
	sent        int
	known       bool
	connections int
	connection  *webhooksv1.Command

	subscriptions []*subscription
	made          int
	// kept are events that may be sent again: the first stays, the others are replaced.
	kept []*message
	// late are events that others overtake.
	late []*message
}

type subscription struct {
	id, status, price string
	quantity          int
	period, trialEnd  int64 // seconds
}

// message is an event or a command on its way.
type message struct {
	eventType, id string
	// named is the organization that the event names in its metadata, "" for none.
	named string
	body  []byte
	// created is the body's, in seconds; zero where it has none.
	created int64
	// command is set instead of a body.
	command *webhooksv1.Command
	// overtaken is how many are sent before it.
	overtaken int
}

// wayOf spreads the ways over the organizations.
func wayOf(n int) way {
	switch n % 20 {
	case 3, 7:
		return connected
	case 11:
		return learnt
	case 13, 15:
		return moving
	case 17:
		return shared
	case 19:
		switch n % 100 {
		case 19:
			return stranger
		case 39:
			return nameless
		}
	}
	return direct
}

func newOrganization(n int, rng *rand.Rand) *organization {
	name := fmt.Sprintf("org_%06d", n)
	o := &organization{name: name, customer: "cus_" + name, way: wayOf(n), endpoints: patterns(n / 20), rng: rng}
	if o.way == nameless {
		o.customer = ""
	}
	return o
}

func (o *organization) account() string { return schemas.AccountKey(schemas.SourceStripe, o.customer) }

// connectAfter and keep bound how long events are held, and how many are remembered to be sent again. An account that is
// moved about is so after moveAfter messages, one that is shared after moveSharedAfter.
const (
	connectAfter    = 4
	moveAfter       = 4
	moveSharedAfter = 20
	keep            = 6
)

// holders are the organizations that an account is moved about between, or learnt for.
func (o *organization) holders() []string { return []string{o.name, o.name + "-b", o.name + "-c"} }

// again is how many of a hundred messages were sent before.
func (o *organization) again() int {
	if o.way == moving || o.way == shared || o.way == nameless {
		return 30
	}
	return 6
}

// next is what comes next; now is when. An organization makes its endpoints first.
func (o *organization) next(now time.Time) *message {
	o.sent++
	if n := o.sent - 1; n < len(o.endpoints) {
		return o.createEndpoint(n)
	}
	connects := o.way == connected || o.way == moving
	if connects && !o.known && o.sent > len(o.endpoints)+connectAfter {
		o.known = true
		return o.connect(o.name)
	}
	if m := o.move(); m != nil {
		return m
	}
	for i, m := range o.late {
		if m.overtaken--; m.overtaken < 0 {
			o.late = append(o.late[:i], o.late[i+1:]...)
			return m
		}
	}
	if len(o.kept) > 0 && o.rng.IntN(100) < o.again() {
		return o.kept[o.rng.IntN(len(o.kept))]
	}
	m := o.event(now)
	if o.way == learnt && !o.known && o.sent > len(o.endpoints)+connectAfter {
		o.known, m.named = true, o.name
	}
	o.remember(m)
	if o.rng.IntN(100) < 6 {
		// Another is made, and sent before it.
		m.overtaken = 1 + o.rng.IntN(3)
		o.late = append(o.late, m)
		m = o.event(now)
		o.remember(m)
	}
	return m
}

// move is what an admin does to the account now and then; nil for nothing. What was connected of a shared account is
// disconnected soon, and learnt again.
func (o *organization) move() *message {
	switch {
	case o.way == moving && o.known && o.rng.IntN(moveAfter) == 0:
		if o.connection != nil && o.rng.IntN(4) == 0 {
			return o.disconnect()
		}
	case o.way == shared && o.connection != nil && o.rng.IntN(moveAfter) == 0:
		return o.disconnect()
	case o.way == shared && o.sent > len(o.endpoints) && o.rng.IntN(moveSharedAfter) == 0:
	default:
		return nil
	}
	return o.connect(o.holders()[o.rng.IntN(3)])
}

func (o *organization) remember(m *message) {
	if len(o.kept) < keep {
		o.kept = append(o.kept, m)
		return
	}
	o.kept[1+o.rng.IntN(keep-1)] = m
}

// last are those that are still to be sent when the run is over.
func (o *organization) last() []*message {
	late := o.late
	o.late = nil
	return late
}

// patterns are those of organizations' endpoints, which differ: none; one that wants everything; one beside one that wants
// nothing of what comes; and one more that is disabled.
func patterns(n int) [][]string {
	return [][][]string{
		nil, {{"*"}}, {{"subscription.*"}, {"loop.*", "order.*"}}, {{"*"}, {"subscription.updated"}, {disabled, "*"}},
	}[n%4]
}

// disabled marks an endpoint that is created disabled; it is no event type.
const disabled = "disabled"

func (o *organization) createEndpoint(n int) *message {
	patterns := o.endpoints[n]
	command := &webhooksv1.Command{
		Id: id.Derive(id.Command, o.name, "endpoint", fmt.Sprint(n)), OrganizationId: o.name, KeyId: "admin",
		Action: &webhooksv1.Command_CreateEndpoint{CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: &webhooksv1.Endpoint{
			Id: id.Derive(id.Endpoint, o.name, fmt.Sprint(n)), OrganizationId: o.name, Url: "https://merchant.example/hooks",
			Enabled: patterns[0] != disabled, EventTypes: patterns, Signatures: []string{"v1"},
		}}},
	}
	return &message{command: command}
}

// connect gives the account to an organization, whoever holds it.
func (o *organization) connect(to string) *message {
	o.connections++
	n := fmt.Sprint(o.connections)
	command := &webhooksv1.Command{
		Id: id.Derive(id.Command, o.name, "connect", n), OrganizationId: to, KeyId: "admin",
		Action: &webhooksv1.Command_CreateConnection{CreateConnection: &webhooksv1.CreateConnection{Move: true, Connection: &webhooksv1.Connection{
			Id: id.Derive(id.Connection, o.name, n), Source: schemas.SourceStripe, Account: o.customer, Status: resource.ConnectionActive,
		}}},
	}
	if o.connection.GetOrganizationId() != to {
		o.connection = command
	}
	return &message{command: command}
}

// disconnect takes the connection away that there is.
func (o *organization) disconnect() *message {
	made := o.connection
	o.connection = nil
	return &message{command: &webhooksv1.Command{
		Id: id.Derive(id.Command, made.Id, "disconnect"), OrganizationId: made.OrganizationId, KeyId: "admin",
		Action: &webhooksv1.Command_DeleteConnection{DeleteConnection: &webhooksv1.DeleteConnection{
			ConnectionId: made.GetCreateConnection().Connection.Id, Source: schemas.SourceStripe, Account: o.customer,
		}},
	}}
}

// event makes one that was not there before.
func (o *organization) event(now time.Time) *message {
	o.made++
	m := &message{id: fmt.Sprintf("evt_%s_%06d", o.name, o.made)}
	if o.way == shared && o.rng.IntN(2) == 0 {
		m.named = o.holders()[o.rng.IntN(3)]
	}
	created := platformTime(now)
	switch r := o.rng.IntN(100); {
	case r < 2:
		o.poison(m, created)
	case r < 4:
		m.eventType = "customer.updated"
		m.body = eventBody(m, created, fmt.Appendf(nil, `{"id":%q,"object":"customer","email":"owner@merchant.example"}`, o.customer))
	case len(o.subscriptions) == 0 || r < 12 && len(o.subscriptions) < 3:
		o.create(m, created)
	case r < 70:
		o.change(m, created)
	default:
		o.invoice(m, created)
	}
	return m
}

// platformTime is what Stripe's clock shows, in seconds. It goes after by the time of grace but for some seconds, so that
// a subscription which becomes past due has its grace end while the run lasts.
func platformTime(now time.Time) int64 {
	return now.Add(nominalGrace - plans.Builtin().Grace).Unix()
}

// nominalGrace is what is left of the grace of a subscription that becomes past due.
const nominalGrace = 4 * time.Second

var (
	prices = []string{"scm_starter", "scm_pro", "scm_enterprise", "hosted", "free", "discontinued"}
	month  = int64(30 * 24 * 3600)
)

func (o *organization) create(m *message, created int64) {
	s := &subscription{
		id: fmt.Sprintf("sub_%s_%d", o.name, o.made), status: "active",
		price: prices[o.rng.IntN(len(prices))], quantity: 1, period: created,
	}
	if o.rng.IntN(3) == 0 {
		s.status, s.trialEnd = "trialing", created+14*24*3600
	}
	o.subscriptions = append(o.subscriptions, s)
	m.eventType = billing.SubscriptionCreated
	m.body = eventBody(m, created, o.object(s, 0))
}

// change moves one of the subscriptions on.
func (o *organization) change(m *message, created int64) {
	at := o.rng.IntN(len(o.subscriptions))
	s := o.subscriptions[at]
	m.eventType = billing.SubscriptionUpdated
	ended := int64(0)
	switch r := o.rng.IntN(100); {
	case r < 30:
		s.price = prices[o.rng.IntN(len(prices))]
	case r < 45:
		s.quantity = 1 + o.rng.IntN(100)
	case r < 75:
		s.status = "past_due"
		// Some graces end at once, some have ended.
		created += int64(o.rng.IntN(9)) - 5
	case r < 85:
		s.status, s.period = "active", s.period+month
	case r < 92:
		s.status = "active"
	default:
		s.status, ended = "canceled", created
		m.eventType = billing.SubscriptionDeleted
		o.subscriptions = append(o.subscriptions[:at:at], o.subscriptions[at+1:]...)
	}
	m.body = eventBody(m, created, o.object(s, ended))
}

func (o *organization) invoice(m *message, created int64) {
	s := o.subscriptions[o.rng.IntN(len(o.subscriptions))]
	m.eventType = billing.InvoicePaid
	paid, next := 49900, "null"
	if o.rng.IntN(3) == 0 {
		m.eventType, paid, next = billing.PaymentFailed, 0, fmt.Sprint(created+3*24*3600)
	}
	m.body = eventBody(m, created, fmt.Appendf(nil, invoiceObject, "in_"+m.id, paid, o.customer, next,
		s.period+month, s.period, s.id))
}

// poison is verified and cannot be used.
func (o *organization) poison(m *message, created int64) {
	m.eventType = billing.SubscriptionUpdated
	s := &subscription{id: "sub_poison", status: "active", price: "scm_pro", period: created}
	switch o.rng.IntN(4) {
	case 0:
		m.body = []byte(`{"id":"` + m.id + `","data":{"object":{"id":"sub_`)
	case 1:
		s.status = "on_holiday"
		m.body = eventBody(m, created, o.object(s, 0))
	case 2:
		m.body = eventBody(m, created, []byte(`{"id":"sub_poison","object":"subscription","customer":null,"status":"active"}`))
	default:
		m.body = eventBody(m, created, []byte(strings.Replace(string(o.object(s, 0)), `"subscription"`, `"invoice"`, 1)))
	}
}

func (o *organization) object(s *subscription, ended int64) []byte {
	orNull := func(seconds int64) string {
		if seconds == 0 {
			return "null"
		}
		return fmt.Sprint(seconds)
	}
	return fmt.Appendf(nil, subscriptionObject, s.id, orNull(ended), o.customer, orNull(ended), "si_"+s.id,
		s.period+month, s.period, "price_"+s.price, s.price, s.quantity, s.status, orNull(s.trialEnd))
}

func eventBody(m *message, created int64, object []byte) []byte {
	m.created = created
	return fmt.Appendf(nil, `{
  "id": %q,
  "object": "event",
  "api_version": "2025-03-31.basil",
  "created": %d,
  "data": {
    "object": %s
  },
  "livemode": true,
  "pending_webhooks": 1,
  "request": {"id": null, "idempotency_key": null},
  "type": %q
}`, m.id, created, object, m.eventType)
}

const subscriptionObject = `{
      "id": %q,
      "object": "subscription",
      "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
      "billing_mode": {"type": "classic"},
      "cancel_at": null,
      "cancel_at_period_end": false,
      "canceled_at": %s,
      "collection_method": "charge_automatically",
      "currency": "usd",
      "customer": %q,
      "default_payment_method": "pm_1RnZ0t2eZvKYlo2C9vX4hQ1s",
      "discounts": [],
      "ended_at": %s,
      "items": {
        "object": "list",
        "data": [
          {
            "id": %q,
            "object": "subscription_item",
            "current_period_end": %d,
            "current_period_start": %d,
            "price": {
              "id": %q,
              "object": "price",
              "currency": "usd",
              "lookup_key": %q,
              "product": "prod_scm",
              "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"},
              "unit_amount": 49900
            },
            "quantity": %d
          }
        ],
        "has_more": false,
        "total_count": 1
      },
      "latest_invoice": "in_1RnZ0u2eZvKYlo2CGh5VtY7n",
      "metadata": {},
      "status": %q,
      "trial_end": %s
    }`

const invoiceObject = `{
      "id": %q,
      "object": "invoice",
      "amount_due": 49900,
      "amount_paid": %d,
      "attempt_count": 1,
      "billing_reason": "subscription_cycle",
      "collection_method": "charge_automatically",
      "currency": "usd",
      "customer": %q,
      "next_payment_attempt": %s,
      "period_end": %d,
      "period_start": %d,
      "parent": {
        "type": "subscription_details",
        "subscription_details": {"metadata": {}, "subscription": %q}
      },
      "metadata": {}
    }`
