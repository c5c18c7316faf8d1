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

// Release takes a customer's subscriptions from the organization that held it and gives them back for the one that
// holds it now. Payments stay: they were made while the customer was the organization's.
func Release(s State, m Move, p *plans.Plans) (r Result, released []*webhooksv1.Subscription) {
	r.State = s
	record := s.Record
	if record == nil {
		return r, nil
	}
	r.expire(m.AtUnixMS, p)
	record.Subscriptions = slices.DeleteFunc(record.Subscriptions, func(sub *webhooksv1.Subscription) bool {
		if sub.CustomerId != m.CustomerID {
			return false
		}
		released = append(released, sub)
		return true
	})
	record.CustomerIds = slices.DeleteFunc(record.CustomerIds, func(id string) bool { return id == m.CustomerID })
	r.moved(m, p)
	return r, released
}

// Adopt gives a customer's subscriptions to the organization that holds it now. Events of the customer may have come
// before them: what is known from either side is merged.
func Adopt(s State, m Move, subscriptions []*webhooksv1.Subscription, p *plans.Plans) (r Result) {
	r.State = s
	if len(subscriptions) == 0 {
		return r
	}
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: m.Organization, Plan: p.Default.Name}
	}
	r.expire(m.AtUnixMS, p)
	for _, sub := range subscriptions {
		mergeSubscription(r.State.Record, sub, p)
		see(r.State.Record, sub.CustomerId, sub.Position.GetEventUnixMs())
	}
	r.moved(m, p)
	return r
}

func (r *Result) moved(m Move, p *plans.Plans) {
	record := r.State.Record
	record.EvaluatedUnixMs = max(record.EvaluatedUnixMs, m.AtUnixMS)
	r.RecordChanged = true
	cause := &webhooksv1.Cause{Source: schemas.SourceManagement, EventId: m.CauseID, Type: ConnectionMoved}
	r.reevaluate(cause, m.AtUnixMS, record.EvaluatedUnixMs, p)
}
