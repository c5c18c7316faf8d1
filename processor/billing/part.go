package billing

import (
	"cmp"
	"slices"

	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// SubscriptionMoved is the type of the cause when an event named another organization for a subscription.
const SubscriptionMoved = "subscription.moved"

// When a customer pays for several organizations, a subscription is of the one that its newest event is for. What the others
// keep of it is where it has gone and since which event: a state like any other, so that here too all orders agree. An older
// event that comes to one of them is news for who has the subscription, and a newer one brings it back.

// Parting is the news that a subscription is another organization's since an event.
type Parting struct {
	SubscriptionID, CustomerID string
	To                         string
	Position                   *webhooksv1.SubscriptionPosition
}

// Word is what another organization must be told of a subscription. One of the two is set.
type Word struct {
	Organization string
	// State is what is known of one that is the other's.
	State *webhooksv1.Subscription
	// Parting tells of one that is not.
	Parting *Parting
}

// SubscriptionOf is the id and the position of what a subscription's event says, "" where it is no usable one. id is Stripe's
// of the event.
func SubscriptionOf(source, eventType, id string, body []byte) (string, *webhooksv1.SubscriptionPosition) {
	e := Event{ID: id, Type: eventType}
	if source != schemas.SourceStripe || ranks[eventType] == 0 || Decode(body, &e) != Usable {
		return "", nil
	}
	return e.Subscription.Id, e.Subscription.Position
}

// elsewhere reports that all that is kept of a subscription is where it has gone.
func elsewhere(s *webhooksv1.Subscription) bool { return s.ElsewhereOrganizationId != "" }

// Whereabouts says of subscriptions whose they are, and since which event; of those that are not elsewhere, that they are the
// organization's.
func Whereabouts(subscriptions []*webhooksv1.Subscription, organization string) []*webhooksv1.Subscription {
	where := make([]*webhooksv1.Subscription, 0, len(subscriptions))
	for _, sub := range subscriptions {
		where = append(where, &webhooksv1.Subscription{
			Id: sub.Id, CustomerId: sub.CustomerId, Position: sub.Position,
			ElsewhereOrganizationId: cmp.Or(sub.ElsewhereOrganizationId, organization),
		})
	}
	return where
}

// learnWhere takes note of where a subscription is, unless the organization knows better. left: it was the organization's own.
func (r *Result) learnWhere(mark *webhooksv1.Subscription) (left bool) {
	record := r.State.Record
	if mark.ElsewhereOrganizationId == record.OrganizationId {
		return false
	}
	at, found := placeOf(record, mark.Id)
	if !found {
		record.Subscriptions, r.RecordChanged = slices.Insert(record.Subscriptions, at, mark), true
		return false
	}
	have := record.Subscriptions[at]
	if compare(mark.Position, have.Position) <= 0 {
		return false
	}
	record.Subscriptions[at], r.RecordChanged = mark, true
	if elsewhere(have) {
		return false
	}
	r.Words = append(r.Words, Word{Organization: mark.ElsewhereOrganizationId, State: have})
	return true
}

// Part takes a subscription from an organization that knows of no newer event of it, and gives what was known of it to the other.
// One that does know a newer one keeps it, and says so.
func Part(s State, m Move, gone Parting, p *plans.Plans) (r Result) {
	r.State = s
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: m.Organization, Plan: p.Default.Name}
	}
	record := r.State.Record
	mark := &webhooksv1.Subscription{
		Id: gone.SubscriptionID, CustomerId: gone.CustomerID, Position: gone.Position, ElsewhereOrganizationId: gone.To,
	}
	at, found := placeOf(record, gone.SubscriptionID)
	if !found {
		record.Subscriptions, r.RecordChanged = slices.Insert(record.Subscriptions, at, mark), true
		return r
	}
	have := record.Subscriptions[at]
	switch newer := compare(gone.Position, have.Position); {
	case newer < 0 && !elsewhere(have):
		r.part(gone.To, have, m.Organization)
	case newer < 0 && have.ElsewhereOrganizationId != gone.To:
		r.part(gone.To, have, have.ElsewhereOrganizationId)
	case newer <= 0:
	case elsewhere(have):
		if have.ElsewhereOrganizationId != gone.To {
			r.part(have.ElsewhereOrganizationId, mark, gone.To)
		}
		record.Subscriptions[at], r.RecordChanged = mark, true
	default:
		r.expire(m.AtUnixMS, p)
		record.Subscriptions[at] = mark
		r.Words = append(r.Words, Word{Organization: gone.To, State: have})
		r.moved(m, SubscriptionMoved, p)
	}
	return r
}

// part has an organization told that a subscription is another's since the event that s is of.
func (r *Result) part(told string, s *webhooksv1.Subscription, of string) {
	r.Words = append(r.Words, Word{Organization: told, Parting: &Parting{
		SubscriptionID: s.Id, CustomerID: s.CustomerId, To: of, Position: s.Position,
	}})
}

// Join gives an organization what another one knew of a subscription that is its own since.
func Join(s State, m Move, in *webhooksv1.Subscription, p *plans.Plans) (r Result) {
	r.State = s
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: m.Organization, Plan: p.Default.Name}
	}
	r.expire(m.AtUnixMS, p)
	if newest, touched := r.mergeSubscription(in, p); !newest && !touched {
		return r
	}
	see(r.State.Record, in.CustomerId, in.Position.GetEventUnixMs())
	r.moved(m, SubscriptionMoved, p)
	return r
}

// back lets a subscription be the organization's again, or has what in knows of it go to where it is. back: it is.
func (r *Result) back(at int, in *webhooksv1.Subscription) (back bool) {
	record := r.State.Record
	gone := record.Subscriptions[at]
	if compare(in.Position, gone.Position) < 0 {
		r.Words = append(r.Words, Word{Organization: gone.ElsewhereOrganizationId, State: in})
		return false
	}
	record.Subscriptions[at] = in
	r.part(gone.ElsewhereOrganizationId, in, record.OrganizationId)
	return true
}

// own are the subscriptions that are the organization's.
func own(record *webhooksv1.BillingRecord) func(yield func(*webhooksv1.Subscription) bool) {
	return func(yield func(*webhooksv1.Subscription) bool) {
		for _, s := range record.Subscriptions {
			if !elsewhere(s) && !yield(s) {
				return
			}
		}
	}
}
