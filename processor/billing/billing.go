// Package billing turns Stripe's events into an organization's billing record and its TenantCapabilitySnapshot.
//
// It is a pure function: Decode reads an event's body, Apply takes the organization's state and the event and gives the
// new state, what to send out and the audit entry; Expire does the same for a timer. There is no Kafka, clock or network
// in it: the time is the one the event was accepted at, or the timer's. Whoever calls it drops events that were seen
// before; a repeated one would only be found stale.
//
// Stripe promises no order. Every part of the record is therefore a maximum, a minimum or a union over the events that
// were used, so that all orders of arrival and all repetitions agree in everything but the snapshot's version,
// computedAt and cause. What "newer" means, and why:
//
//   - A subscription's state is that of the event with the greatest position: a terminal status (canceled,
//     incomplete_expired) first, because Stripe never revives one and a late `updated` must not either; then the event's
//     `created`; then deleted > updated > created, because one request makes several events in one second and this is
//     the order it makes them in; then the period's start, because of two updates in a second the renewal is the
//     later; then the event id, so that there is always an answer.
//   - A subscription of a customer that pays for several organizations is of the one that this event was for, see part.go.
//   - A price in no plan leaves the plan as it was. So beside the newest state, the items of the newest event that were
//     in a plan are kept for as long as the newest state's are not.
//   - Grace counts from the smallest `created` of the past_due events of the current period, whichever of them is the
//     newest: a retry that fails again must not buy time. It is kept by period, because which period is current may
//     still change. Only the latest periods are kept.
//   - The last payment and the last failure are those with the greatest (`created`, event id). A payment does not
//     erase a failure: readers compare their times.
//   - An invoice whose payment failed is open until it is paid, voided or marked uncollectible, and never after that,
//     whichever event comes first. It failed at the smallest `created` of its failures and ended at that of its
//     settlements. The latest invoices are kept, see invoices.go.
//   - createdAt and updatedAt are the smallest and the largest `created` of the events used; customerIds is their union.
//   - The time up to which timers were applied is the greatest one seen, so that an event accepted earlier and handled
//     later does not bring an ended grace back.
package billing

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// The event types that change billing.
const (
	SubscriptionCreated = "customer.subscription.created"
	SubscriptionUpdated = "customer.subscription.updated"
	SubscriptionDeleted = "customer.subscription.deleted"
	InvoicePaid         = "invoice.paid"
	PaymentFailed       = "invoice.payment_failed"
	// The two that end a failed invoice without a payment change nothing else, and are in no audit log.
	InvoiceVoided        = "invoice.voided"
	InvoiceUncollectible = "invoice.marked_uncollectible"
)

// Types are the event types that Apply takes.
func Types() []string {
	return []string{
		SubscriptionCreated, SubscriptionUpdated, SubscriptionDeleted,
		InvoicePaid, PaymentFailed, InvoiceVoided, InvoiceUncollectible,
	}
}

// Handles reports whether an event type changes billing.
func Handles(eventType string) bool { return slices.Contains(Types(), eventType) }

// Tells reports whether an event type can lead to an Update.
func Tells(eventType string) bool { return ranks[eventType] != 0 }

// State is what is kept of an organization. Apply and Expire consume the State they are given: they change its messages
// and return them.
type State struct {
	// Record is nil before the first event.
	Record *webhooksv1.BillingRecord
	// Snapshot is the newest where it was made by the same caller, else nil: it is written, never asked, for what must be
	// known of it stands in the record.
	Snapshot *webhooksv1.TenantCapabilitySnapshot
}

// Begun reports whether an event of the organization, or one that it took over, has been used. The record of one that took
// over settled invoices and nothing else is there before.
func Begun(record *webhooksv1.BillingRecord) bool { return record.GetCreatedUnixMs() != 0 }

// Result is what an event or a timer did.
type Result struct {
	State State
	// RecordChanged and SnapshotChanged say which part must be written.
	RecordChanged, SnapshotChanged bool
	// Stale: newer knowledge was there already, the event changed nothing that can be seen.
	Stale bool
	// Updates are the subscription.updated events to send, in order. There are two when a timer was due before the event.
	Updates []Update
	// Words are what other organizations must be told of subscriptions that are, or were, theirs.
	Words []Word
	// Audit is the event's entry; nil for a timer, and for an invoice that ended without a payment.
	Audit *webhooksv1.BillingAuditRow
	// UnmappedPrices counts the event's prices that are in no plan.
	UnmappedPrices int
}

// Update is one subscription.updated event.
type Update struct {
	// Change is "created", "updated" or "deleted".
	Change string
	// Snapshot is the organization's after the change; it is not changed any more.
	Snapshot     *webhooksv1.TenantCapabilitySnapshot
	PreviousPlan string
	// SubscriptionID is the subject; "" for a timer.
	SubscriptionID string
	// CauseEventID is our id (evt_…) of what caused it.
	CauseEventID   string
	OccurredUnixMS int64
	AcceptedUnixMS int64
}

// Apply uses one event. State and event must be of the same organization.
func Apply(s State, e *Event, p *plans.Plans) Result {
	r := Result{State: s}
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: e.Organization, Plan: p.Default.Name}
	}
	if e.Subscription != nil {
		r.RecordChanged = true
		r.applySubscription(e, p)
	} else {
		r.applyInvoice(e, p)
	}
	if see(r.State.Record, e.CustomerID, e.CreatedUnixMS) {
		r.RecordChanged = true
	}
	return r
}

// Expire runs the timers of an organization that are due at now, milliseconds since the epoch.
func Expire(s State, now int64, p *plans.Plans) Result {
	r := Result{State: s}
	r.expire(now, p)
	return r
}

// applySubscription first lets timers run that were due when the event was accepted, so that a late timer and a prompt
// one leave the same trace.
func (r *Result) applySubscription(e *Event, p *plans.Plans) {
	record := r.State.Record
	now := max(e.AcceptedUnixMS, record.EvaluatedUnixMs)
	r.expire(now, p)
	record.EvaluatedUnixMs = now
	planBefore := planOf(record, p)
	r.UnmappedPrices = len(unmapped(nil, e.Subscription.Items, p))
	r.Stale = !r.merge(e, now, p)
	if !r.Stale {
		r.Updates = append(r.Updates, Update{
			Change:         changes[e.Type],
			Snapshot:       r.State.Snapshot,
			PreviousPlan:   planBefore,
			SubscriptionID: e.Subscription.Id,
			CauseEventID:   e.EventID,
			OccurredUnixMS: e.CreatedUnixMS,
			AcceptedUnixMS: e.AcceptedUnixMS,
		})
	}
	r.Audit = auditRow(e, record, planBefore, p)
	r.Audit.SubscriptionId = e.Subscription.Id
}

// changes are the values of subscription.updated's field change.
var changes = map[string]string{
	SubscriptionCreated: "created",
	SubscriptionUpdated: "updated",
	SubscriptionDeleted: "deleted",
}

// merge brings the event's subscription into the record and reports whether it was applied. An event that is not the
// newest is applied only when it changes the snapshot all the same, by an earlier start of the grace for instance:
// contents that differ must not share a version.
func (r *Result) merge(e *Event, now int64, p *plans.Plans) bool {
	newest, touched := r.mergeSubscription(e.Subscription, p)
	if !newest && !touched {
		return false
	}
	content := evaluate(r.State.Record, p)
	if !newest && r.holds(content) {
		return false
	}
	r.take(content, now, &webhooksv1.Cause{Source: schemas.SourceStripe, EventId: e.ID, Type: e.Type})
	return true
}

// expire runs what is due at now.
func (r *Result) expire(now int64, p *plans.Plans) {
	record := r.State.Record
	if record == nil || record.DueUnixMs == 0 || record.DueUnixMs > now {
		return
	}
	due := record.DueUnixMs
	record.EvaluatedUnixMs = max(now, record.EvaluatedUnixMs)
	r.RecordChanged = true
	r.reevaluate(&webhooksv1.Cause{Source: TimerSource, EventId: TimerID(record.OrganizationId, due), Type: GraceEnded}, due, now, p)
}

// reevaluate computes the snapshot anew for a reason that is no event of a subscription, and tells of it when that
// changes it.
func (r *Result) reevaluate(cause *webhooksv1.Cause, occurred, now int64, p *plans.Plans) {
	before := planOf(r.State.Record, p)
	content := evaluate(r.State.Record, p)
	if r.holds(content) || r.State.Record.SnapshotVersion == 0 && contentOf(content) == contentOf(None(content.OrganizationId, p)) {
		return
	}
	r.take(content, now, cause)
	r.Updates = append(r.Updates, Update{
		Change:         changes[SubscriptionUpdated],
		Snapshot:       r.State.Snapshot,
		PreviousPlan:   before,
		CauseEventID:   cause.EventId,
		OccurredUnixMS: occurred,
		AcceptedUnixMS: now,
	})
}

// holds reports that the snapshot in force says what content does.
func (r *Result) holds(content *webhooksv1.TenantCapabilitySnapshot) bool {
	return r.State.Record.SnapshotVersion > 0 && r.State.Record.SnapshotContent == contentOf(content)
}

// take makes content the organization's next snapshot.
func (r *Result) take(content *webhooksv1.TenantCapabilitySnapshot, now int64, cause *webhooksv1.Cause) {
	record := r.State.Record
	record.SnapshotVersion++
	record.SnapshotContent = contentOf(content)
	content.Version = record.SnapshotVersion
	content.ComputedUnixMs = now
	content.Cause = cause
	r.State.Snapshot = content
	r.SnapshotChanged = true
}

// TimerSource and GraceEnded name a timer as the cause of a change.
const (
	TimerSource = "timer"
	GraceEnded  = "grace.ended"
)

// TimerID is the id of a timer as a cause: the same however often it has to be run.
func TimerID(organization string, dueUnixMS int64) string {
	return id.Derive(id.Event, TimerSource, organization, strconv.FormatInt(dueUnixMS, 10))
}

// applyInvoice never touches the snapshot.
func (r *Result) applyInvoice(e *Event, p *plans.Plans) {
	record, in := r.State.Record, e.Invoice
	var newest, changed, seen bool
	switch e.Type {
	case PaymentFailed:
		if newest = laterThan(e, record.LastFailure); newest {
			record.LastFailure = &webhooksv1.PaymentFailure{
				InvoiceId: in.ID, Amount: in.Amount, Currency: in.Currency,
				AtUnixMs: e.CreatedUnixMS, EventId: e.ID,
				AttemptCount: in.AttemptCount, NextAttemptUnixMs: in.NextAttemptUnixMS,
			}
		}
		changed, seen = fail(record, e.failure())
	case InvoicePaid:
		if newest = laterThan(e, record.LastPayment); newest {
			record.LastPayment = &webhooksv1.Payment{
				InvoiceId: in.ID, Amount: in.Amount, Currency: in.Currency,
				AtUnixMs: e.CreatedUnixMS, EventId: e.ID,
			}
		}
		changed, seen = settle(record, invoiceHash(in.ID), e.CreatedUnixMS)
	default:
		changed, _ = settle(record, invoiceHash(in.ID), e.CreatedUnixMS)
		r.RecordChanged, r.Stale = changed, !changed
		return
	}
	r.RecordChanged = changed || newest
	r.Stale = !newest && !seen
	r.Audit = auditRow(e, record, planOf(record, p), p)
	r.Audit.InvoiceId, r.Audit.SubscriptionId = in.ID, in.SubscriptionID
	r.Audit.Amount, r.Audit.Currency = in.Amount, in.Currency
}

// laterThan reports whether the event comes after the one that set a payment or failure; one without event id is unset.
func laterThan(e *Event, last interface {
	GetAtUnixMs() int64
	GetEventId() string
}) bool {
	return cmp.Or(cmp.Compare(e.CreatedUnixMS, last.GetAtUnixMs()), cmp.Compare(e.ID, last.GetEventId())) > 0
}

// see keeps what every event adds to the record, stale or not, and reports whether that changed it.
func see(record *webhooksv1.BillingRecord, customerID string, createdUnixMS int64) (changed bool) {
	at, found := slices.BinarySearch(record.CustomerIds, customerID)
	if !found {
		record.CustomerIds = slices.Insert(record.CustomerIds, at, customerID)
	}
	first, last := record.CreatedUnixMs, record.UpdatedUnixMs
	record.CreatedUnixMs = earliest(first, createdUnixMS)
	record.UpdatedUnixMs = max(last, createdUnixMS)
	return !found || record.CreatedUnixMs != first || record.UpdatedUnixMs != last
}

// auditRow is the event's entry, but for the time it is recorded, which only the caller has.
func auditRow(e *Event, after *webhooksv1.BillingRecord, planBefore string, p *plans.Plans) *webhooksv1.BillingAuditRow {
	return &webhooksv1.BillingAuditRow{
		EntryId:         id.Derive(id.Audit, e.Organization, e.EventID),
		OrganizationId:  e.Organization,
		Action:          e.Type,
		SourceEventId:   e.ID,
		CustomerId:      e.CustomerID,
		PlanBefore:      planBefore,
		PlanAfter:       planOf(after, p),
		SnapshotVersion: after.SnapshotVersion,
		Livemode:        e.Livemode,
		OccurredUnixMs:  e.CreatedUnixMS,
	}
}

// planOf is the plan in force; an organization without a snapshot has the default plan.
func planOf(record *webhooksv1.BillingRecord, p *plans.Plans) string {
	if record.GetSnapshotVersion() == 0 {
		return p.Default.Name
	}
	return record.Plan
}
