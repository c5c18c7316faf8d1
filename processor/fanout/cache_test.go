package fanout

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/eventfilter"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// store is a copy of `endpoints` that counts how often it is read.
type store struct {
	data    map[string][]byte
	changed func(key, value []byte)
	scans   int
}

func (s *store) Get(key []byte) ([]byte, bool, error) {
	value, ok := s.data[string(key)]
	return value, ok, nil
}

func (s *store) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	s.scans++
	for _, key := range slices.Sorted(maps.Keys(s.data)) {
		if strings.HasPrefix(key, string(prefix)) && !fn([]byte(key), s.data[key]) {
			break
		}
	}
	return nil
}

func (s *store) OnChange(fn func(key, value []byte)) { s.changed = fn }

func (s *store) write(key string, m proto.Message) {
	value, _ := proto.Marshal(m)
	s.data[key] = value
	s.changed([]byte(key), value)
}

// organization writes n endpoints, each with the filter where that is not empty.
func (s *store) organization(org string, n int, filter string) {
	for i := range n {
		e := &webhooksv1.Endpoint{Id: fmt.Sprintf("ep_%05d", i), Enabled: true, EventTypes: []string{"*"}, Version: 1}
		if filter != "" {
			e.Filter = proto.String(fmt.Sprintf(filter, i))
		}
		s.write(org+"/"+e.Id, e)
	}
	s.write(org, &webhooksv1.EndpointSet{Version: 1})
}

func newMatcherOver(t testing.TB, limit int) (*matcher, *store) {
	filters, err := eventfilter.NewCompiler()
	require.NoError(t, err)
	s := &store{data: map[string][]byte{}}
	m := newMatcher(s, filters, slog.New(slog.DiscardHandler), newMetrics(prometheus.NewRegistry()))
	m.cache = newCache(limit)
	return m, s
}

func current(t testing.TB, m *matcher, org string) *endpointSet {
	t.Helper()
	set, err := m.current(org)
	require.NoError(t, err)
	return set
}

func TestLargeOrganizationsThatTakeTurnsAreReadOnce(t *testing.T) {
	m, s := newMatcherOver(t, maxHeld)
	const orgs = 20
	for i := range orgs {
		s.organization(fmt.Sprint("org_", i), 1100, "")
	}
	for range 3 {
		for i := range orgs {
			require.Len(t, current(t, m, fmt.Sprint("org_", i)).targets, 1100)
		}
	}
	require.Equal(t, orgs, s.scans)
}

func TestTheLongestUnusedSetMakesRoom(t *testing.T) {
	m, s := newMatcherOver(t, 250)
	for _, org := range []string{"a", "b", "c"} {
		s.organization(org, 100, "")
	}
	for _, org := range []string{"a", "b", "a", "c", "a"} {
		current(t, m, org)
	}
	require.Equal(t, 3, s.scans, "c took the place of b")
	require.LessOrEqual(t, m.cache.weight, 250)
	current(t, m, "b")
	current(t, m, "a")
	require.Equal(t, 4, s.scans, "b took the place of c")
	require.Len(t, m.cache.sets, 2)
}

func TestASetOverTheLimitIsKeptAlone(t *testing.T) {
	m, s := newMatcherOver(t, 50)
	s.organization("a", 100, "")
	s.organization("b", 10, "")
	current(t, m, "b")
	current(t, m, "a")
	current(t, m, "a")
	require.Equal(t, 2, s.scans)
	require.Len(t, m.cache.sets, 1)
}

func TestAChangeCompilesOnlyWhatHasChanged(t *testing.T) {
	m, s := newMatcherOver(t, maxHeld)
	s.organization("a", 50, "data.n == %d")
	before := current(t, m, "a")
	s.write("a/ep_00007", &webhooksv1.Endpoint{Id: "ep_00007", Enabled: true, Version: 2, Filter: proto.String("data.n == 1000")})
	after := current(t, m, "a")
	require.Equal(t, 2, s.scans)
	for i := range after.targets {
		require.NotNil(t, after.targets[i].filter)
		if i == 7 {
			require.NotSame(t, before.targets[i].filter, after.targets[i].filter)
		} else {
			require.Same(t, before.targets[i].filter, after.targets[i].filter)
		}
	}
	require.Equal(t, after.weight(), m.cache.weight, "what is out of date is not counted twice")
}

func TestASetThatChangesWhileItIsReadIsReadAgain(t *testing.T) {
	m, s := newMatcherOver(t, maxHeld)
	s.organization("a", 1, "")
	_, _, changes := m.cache.get("a")
	s.organization("a", 2, "")
	m.cache.keep("a", &endpointSet{}, changes)
	require.Len(t, current(t, m, "a").targets, 2)
}

func BenchmarkTwoLargeOrganizations(b *testing.B) {
	for name, filter := range map[string]string{"plain": "", "filtered": "data.n == %d"} {
		b.Run(name, func(b *testing.B) {
			m, s := newMatcherOver(b, maxHeld)
			s.organization("a", 1100, filter)
			s.organization("b", 1100, filter)
			for b.Loop() {
				current(b, m, "a")
				current(b, m, "b")
			}
			require.Equal(b, 2, s.scans)
		})
	}
}
