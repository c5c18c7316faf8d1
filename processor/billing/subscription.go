package billing

import (
	"cmp"
	"slices"

	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	active            = "active"
	canceled          = "canceled"
	incompleteExpired = "incomplete_expired"
	pastDue           = "past_due"
	trialing          = "trialing"
)

// maxPastDue bounds the periods whose past-due start is kept. The latest are: dropping the earliest of a set gives the
// same for every order, and Stripe's retries of one period end long before four have passed.
const maxPastDue = 4

// terminal reports whether Stripe never leaves a status again.
func terminal(status string) bool { return status == canceled || status == incompleteExpired }

// compare orders two events of a subscription: positive when a is newer.
func compare(a, b *webhooksv1.SubscriptionPosition) int {
	return cmp.Or(
		cmp.Compare(order(a.GetTerminal()), order(b.GetTerminal())),
		cmp.Compare(a.GetEventUnixMs(), b.GetEventUnixMs()),
		cmp.Compare(a.GetRank(), b.GetRank()),
		cmp.Compare(a.GetPeriodStartUnixMs(), b.GetPeriodStartUnixMs()),
		cmp.Compare(a.GetEventId(), b.GetEventId()),
	)
}

func order(b bool) int {
	if b {
		return 1
	}
	return 0
}

// mergeSubscription brings what is known of a subscription, by an event or by another organization that held it, into
// the record. newest: in is its state now. touched: it is not, but something that is kept besides the newest state
// changed. Order does not matter: every part is a maximum or a set of minima.
func (r *Result) mergeSubscription(in *webhooksv1.Subscription, p *plans.Plans) (newest, touched bool) {
	if in.Status == pastDue {
		notePastDue(in, in.CurrentPeriodStartUnixMs, in.Position.EventUnixMs)
	}
	record := r.State.Record
	at, found := placeOf(record, in.Id)
	if !found {
		record.Subscriptions = slices.Insert(record.Subscriptions, at, in)
		return true, false
	}
	if elsewhere(record.Subscriptions[at]) {
		return r.back(at, in), false
	}
	have, other := record.Subscriptions[at], in
	if newest = compare(in.Position, have.Position) > 0; newest {
		have, other = in, have
		record.Subscriptions[at] = in
	}
	for _, d := range other.PastDue {
		touched = notePastDue(have, d.PeriodStartUnixMs, d.SinceUnixMs) || touched
	}
	before := have.Mapped
	have.Mapped = nil
	if !isMapped(have.Items, p) {
		have.Mapped = newerMapped(newerMapped(before, other.Mapped), mappedOf(other, p))
	}
	return newest, touched || have.Mapped != before
}

// placeOf is where a subscription is in a record, or would be.
func placeOf(record *webhooksv1.BillingRecord, id string) (at int, found bool) {
	return slices.BinarySearchFunc(record.Subscriptions, id,
		func(s *webhooksv1.Subscription, id string) int { return cmp.Compare(s.Id, id) })
}

// mappedOf is nil when no item of s has a price in a plan.
func mappedOf(s *webhooksv1.Subscription, p *plans.Plans) *webhooksv1.MappedItems {
	if !isMapped(s.Items, p) {
		return nil
	}
	return &webhooksv1.MappedItems{Position: s.Position, Items: s.Items}
}

func newerMapped(a, b *webhooksv1.MappedItems) *webhooksv1.MappedItems {
	if a == nil || b != nil && compare(b.Position, a.Position) > 0 {
		return b
	}
	return a
}

// notePastDue keeps the smallest `created` of the past_due events of a period and reports whether anything changed.
func notePastDue(s *webhooksv1.Subscription, periodStart, since int64) bool {
	at, found := slices.BinarySearchFunc(s.PastDue, periodStart,
		func(d *webhooksv1.PastDue, start int64) int { return cmp.Compare(d.PeriodStartUnixMs, start) })
	if found {
		earlier := since < s.PastDue[at].SinceUnixMs
		s.PastDue[at].SinceUnixMs = min(since, s.PastDue[at].SinceUnixMs)
		return earlier
	}
	s.PastDue = slices.Insert(s.PastDue, at, &webhooksv1.PastDue{PeriodStartUnixMs: periodStart, SinceUnixMs: since})
	if len(s.PastDue) > maxPastDue {
		s.PastDue = slices.Delete(s.PastDue, 0, len(s.PastDue)-maxPastDue)
		return at > 0
	}
	return true
}

// pastDueSince is when a subscription that is past due became so in its current period.
func pastDueSince(s *webhooksv1.Subscription) int64 {
	for _, d := range s.PastDue {
		if d.PeriodStartUnixMs == s.CurrentPeriodStartUnixMs {
			return d.SinceUnixMs
		}
	}
	// Its period is not among the latest.
	return s.Position.EventUnixMs
}

func planOfItem(i *webhooksv1.SubscriptionItem, p *plans.Plans) *plans.Plan {
	return p.Match(i.PriceId, i.LookupKey, i.ProductId)
}

// nameOf is what an item's price is known by: its id, as a rule.
func nameOf(i *webhooksv1.SubscriptionItem) string {
	return cmp.Or(i.PriceId, i.LookupKey, i.ProductId)
}

func isMapped(items []*webhooksv1.SubscriptionItem, p *plans.Plans) bool {
	return slices.ContainsFunc(items, func(i *webhooksv1.SubscriptionItem) bool { return planOfItem(i, p) != nil })
}

// unmapped appends the prices of items that are in no plan.
func unmapped(prices []string, items []*webhooksv1.SubscriptionItem, p *plans.Plans) []string {
	for _, i := range items {
		if name := nameOf(i); name != "" && planOfItem(i, p) == nil {
			prices = append(prices, name)
		}
	}
	return prices
}

// plansOf appends the plans that a subscription gives.
func plansOf(list []*plans.Plan, s *webhooksv1.Subscription, p *plans.Plans) []*plans.Plan {
	before := len(list)
	for _, items := range [...][]*webhooksv1.SubscriptionItem{s.Items, s.Mapped.GetItems()} {
		for _, i := range items {
			if plan := planOfItem(i, p); plan != nil {
				list = append(list, plan)
			}
		}
		if len(list) > before {
			break
		}
	}
	return list
}
