package fanout

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	shards = 64
	// maxCached bounds the endpoints whose decoded form a shard keeps, at about 300 bytes each; 20 MB in all.
	maxCached = 1024
)

// target is what matching needs of an endpoint.
type target struct {
	id      string
	version uint64
	enabled bool
	// all, exact and prefixes are the endpoint's patterns.
	all      bool
	exact    []string
	prefixes []string
	loopIDs  []string
	// filtered endpoints match nothing when filter is nil: it did not compile.
	filtered bool
	filter   *eventfilter.Filter
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
	seed      maphash.Seed
	shards    [shards]shard

	mu sync.Mutex
	// waiting are the tasks that hold an event of an organization until its endpoints change.
	waiting map[*task]string
}

type shard struct {
	mu   sync.Mutex
	sets map[string]*endpointSet
	// cached counts the targets in sets.
	cached int
	// changes grows with every change of an organization of this shard. A set that was read while it grew is used, but
	// not kept.
	changes uint64
}

func newMatcher(endpoints Endpoints, filters *eventfilter.Compiler, log *slog.Logger, m *metrics) *matcher {
	c := &matcher{endpoints: endpoints, filters: filters, log: log, metrics: m, seed: maphash.MakeSeed(), waiting: map[*task]string{}}
	for i := range c.shards {
		c.shards[i].sets = map[string]*endpointSet{}
	}
	endpoints.OnChange(c.changed)
	return c
}

func (m *matcher) shard(org string) *shard {
	return &m.shards[maphash.String(m.seed, org)%shards]
}

// changed forgets the organization whose endpoint, or set, has changed.
func (m *matcher) changed(key, _ []byte) {
	org, _, _ := strings.Cut(string(key), "/")
	s := m.shard(org)
	s.mu.Lock()
	s.changes++
	s.forget(org)
	s.mu.Unlock()
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

// forget is called with the lock held.
func (s *shard) forget(org string) {
	if set, ok := s.sets[org]; ok {
		s.cached -= len(set.targets)
		delete(s.sets, org)
	}
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
	s := m.shard(org)
	s.mu.Lock()
	set, changes := s.sets[org], s.changes
	s.mu.Unlock()
	if set != nil {
		return set, nil
	}
	// The version is read first. The endpoints read after it are of that version or, while they change, partly of the
	// next: never older.
	version, err := m.version(org)
	if err != nil {
		return nil, err
	}
	set = &endpointSet{version: version}
	if version > 0 {
		if set.targets, err = m.read(org); err != nil {
			return nil, err
		}
	}
	s.keep(org, set, changes)
	return set, nil
}

func (s *shard) keep(org string, set *endpointSet, changes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes != changes {
		return
	}
	s.forget(org)
	for other := range s.sets {
		if s.cached+len(set.targets) <= maxCached && len(s.sets) < maxCached {
			break
		}
		s.forget(other)
	}
	s.sets[org] = set
	s.cached += len(set.targets)
}

func (m *matcher) read(org string) ([]target, error) {
	var targets []target
	var failed error
	err := m.endpoints.Scan([]byte(org+"/"), func(key, value []byte) bool {
		var e webhooksv1.Endpoint
		if failed = proto.Unmarshal(value, &e); failed != nil {
			failed = fmt.Errorf("decode endpoint %s: %w", key, failed)
			return false
		}
		targets = append(targets, m.targetOf(&e))
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read endpoints of %s: %w", org, err)
	}
	return targets, failed
}

func (m *matcher) targetOf(e *webhooksv1.Endpoint) target {
	t := target{id: e.Id, version: e.Version, enabled: e.Enabled, loopIDs: e.LoopIds, filtered: e.Filter != nil}
	for _, pattern := range e.EventTypes {
		prefix, open := strings.CutSuffix(pattern, "*")
		switch {
		case !open:
			t.exact = append(t.exact, pattern)
		case prefix == "":
			t.all = true
		default:
			t.prefixes = append(t.prefixes, prefix)
		}
	}
	if t.filtered {
		var err error
		if t.filter, err = m.filters.Compile(*e.Filter); err != nil {
			m.metrics.unusable.Inc()
			m.log.Error("a stored filter does not compile; its endpoint gets no events until it is changed",
				"org", e.OrganizationId, "endpoint", e.Id, "error", err)
		}
	}
	return t
}

// wantsType reports whether a pattern matches.
func (t *target) wantsType(eventType string) bool {
	if t.all && !schemas.Operational(eventType) {
		return true
	}
	return slices.Contains(t.exact, eventType) ||
		slices.ContainsFunc(t.prefixes, func(prefix string) bool { return strings.HasPrefix(eventType, prefix) })
}

// wantsLoop reports whether the event is of a loop that the endpoint asked for. Who asked for loops gets no events
// that are of none.
func (t *target) wantsLoop(loopID string) bool {
	return len(t.loopIDs) == 0 || loopID != "" && slices.Contains(t.loopIDs, loopID)
}
