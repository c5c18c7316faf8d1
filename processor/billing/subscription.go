package billing

import (
	"cmp"
	"slices"

	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	canceled          = "canceled"
	incompleteExpired = "incomplete_expired"
	pastDue           = "past_due"
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

// mergeSubscription brings the state that an event carries into the record. newest: it is the subscription's state now.
// touched: it is not, but something that is kept besides the newest state changed.
func mergeSubscription(record *webhooksv1.BillingRecord, in *webhooksv1.Subscription, p *plans.Plans) (newest, touched bool) {
	at, found := slices.BinarySearchFunc(record.Subscriptions, in.Id,
		func(s *webhooksv1.Subscription, id string) int { return cmp.Compare(s.Id, id) })
	if !found {
		notePastDue(in, in)
		record.Subscriptions = slices.Insert(record.Subscriptions, at, in)
		return true, false
	}
	have := record.Subscriptions[at]
	if newest = compare(in.Position, have.Position) > 0; newest {
		in.PastDue = have.PastDue
		in.Mapped = newerMapped(have.Mapped, have, p)
		record.Subscriptions[at] = in
	} else if !isMapped(have.Items, p) {
		mapped := newerMapped(have.Mapped, in, p)
		touched = mapped != have.Mapped
		have.Mapped = mapped
	}
	have = record.Subscriptions[at]
	if isMapped(have.Items, p) {
		have.Mapped = nil
	}
	return newest, notePastDue(have, in) || touched
}

// newerMapped is the newer of what was kept and the items of s, if these have a price in a plan.
func newerMapped(kept *webhooksv1.MappedItems, s *webhooksv1.Subscription, p *plans.Plans) *webhooksv1.MappedItems {
	if !isMapped(s.Items, p) || kept != nil && compare(s.Position, kept.Position) <= 0 {
		return kept
	}
	return &webhooksv1.MappedItems{Position: s.Position, Items: s.Items}
}

// notePastDue keeps the smallest `created` of the past_due events of a period and reports whether anything changed.
func notePastDue(s, in *webhooksv1.Subscription) bool {
	if in.Status != pastDue {
		return false
	}
	start, since := in.CurrentPeriodStartUnixMs, in.Position.EventUnixMs
	at, found := slices.BinarySearchFunc(s.PastDue, start,
		func(d *webhooksv1.PastDue, start int64) int { return cmp.Compare(d.PeriodStartUnixMs, start) })
	if found {
		earlier := since < s.PastDue[at].SinceUnixMs
		s.PastDue[at].SinceUnixMs = min(since, s.PastDue[at].SinceUnixMs)
		return earlier
	}
	s.PastDue = slices.Insert(s.PastDue, at, &webhooksv1.PastDue{PeriodStartUnixMs: start, SinceUnixMs: since})
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

func isMapped(items []*webhooksv1.SubscriptionItem, p *plans.Plans) bool {
	return slices.ContainsFunc(items, func(i *webhooksv1.SubscriptionItem) bool { return planOfItem(i, p) != nil })
}

// unmapped appends the prices of items that are in no plan.
func unmapped(prices []string, items []*webhooksv1.SubscriptionItem, p *plans.Plans) []string {
	for _, i := range items {
		if i.PriceId != "" && planOfItem(i, p) == nil {
			prices = append(prices, i.PriceId)
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
