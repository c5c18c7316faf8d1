package fanout

import (
	"container/list"
	"hash/maphash"
	"sync"

	"github.com/betterdata/webhooks/internal/eventfilter"
)

// cache keeps the endpoint sets of the organizations that had events last, as many as its limit holds; the one of the
// last event always. A set that is out of date is kept for its compiled filters.
type cache struct {
	limit int
	seed  maphash.Seed

	mu   sync.Mutex
	sets map[string]*list.Element
	// used has the sets in the order of their use, the last one in front; weight is that of all.
	used   *list.List
	weight int
	// changes grow with every change of an organization that is counted there. A set that was read while its counter
	// grew is used, but not kept as fresh.
	changes [changeSlots]uint64
}

// cached is a set in the cache.
type cached struct {
	org   string
	set   *endpointSet
	fresh bool
}

func newCache(limit int) cache {
	return cache{limit: limit, seed: maphash.MakeSeed(), sets: map[string]*list.Element{}, used: list.New()}
}

func (c *cache) slot(org string) *uint64 {
	return &c.changes[maphash.String(c.seed, org)%changeSlots]
}

// outdate makes the next event of the organization read its endpoints again.
func (c *cache) outdate(org string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*c.slot(org)++
	if e, ok := c.sets[org]; ok {
		e.Value.(*cached).fresh = false
	}
}

// get returns the organization's set, nil where none is kept, whether it is what the copy has, and what keep must be
// told if it is read again.
func (c *cache) get(org string) (set *endpointSet, fresh bool, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changes = *c.slot(org)
	e, ok := c.sets[org]
	if !ok {
		return nil, false, changes
	}
	c.used.MoveToFront(e)
	kept := e.Value.(*cached)
	return kept.set, kept.fresh, changes
}

// keep keeps a set that was read after get had returned changes, in the place of those that were not used for longest.
func (c *cache) keep(org string, set *endpointSet, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.sets[org]; ok {
		c.drop(e)
	}
	c.sets[org] = c.used.PushFront(&cached{org: org, set: set, fresh: *c.slot(org) == changes})
	c.weight += set.weight()
	for c.weight > c.limit && c.used.Len() > 1 {
		c.drop(c.used.Back())
	}
}

// drop is called with the lock held.
func (c *cache) drop(e *list.Element) {
	kept := c.used.Remove(e).(*cached)
	c.weight -= kept.set.weight()
	delete(c.sets, kept.org)
}

// weight is what the set takes of the cache's limit, in endpoints; one without endpoints takes something too.
func (s *endpointSet) weight() int {
	weight := 1 + len(s.targets)
	for i := range s.targets {
		if s.targets[i].filter != nil {
			weight += filterWeight
		}
	}
	return weight
}

// compiled are the set's filters by their expression; none of a set that is nil.
func (s *endpointSet) compiled() map[string]*eventfilter.Filter {
	filters := map[string]*eventfilter.Filter{}
	if s == nil {
		return filters
	}
	for i := range s.targets {
		if t := &s.targets[i]; t.filter != nil {
			filters[t.expression] = t.filter
		}
	}
	return filters
}
