// Package plans knows which plan a price belongs to and what a plan allows. Plans are a YAML file (PLANS_FILE, else the
// built-in one), read and checked whole at start and never changed while the process runs. The package holds no state
// of any organization and decides nothing about one: that is billing.
package plans

import (
	"slices"
	"strings"
	"time"
)

// Capabilities that exist whatever the file says; a file may add keys of its own.
var builtinCapabilities = [...]string{
	"AGENTS", "ATP", "EXPIRY_TRACKING", "FORECASTING", "LOT_TRACKING", "MULTI_LOCATION", "PLANNING", "REPLENISHMENT",
}

// Plan is what an organization that holds it may do.
type Plan struct {
	Name string
	// Tier, 0 to 3; of several plans the one with the highest tier is the best.
	Tier uint32
	// Capabilities it grants, sorted.
	Capabilities []string
	// Limits by name; a name that is missing is not limited by this plan.
	Limits map[string]int64
	// LoopCommitments are the loops a period includes, by loop id.
	LoopCommitments map[string]int64
}

// Plans is a checked set of plans. It is immutable.
type Plans struct {
	// Version of the file, as it names itself.
	Version string
	// Default is the plan of an organization without a subscription that gives another.
	Default *Plan
	// Grace is how long a subscription that is past due keeps its plan.
	Grace time.Duration
	// Capabilities are all known keys, sorted.
	Capabilities []string

	byName map[string]*Plan
	// Rules, by what they match.
	byPrice, byLookup, byProduct map[string]*Plan
}

// Named returns the plan of that name, or nil.
func (p *Plans) Named(name string) *Plan { return p.byName[name] }

// Match returns the plan of a price, or nil when no plan names it. The most specific rule wins: the price's id, then
// its lookup key, then its product.
func (p *Plans) Match(priceID, lookupKey, productID string) *Plan {
	if plan := p.byPrice[priceID]; plan != nil {
		return plan
	}
	if plan := p.byLookup[lookupKey]; plan != nil {
		return plan
	}
	return p.byProduct[productID]
}

// Better reports whether p is a better plan than q: a higher tier, then more capabilities, then the name, so that there
// is always one best plan.
func (p *Plan) Better(q *Plan) bool {
	if p.Tier != q.Tier {
		return p.Tier > q.Tier
	}
	if len(p.Capabilities) != len(q.Capabilities) {
		return len(p.Capabilities) > len(q.Capabilities)
	}
	return strings.Compare(p.Name, q.Name) < 0
}

// Has reports whether the plan grants a capability.
func (p *Plan) Has(capability string) bool {
	_, found := slices.BinarySearch(p.Capabilities, capability)
	return found
}
