package billing

import (
	"slices"
	"strings"

	"github.com/betterdata/webhooks/internal/jsonscan"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Event is one event, read.
type Event struct {
	Organization string
	// ID is Stripe's id of the event, EventID ours of the same.
	ID, EventID string
	Type        string
	// AcceptedUnixMS is when the edge took it.
	AcceptedUnixMS int64

	// CreatedUnixMS is when it occurred, in Stripe's resolution of a second.
	CreatedUnixMS int64
	Livemode      bool
	CustomerID    string
	// One of the two is set.
	Subscription *webhooksv1.Subscription
	Invoice      *Invoice
}

// Invoice is what an invoice event says.
type Invoice struct {
	ID             string
	SubscriptionID string
	// Amount paid, or due where the payment failed; nil when the body has none.
	Amount            *int64
	Currency          string
	AttemptCount      uint32
	NextAttemptUnixMS int64
}

// Reason says why the content of a handled event cannot be used. The set is closed; "" means usable.
type Reason string

// Reasons.
const (
	Usable        Reason = ""
	Malformed     Reason = "malformed"      // not a JSON object
	NoObject      Reason = "no_object"      // data.object is not an object
	WrongObject   Reason = "wrong_object"   // data.object is neither subscription nor invoice as the type says
	NoTime        Reason = "no_time"        // created is not a Unix time
	NoID          Reason = "no_id"          // the object has no id
	NoCustomer    Reason = "no_customer"    // the object names no customer
	UnknownStatus Reason = "unknown_status" // a subscription status that Stripe does not document
	NoPrice       Reason = "no_price"       // a subscription that gives access does not say to what
	BadField      Reason = "bad_field"      // a field that is used has a wrong type or range
)

// Reasons are all reasons there are, for metrics and tests.
func Reasons() []Reason {
	return []Reason{Malformed, NoObject, WrongObject, NoTime, NoID, NoCustomer, UnknownStatus, NoPrice, BadField}
}

// statuses that Stripe documents for a subscription.
var statuses = []string{
	active, canceled, "incomplete", incompleteExpired, pastDue, "paused", trialing, "unpaid",
}

// accessing are those of a subscription that gives access, past_due for a time of grace.
var accessing = []string{active, trialing, pastDue}

// ranks of the subscription events among those of one second.
var ranks = map[string]uint32{SubscriptionCreated: 1, SubscriptionUpdated: 2, SubscriptionDeleted: 3}

// Decode reads the body of an event that Handles accepts into e, whose Organization, ID, EventID, Type and
// AcceptedUnixMS are set. Both of Stripe's shapes are read (before and since API 2025-03-31): periods of the items or
// of the subscription, `parent.subscription_details.subscription` or `subscription`; ids or expanded objects; prices or
// legacy plans. Any bytes may be given.
func Decode(body []byte, e *Event) Reason {
	if rank := ranks[e.Type]; rank != 0 {
		return e.decodeSubscription(body, rank)
	}
	return e.decodeInvoice(body)
}

// decodeCommon reads what all events have.
func (e *Event) decodeCommon(r *reader, v []jsonscan.Value, name string) Reason {
	if v[eventObject].Kind != jsonscan.Object {
		return NoObject
	}
	if e.CreatedUnixMS = r.time(v[eventCreated]); e.CreatedUnixMS == 0 {
		return NoTime
	}
	e.Livemode = r.bool(v[eventLivemode])
	if object := v[objectName]; object.Exists() && object.String() != name {
		return WrongObject
	}
	e.CustomerID = r.reference(v[objectCustomer], v[objectCustomerID])
	return Usable
}

// judge says whether the object can be used, once all of it was read.
func (e *Event) judge(r *reader, id string) Reason {
	switch {
	case r.bad:
		return BadField
	case id == "":
		return NoID
	case e.CustomerID == "":
		return NoCustomer
	}
	return Usable
}

func (e *Event) decodeSubscription(body []byte, rank uint32) Reason {
	var v [subscriptionPaths]jsonscan.Value
	if subscription.Scan(body, v[:]) != nil {
		return Malformed
	}
	var r reader
	if reason := e.decodeCommon(&r, v[:], "subscription"); reason != Usable {
		return reason
	}
	s := &webhooksv1.Subscription{
		Id:             r.text(v[objectID]),
		CustomerId:     e.CustomerID,
		Status:         r.text(v[subStatus]),
		CanceledUnixMs: r.time(v[subCanceledAt]),
		EndedUnixMs:    r.time(v[subEndedAt]),
		TrialEndUnixMs: r.time(v[subTrialEnd]),
		Livemode:       e.Livemode,
	}
	r.items(s, v[:])
	if s.CancelUnixMs = r.time(v[subCancelAt]); s.CancelUnixMs == 0 && r.bool(v[subCancelAtPeriodEnd]) {
		s.CancelUnixMs = s.CurrentPeriodEndUnixMs
	}
	if e.Type == SubscriptionDeleted && !terminal(s.Status) {
		// The event itself says that the subscription is gone.
		s.Status = canceled
	}
	s.Position = &webhooksv1.SubscriptionPosition{
		Terminal:          terminal(s.Status),
		EventUnixMs:       e.CreatedUnixMS,
		Rank:              rank,
		PeriodStartUnixMs: s.CurrentPeriodStartUnixMs,
		EventId:           e.ID,
	}
	e.Subscription = s
	if reason := e.judge(&r, s.Id); reason != Usable {
		return reason
	}
	if !slices.Contains(statuses, s.Status) {
		return UnknownStatus
	}
	if slices.Contains(accessing, s.Status) && !priced(s.Items) {
		return NoPrice
	}
	return Usable
}

// priced reports that every item says what is bought, and that there is one. Each subscription of Stripe's does, in all
// versions of its API, and of what does not, nobody knows the plan: to take it for none would quietly give a customer that pays
// the default plan, or the lesser of two. What gives no access needs no price, and must be able to end what was given.
func priced(items []*webhooksv1.SubscriptionItem) bool {
	return len(items) > 0 && !slices.ContainsFunc(items, func(i *webhooksv1.SubscriptionItem) bool { return nameOf(i) == "" })
}

func (e *Event) decodeInvoice(body []byte) Reason {
	var v [invoicePaths]jsonscan.Value
	if invoice.Scan(body, v[:]) != nil {
		return Malformed
	}
	var r reader
	if reason := e.decodeCommon(&r, v[:], "invoice"); reason != Usable {
		return reason
	}
	amount := v[invAmountPaid]
	if e.Type == PaymentFailed {
		amount = v[invAmountDue]
	}
	e.Invoice = &Invoice{
		ID:                r.text(v[objectID]),
		SubscriptionID:    r.reference(v[invParentSubscription], v[invParentSubscriptionID]),
		Amount:            r.amount(amount),
		Currency:          strings.ToLower(r.text(v[invCurrency])),
		AttemptCount:      r.count(v[invAttemptCount]),
		NextAttemptUnixMS: r.time(v[invNextAttempt]),
	}
	if old := r.reference(v[invSubscription], v[invSubscriptionID]); e.Invoice.SubscriptionID == "" {
		e.Invoice.SubscriptionID = old
	}
	return e.judge(&r, e.Invoice.ID)
}
