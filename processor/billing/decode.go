package billing

import (
	"math"

	"github.com/betterdata/webhooks/internal/jsonscan"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Where the fields are. The constants are the paths' places in what the scanners give; each body is scanned once.
const (
	eventCreated = iota
	eventLivemode
	eventObject
	objectName
	objectID
	objectCustomer
	objectCustomerID
	commonPaths
)

const (
	subStatus = commonPaths + iota
	subItems
	subItemsData
	subPrice
	subPlan
	subPeriodStart
	subPeriodEnd
	subCancelAt
	subCancelAtPeriodEnd
	subCanceledAt
	subEndedAt
	subTrialEnd
	subscriptionPaths
)

const (
	invSubscription = commonPaths + iota
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

// compile makes a scanner of the common paths and those given, below data.object.
func compile(paths ...string) *jsonscan.Scanner {
	all := []string{
		"/created", "/livemode", "/data/object",
		"/data/object/object", "/data/object/id", "/data/object/customer", "/data/object/customer/id",
	}
	for _, path := range paths {
		all = append(all, "/data/object/"+path)
	}
	return jsonscan.Compile(all...)
}

var subscription = compile(
	"status", "items", "items/data", "price", "plan", "current_period_start", "current_period_end",
	"cancel_at", "cancel_at_period_end", "canceled_at", "ended_at", "trial_end",
)

var invoice = compile(
	"subscription", "subscription/id",
	"parent/subscription_details/subscription", "parent/subscription_details/subscription/id",
	"amount_paid", "amount_due", "currency", "attempt_count", "next_payment_attempt",
)

// An item names what is bought by a price, or by the plan that came before prices.
const (
	itemPrice = iota
	itemPriceID
	itemPriceLookupKey
	itemPriceProduct
	itemPriceProductID
	itemPlan
	itemPlanID
	itemPlanProduct
	itemPlanProductID
	itemID
	itemQuantity
	itemPeriodStart
	itemPeriodEnd
	itemPaths
)

var item = jsonscan.Compile(
	"/price", "/price/id", "/price/lookup_key", "/price/product", "/price/product/id",
	"/plan", "/plan/id", "/plan/product", "/plan/product/id",
	"/id", "/quantity", "/current_period_start", "/current_period_end",
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

// items reads the items of a subscription and its period. An empty list is judged by priced; items that are no list are a bad field.
// Of the items' periods the latest counts: access lasts until the last of them ends. A subscription from before items had
// periods has one of its own, and one from before there were items has a price or plan of its own.
func (r *reader) items(s *webhooksv1.Subscription, v []jsonscan.Value) {
	list, data := v[subItems], v[subItemsData]
	if list.Exists() && list.Kind != jsonscan.Object || data.Exists() && data.Kind != jsonscan.Array {
		r.bad = true
	}
	for element := range data.Elements() {
		if element.Kind != jsonscan.Object || len(s.Items) == maxItems {
			r.bad = true
			return
		}
		r.item(s, element.Raw)
	}
	if s.CurrentPeriodStartUnixMs == 0 && s.CurrentPeriodEndUnixMs == 0 {
		s.CurrentPeriodStartUnixMs = r.time(v[subPeriodStart])
		s.CurrentPeriodEndUnixMs = r.time(v[subPeriodEnd])
	}
	if len(s.Items) == 0 && (v[subPrice].Exists() || v[subPlan].Exists()) {
		// The members that matter have the names they have in an item, all but the id.
		r.item(s, v[eventObject].Raw)
		for _, own := range s.Items {
			own.Id = ""
		}
	}
}

func (r *reader) item(s *webhooksv1.Subscription, object []byte) {
	var v [itemPaths]jsonscan.Value
	if item.Scan(object, v[:]) != nil {
		r.bad = true
		return
	}
	i := &webhooksv1.SubscriptionItem{Id: r.text(v[itemID]), Quantity: r.amount(v[itemQuantity])}
	if v[itemPrice].Exists() {
		i.PriceId = r.reference(v[itemPrice], v[itemPriceID])
		i.LookupKey = r.text(v[itemPriceLookupKey])
		i.ProductId = r.reference(v[itemPriceProduct], v[itemPriceProductID])
	} else {
		i.PriceId = r.reference(v[itemPlan], v[itemPlanID])
		i.ProductId = r.reference(v[itemPlanProduct], v[itemPlanProductID])
	}
	s.Items = append(s.Items, i)
	s.CurrentPeriodStartUnixMs = max(s.CurrentPeriodStartUnixMs, r.time(v[itemPeriodStart]))
	s.CurrentPeriodEndUnixMs = max(s.CurrentPeriodEndUnixMs, r.time(v[itemPeriodEnd]))
}
