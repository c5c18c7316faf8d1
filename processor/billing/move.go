package billing

import (
	"slices"

	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// ConnectionMoved is the type of the cause when a customer's connection was moved to another organization.
const ConnectionMoved = "connection.moved"

// Move is the move of a customer, as one of the two organizations sees it.
type Move struct {
	// Organization whose state is changed.
	Organization string
	CustomerID   string
	// CauseID names the command that told of it.
	CauseID  string
	AtUnixMS int64
}

// Holding is what an organization knows of a customer, and hands over with it.
type Holding struct {
	// From is the organization, "" where nobody hands anything over.
	From           string
	Subscriptions  []*webhooksv1.Subscription
	FailedInvoices []*webhooksv1.FailedInvoice
	// SettledInvoices and SettledUnixMS are the record's own: by a hash it cannot be told which are the customer's, and
	// those of others do no harm where nobody asks for them.
	SettledInvoices []uint64
	SettledUnixMS   []int64
}

// Copy is what an organization hands over of a customer that it keeps: the settled invoices, and where the subscriptions are.
func Copy(s State, customer, organization string) Holding {
	var subscriptions []*webhooksv1.Subscription
	for _, sub := range s.Record.GetSubscriptions() {
		if sub.CustomerId == customer {
			subscriptions = append(subscriptions, sub)
		}
	}
	return Holding{
		Subscriptions:   Whereabouts(subscriptions, organization),
		SettledInvoices: s.Record.GetSettledInvoices(), SettledUnixMS: s.Record.GetSettledUnixMs(),
	}
}

// Release takes a customer's subscriptions and failed invoices from the organization that held it and gives them back
// for the one that holds it now. The last payment and the last failure stay, as the entries of the audit log do: they were made
// while the customer was the organization's. What is still open of a failure, and alerted of, goes along.
func Release(s State, m Move, p *plans.Plans) (r Result, released Holding) {
	r.State = s
	record := s.Record
	if record == nil {
		return r, released
	}
	r.expire(m.AtUnixMS, p)
	record.Subscriptions = slices.DeleteFunc(record.Subscriptions, func(sub *webhooksv1.Subscription) bool {
		if sub.CustomerId != m.CustomerID {
			return false
		}
		if !elsewhere(sub) {
			released.Subscriptions = append(released.Subscriptions, sub)
		}
		return true
	})
	record.FailedInvoices = slices.DeleteFunc(record.FailedInvoices, func(f *webhooksv1.FailedInvoice) bool {
		if f.CustomerId != m.CustomerID {
			return false
		}
		released.FailedInvoices = append(released.FailedInvoices, f)
		return true
	})
	released.SettledInvoices, released.SettledUnixMS = record.SettledInvoices, record.SettledUnixMs
	record.CustomerIds = slices.DeleteFunc(record.CustomerIds, func(id string) bool { return id == m.CustomerID })
	r.moved(m, ConnectionMoved, p)
	return r, released
}

// Adopt gives what is known of a customer to the organization that holds it now. Events of the customer may have come
// before: what is known from either side is merged. Where there are settled invoices and subscriptions that are elsewhere, and
// nothing else, the record keeps them, so that a failure that comes late opens none, and an older event of such a subscription
// gives nothing; and says nothing that can be seen.
func Adopt(s State, m Move, in Holding, p *plans.Plans) (r Result) {
	r.State = s
	settled := min(len(in.SettledInvoices), len(in.SettledUnixMS))
	if len(in.Subscriptions)+len(in.FailedInvoices)+settled == 0 {
		return r
	}
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: m.Organization, Plan: p.Default.Name}
	}
	r.expire(m.AtUnixMS, p)
	seen := len(in.FailedInvoices) > 0
	for _, sub := range in.Subscriptions {
		if elsewhere(sub) {
			seen = r.learnWhere(sub) || seen
			continue
		}
		seen = true
		r.mergeSubscription(sub, p)
		see(r.State.Record, sub.CustomerId, sub.Position.GetEventUnixMs())
	}
	// Who has handed it over keeps nothing that it would have to be told of.
	r.Words = slices.DeleteFunc(r.Words, func(w Word) bool { return w.Parting != nil && w.Organization == in.From })
	for _, f := range in.FailedInvoices {
		see(r.State.Record, f.CustomerId, f.LastFailedUnixMs)
		fail(r.State.Record, f)
	}
	for i := range settled {
		changed, _ := settle(r.State.Record, in.SettledInvoices[i], in.SettledUnixMS[i])
		r.RecordChanged = r.RecordChanged || changed
	}
	if seen {
		r.moved(m, ConnectionMoved, p)
	}
	return r
}

func (r *Result) moved(m Move, why string, p *plans.Plans) {
	record := r.State.Record
	record.EvaluatedUnixMs = max(record.EvaluatedUnixMs, m.AtUnixMS)
	r.RecordChanged = true
	cause := &webhooksv1.Cause{Source: schemas.SourceManagement, EventId: m.CauseID, Type: why}
	r.reevaluate(cause, m.AtUnixMS, record.EvaluatedUnixMs, p)
}
