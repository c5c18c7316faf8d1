package billing

import (
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Values of a snapshot's status.
const (
	StatusActive = "active"
	StatusGrace  = "grace"
	StatusNone   = "none"
)

// standing is what one subscription gives at the time up to which timers were applied.
type standing struct {
	subscription *webhooksv1.Subscription
	status       string
	// graceUntil is set while the status is grace.
	graceUntil int64
	// plan is the best of its plans; the default plan when it has none.
	plan *plans.Plan
}

func standingOf(s *webhooksv1.Subscription, now int64, p *plans.Plans) standing {
	st := standing{subscription: s, status: StatusNone, plan: p.Default}
	switch s.Status {
	case trialing, active:
		st.status = StatusActive
	case pastDue:
		if until := pastDueSince(s) + p.Grace.Milliseconds(); now < until {
			st.status, st.graceUntil = StatusGrace, until
		}
	}
	if own := plansOf(nil, s, p); len(own) > 0 {
		st.plan = best(own)
	}
	return st
}

func (st standing) entitled() bool { return st.status != StatusNone }

// betterThan picks the subscription that speaks for the organization: one that gives access, then the better plan, then
// active before grace, then one that has not ended, then the newest.
func (st standing) betterThan(o standing) bool {
	a, b := st.subscription, o.subscription
	switch {
	case st.entitled() != o.entitled():
		return st.entitled()
	case st.entitled() && st.plan != o.plan:
		return st.plan.Better(o.plan)
	case st.status != o.status:
		return st.status == StatusActive
	case a.Position.Terminal != b.Position.Terminal:
		return b.Position.Terminal
	case a.Position.EventUnixMs != b.Position.EventUnixMs:
		return a.Position.EventUnixMs > b.Position.EventUnixMs
	}
	return a.Id < b.Id
}

func best(list []*plans.Plan) *plans.Plan {
	best := list[0]
	for _, plan := range list[1:] {
		if plan.Better(best) {
			best = plan
		}
	}
	return best
}

// evaluate computes what a record entitles to, all but version, time and cause, and sets what the record itself says of
// the whole: status, plan and the next timer.
func evaluate(record *webhooksv1.BillingRecord, p *plans.Plans) *webhooksv1.TenantCapabilitySnapshot {
	var (
		top      standing
		held     []*plans.Plan
		ids      []string
		unknown  []string
		snapshot = &webhooksv1.TenantCapabilitySnapshot{OrganizationId: record.OrganizationId, PlanVersion: p.Version, Status: StatusNone}
	)
	record.DueUnixMs = 0
	for s := range own(record) {
		st := standingOf(s, record.EvaluatedUnixMs, p)
		if top.subscription == nil || st.betterThan(top) {
			top = st
		}
		if !s.Position.Terminal {
			unknown = unmapped(unknown, s.Items, p)
		}
		if !st.entitled() {
			continue
		}
		ids = append(ids, s.Id)
		held = plansOf(held, s, p)
		if st.graceUntil != 0 && (record.DueUnixMs == 0 || st.graceUntil < record.DueUnixMs) {
			record.DueUnixMs = st.graceUntil
		}
	}
	if len(held) == 0 {
		held = append(held, p.Default)
	}
	plan := best(held)
	snapshot.Plan, snapshot.Tier, snapshot.Limits = plan.Name, plan.Tier, plan.Limits
	grant(snapshot, held, p)
	snapshot.SubscriptionIds = ids
	slices.Sort(unknown)
	snapshot.UnmappedPrices = slices.Compact(unknown)
	if top.subscription != nil && top.entitled() {
		snapshot.Status = top.status
		snapshot.GraceUntilUnixMs = top.graceUntil
		snapshot.PeriodEndUnixMs = top.subscription.CurrentPeriodEndUnixMs
	}
	record.Plan, record.Status = plan.Name, top.subscription.GetStatus()
	return snapshot
}

// grant sorts every known capability into those that one of the plans grants, and the others.
func grant(snapshot *webhooksv1.TenantCapabilitySnapshot, held []*plans.Plan, p *plans.Plans) {
	for _, key := range p.Capabilities {
		if slices.ContainsFunc(held, func(plan *plans.Plan) bool { return plan.Has(key) }) {
			snapshot.Granted = append(snapshot.Granted, key)
		} else {
			snapshot.Withheld = append(snapshot.Withheld, key)
		}
	}
}

// contentOf is a hash of all that a snapshot says but its version, time and cause. Equal contents have equal hashes,
// whichever process computed them.
func contentOf(s *webhooksv1.TenantCapabilitySnapshot) uint64 {
	h := fnv.New64a()
	text := func(parts ...string) {
		for _, part := range parts {
			h.Write([]byte(part))
			h.Write([]byte{0})
		}
		h.Write([]byte{1})
	}
	text(s.OrganizationId, s.Plan, s.PlanVersion, s.Status)
	text(s.Granted...)
	text(s.Withheld...)
	text(s.SubscriptionIds...)
	text(s.UnmappedPrices...)
	for _, name := range slices.Sorted(maps.Keys(s.Limits)) {
		text(name, strconv.FormatInt(s.Limits[name], 10))
	}
	text(strconv.FormatUint(uint64(s.Tier), 10), strconv.FormatInt(s.GraceUntilUnixMs, 10), strconv.FormatInt(s.PeriodEndUnixMs, 10))
	return h.Sum64()
}

// None is the snapshot of an organization of which nothing is known: the default plan, version 0.
func None(organization string, p *plans.Plans) *webhooksv1.TenantCapabilitySnapshot {
	return evaluate(&webhooksv1.BillingRecord{OrganizationId: organization}, p)
}
