package fanout

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/subscription"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	// maxHeld bounds the endpoints whose decoded form is kept, at about 300 bytes each; 60 MB in all. One organization
	// has 5,000 at most.
	maxHeld = 200_000
	// filterWeight is how many endpoints a compiled filter counts as: a short one takes 2 kB.
	filterWeight = 10
	// changeSlots spread organizations over counters of changes.
	changeSlots = 64
)

// target is what matching needs of an endpoint.
type target struct {
	id      string
	version uint64
	enabled bool
	types   subscription.Patterns
	loops   subscription.Loops
	// filtered endpoints match nothing when filter is nil: it did not compile.
	filtered   bool
	expression string
	filter     *eventfilter.Filter
}

// endpointSet is an organization's endpoints at one version, in the order of their ids.
type endpointSet struct {
	version uint64
	targets []target
}

// matcher keeps the decoded endpoints of organizations that have events. It is shared by the tasks of all partitions.
type matcher struct {
	endpoints Endpoints
	filters   *eventfilter.Compiler
	log       *slog.Logger
	metrics   *metrics
	cache     cache

	mu sync.Mutex
	// waiting are the tasks that hold an event of an organization until its endpoints change.
	waiting map[*task]string
}

func newMatcher(endpoints Endpoints, filters *eventfilter.Compiler, log *slog.Logger, m *metrics) *matcher {
	c := &matcher{endpoints: endpoints, filters: filters, log: log, metrics: m, cache: newCache(maxHeld), waiting: map[*task]string{}}
	endpoints.OnChange(c.changed)
	return c
}

// changed notes that the organization's endpoints, or set, have changed.
func (m *matcher) changed(key, _ []byte) {
	org, _, _ := strings.Cut(string(key), "/")
	m.cache.outdate(org)
	m.mu.Lock()
	defer m.mu.Unlock()
	for t, waited := range m.waiting {
		if waited == org {
			t.partition.Wake()
		}
	}
}

// waits has the task woken at each change of the organization's endpoints, and of no other's.
func (m *matcher) waits(t *task, org string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[t] = org
}

func (m *matcher) waitsNoMore(t *task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, t)
}

func (m *matcher) version(org string) (uint64, error) {
	value, ok, err := m.endpoints.Get([]byte(org))
	if err != nil || !ok {
		return 0, err
	}
	var set webhooksv1.EndpointSet
	if err := proto.Unmarshal(value, &set); err != nil {
		return 0, fmt.Errorf("decode endpoint set of %s: %w", org, err)
	}
	return set.Version, nil
}

// current returns the organization's endpoints as the copy has them.
func (m *matcher) current(org string) (*endpointSet, error) {
	set, fresh, changes := m.cache.get(org)
	if fresh {
		return set, nil
	}
	// The version is read first. The endpoints read after it are of that version or, while they change, partly of the
	// next: never older.
	version, err := m.version(org)
	if err != nil {
		return nil, err
	}
	compiled := set.compiled()
	set = &endpointSet{version: version}
	if version > 0 {
		if set.targets, err = m.read(org, compiled); err != nil {
			return nil, err
		}
	}
	m.cache.keep(org, set, changes)
	return set, nil
}

func (m *matcher) read(org string, compiled map[string]*eventfilter.Filter) ([]target, error) {
	var targets []target
	var failed error
	err := m.endpoints.Scan([]byte(org+"/"), func(key, value []byte) bool {
		var e webhooksv1.Endpoint
		if failed = proto.Unmarshal(value, &e); failed != nil {
			failed = fmt.Errorf("decode endpoint %s: %w", key, failed)
			return false
		}
		targets = append(targets, m.targetOf(&e, compiled))
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read endpoints of %s: %w", org, err)
	}
	return targets, failed
}

func (m *matcher) targetOf(e *webhooksv1.Endpoint, compiled map[string]*eventfilter.Filter) target {
	t := target{
		id: e.Id, version: e.Version, enabled: e.Enabled,
		types: subscription.Parse(e.EventTypes), loops: e.LoopIds, filtered: e.Filter != nil,
	}
	if t.filtered {
		t.expression = *e.Filter
		t.filter = m.compile(e, compiled)
	}
	return t
}

// compile returns the endpoint's filter, taking it from those compiled where it is among them; nil where it does not
// compile.
func (m *matcher) compile(e *webhooksv1.Endpoint, compiled map[string]*eventfilter.Filter) *eventfilter.Filter {
	if filter := compiled[*e.Filter]; filter != nil {
		return filter
	}
	filter, err := m.filters.Compile(*e.Filter)
	if err != nil {
		m.metrics.unusable.Inc()
		m.log.Error("a stored filter does not compile; its endpoint gets no events until it is changed",
			"org", e.OrganizationId, "endpoint", e.Id, "error", err)
		return nil
	}
	compiled[*e.Filter] = filter
	return filter
}
