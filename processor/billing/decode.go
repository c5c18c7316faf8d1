package billing

import (
	"math"

	"github.com/betterdata/webhooks/internal/jsonscan"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Where the fields are. The constants are the paths' places in what the scanners give.
const (
	eventCreated = iota
	eventLivemode
	eventObject
	envelopePaths
)

var envelope = jsonscan.Compile("/created", "/livemode", "/data/object")

const (
	subObject = iota
	subID
	subCustomer
	subCustomerID
	subStatus
	subItems
	subPrice
	subPlan
	subQuantity
	subPeriodStart
	subPeriodEnd
	subCancelAt
	subCancelAtPeriodEnd
	subCanceledAt
	subEndedAt
	subTrialEnd
	subscriptionPaths
)

var subscription = jsonscan.Compile(
	"/object", "/id", "/customer", "/customer/id", "/status", "/items/data", "/price", "/plan", "/quantity",
	"/current_period_start", "/current_period_end", "/cancel_at", "/cancel_at_period_end", "/canceled_at",
	"/ended_at", "/trial_end",
)

const (
	itemID = iota
	itemPrice
	itemPlan
	itemQuantity
	itemPeriodStart
	itemPeriodEnd
	itemPaths
)

var item = jsonscan.Compile("/id", "/price", "/plan", "/quantity", "/current_period_start", "/current_period_end")

const (
	priceID = iota
	priceLookupKey
	priceProduct
	priceProductID
	pricePaths
)

var price = jsonscan.Compile("/id", "/lookup_key", "/product", "/product/id")

const (
	invObject = iota
	invID
	invCustomer
	invCustomerID
	invSubscription
	invSubscriptionID
	invParentSubscription
	invParentSubscriptionID
	invAmountPaid
	invAmountDue
	invCurrency
	invAttemptCount
	invNextAttempt
	invoicePaths
)

var invoice = jsonscan.Compile(
	"/object", "/id", "/customer", "/customer/id", "/subscription", "/subscription/id",
	"/parent/subscription_details/subscription", "/parent/subscription_details/subscription/id",
	"/amount_paid", "/amount_due", "/currency", "/attempt_count", "/next_payment_attempt",
)

const (
	// maxText bounds an id or key; Stripe's are at most 255 characters.
	maxText = 255
	// maxUnix is the end of the year 2199: ClickHouse's DateTime64 ends in 2299, and a time that a table refuses must not
	// reach it.
	maxUnix = 7258118399
	// maxItems bounds the items kept of a subscription; Stripe allows 20.
	maxItems = 100
)

// reader reads fields that may be absent or null; anything else of the wrong kind makes it bad.
type reader struct{ bad bool }

func (r *reader) text(v jsonscan.Value) string {
	if v.Exists() && (v.Kind != jsonscan.String || len(v.Raw) > maxText+2) {
		r.bad = true
		return ""
	}
	return v.String()
}

// reference reads an id that may be given as the expanded object.
func (r *reader) reference(v, expandedID jsonscan.Value) string {
	if v.Kind == jsonscan.Object {
		return r.text(expandedID)
	}
	return r.text(v)
}

func (r *reader) bool(v jsonscan.Value) bool {
	b, ok := v.Bool()
	r.bad = r.bad || v.Exists() && !ok
	return b
}

func (r *reader) integer(v jsonscan.Value, from, to int64) int64 {
	n, ok := v.Int64()
	if v.Exists() && (!ok || n < from || n > to) {
		r.bad = true
		return 0
	}
	return n
}

// time reads seconds since the epoch and gives milliseconds.
func (r *reader) time(v jsonscan.Value) int64 { return 1000 * r.integer(v, 0, maxUnix) }

func (r *reader) count(v jsonscan.Value) uint32 { return uint32(r.integer(v, 0, math.MaxUint32)) }

func (r *reader) amount(v jsonscan.Value) *int64 {
	if !v.Exists() {
		return nil
	}
	n := r.integer(v, math.MinInt64, math.MaxInt64)
	return &n
}

// items reads the items of a subscription and its period. Of the items' periods the latest counts: access lasts until
// the last of them ends. A subscription from before items had periods has one of its own, and one from before there
// were items has a price or plan of its own.
func (r *reader) items(s *webhooksv1.Subscription, v []jsonscan.Value) {
	if list := v[subItems]; list.Exists() && list.Kind != jsonscan.Array {
		r.bad = true
	}
	for element := range v[subItems].Elements() {
		if element.Kind != jsonscan.Object || len(s.Items) == maxItems {
			r.bad = true
			return
		}
		r.item(s, element)
	}
	if s.CurrentPeriodStartUnixMs == 0 && s.CurrentPeriodEndUnixMs == 0 {
		s.CurrentPeriodStartUnixMs = r.time(v[subPeriodStart])
		s.CurrentPeriodEndUnixMs = r.time(v[subPeriodEnd])
	}
	if own := r.price(v[subPrice], v[subPlan]); len(s.Items) == 0 && own.PriceId != "" {
		own.Quantity = r.amount(v[subQuantity])
		s.Items = append(s.Items, own)
	}
}

func (r *reader) item(s *webhooksv1.Subscription, element jsonscan.Value) {
	var v [itemPaths]jsonscan.Value
	if item.Scan(element.Raw, v[:]) != nil {
		r.bad = true
		return
	}
	i := r.price(v[itemPrice], v[itemPlan])
	i.Id = r.text(v[itemID])
	i.Quantity = r.amount(v[itemQuantity])
	s.Items = append(s.Items, i)
	s.CurrentPeriodStartUnixMs = max(s.CurrentPeriodStartUnixMs, r.time(v[itemPeriodStart]))
	s.CurrentPeriodEndUnixMs = max(s.CurrentPeriodEndUnixMs, r.time(v[itemPeriodEnd]))
}

// price reads what is bought: a price, or where there is none the plan that came before prices. Each may be an id or an
// object.
func (r *reader) price(newer, legacy jsonscan.Value) *webhooksv1.SubscriptionItem {
	if !newer.Exists() {
		newer = legacy
	}
	if newer.Kind != jsonscan.Object {
		return &webhooksv1.SubscriptionItem{PriceId: r.text(newer)}
	}
	var v [pricePaths]jsonscan.Value
	if price.Scan(newer.Raw, v[:]) != nil {
		r.bad = true
	}
	return &webhooksv1.SubscriptionItem{
		PriceId:   r.text(v[priceID]),
		LookupKey: r.text(v[priceLookupKey]),
		ProductId: r.reference(v[priceProduct], v[priceProductID]),
	}
}
