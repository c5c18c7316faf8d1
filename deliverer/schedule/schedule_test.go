package schedule_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

var end = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestNext(t *testing.T) {
	p := schedule.Policy{Delays: []time.Duration{5 * time.Second, 5 * time.Minute}, Jitter: 0.2}
	for _, tc := range []struct {
		name      string
		step      uint32
		notBefore time.Duration
		random    float64
		want      time.Duration
		ok        bool
	}{
		{"first", 0, 0, 0, 5 * time.Second, true},
		{"second", 1, 0, 0, 5 * time.Minute, true},
		{"no third", 2, 0, 0, 0, false},
		{"half the jitter", 0, 0, 0.5, 5500 * time.Millisecond, true},
		{"the receiver's time is later", 0, time.Hour, 0, time.Hour, true},
		{"the receiver's time is earlier", 1, time.Second, 0, 5 * time.Minute, true},
		{"the receiver cannot add an attempt", 2, time.Hour, 0, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var notBefore time.Time
			if tc.notBefore > 0 {
				notBefore = end.Add(tc.notBefore)
			}
			due, ok := p.Next(tc.step, end, notBefore, tc.random)
			require.Equal(t, tc.ok, ok)
			if ok {
				require.Equal(t, end.Add(tc.want), due)
			}
		})
	}
}

func TestDefaultMakesTenAttemptsOverThreeDays(t *testing.T) {
	at, attempts := end, 1
	for step := uint32(0); ; step++ {
		due, ok := schedule.Default().Next(step, at, time.Time{}, 0)
		if !ok {
			break
		}
		at, attempts = due, attempts+1
	}
	require.Equal(t, 10, attempts)
	require.Equal(t, 75*time.Hour+35*time.Minute+5*time.Second, at.Sub(end))
}

func TestJitterOnlyLengthens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := schedule.Default()
		step := rapid.Uint32Range(0, 8).Draw(t, "step")
		ended := end.Add(time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "ns")))
		due, ok := p.Next(step, ended, time.Time{}, rapid.Float64Range(0, 1).Draw(t, "random"))
		require.True(t, ok)
		delay := due.Sub(ended)
		require.GreaterOrEqual(t, delay, p.Delays[step])
		require.LessOrEqual(t, delay, p.Delays[step]*6/5+time.Millisecond)
		require.Zero(t, due.UnixNano()%1e6)
	})
}

func TestPolicyIsChecked(t *testing.T) {
	require.NoError(t, schedule.Default().Check())
	require.NoError(t, schedule.Policy{}.Check(), "no delays: one attempt")
	require.Error(t, schedule.Policy{Delays: []time.Duration{-1}}.Check())
	require.Error(t, schedule.Policy{Jitter: 1.1}.Check())
}

// memory is a transaction over maps.
type memory struct {
	data  map[string][]byte
	index map[string]bool
}

func newMemory() *memory { return &memory{map[string][]byte{}, map[string]bool{}} }

func (m *memory) Get(_ string, key []byte) ([]byte, bool, error) {
	v, ok := m.data[string(key)]
	return v, ok, nil
}

func (m *memory) Put(_ string, key, value []byte) {
	m.data[string(key)] = value
	schedule.Store().Index(key, value, func(k []byte) { m.index[string(k)] = true })
}

func (m *memory) Delete(_ string, key []byte)         { delete(m.data, string(key)) }
func (m *memory) DropIndex(_ string, indexKey []byte) { delete(m.index, string(indexKey)) }

func (m *memory) Scan(_ string, prefix, from []byte, fn func(key, value []byte) bool) error {
	keys := []string{}
	for k := range m.data {
		keys = append(keys, k)
	}
	each(keys, prefix, from, func(k []byte) bool { return fn(k, m.data[string(k)]) })
	return nil
}

func (m *memory) ScanIndex(_ string, prefix, from []byte, fn func(indexKey []byte) bool) error {
	keys := []string{}
	for k := range m.index {
		keys = append(keys, k)
	}
	each(keys, prefix, from, fn)
	return nil
}

func each(keys []string, prefix, from []byte, fn func([]byte) bool) {
	slices.Sort(keys)
	for _, k := range keys {
		if bytes.HasPrefix([]byte(k), prefix) && bytes.Compare([]byte(k), from) >= 0 && !fn([]byte(k)) {
			return
		}
	}
}

func state(endpoint string, due, order int64) *webhooksv1.WaitingState {
	return &webhooksv1.WaitingState{EndpointId: endpoint, DueUnixMs: due, Order: order}
}

func due(t *testing.T, tx schedule.Tx, endpoint string) []string {
	t.Helper()
	var out []string
	require.NoError(t, schedule.Scan(tx, endpoint, func(e schedule.Entry) bool {
		out = append(out, fmt.Sprintf("%s@%d", e.Delivery, e.Due.UnixMilli()))
		return true
	}))
	return out
}

func TestOldestDueFirst(t *testing.T) {
	tx := newMemory()
	for _, d := range []struct {
		id         string
		endpoint   string
		due, order int64
	}{
		{"d1", "ep_a", 300, 1}, {"d2", "ep_a", 20, 9}, {"d3", "ep_a", 20, 2}, {"d4", "ep_b", 1, 1}, {"d5", "ep_a", -1, 1},
	} {
		require.NoError(t, schedule.Put(tx, d.id, state(d.endpoint, d.due, d.order), nil))
		require.NoError(t, schedule.PutPayload(tx, d.id, &webhooksv1.WaitingPayload{}))
	}
	require.Equal(t, []string{"d5@-1", "d3@20", "d2@20", "d1@300"}, due(t, tx, "ep_a"))
	require.Equal(t, []string{"d4@1"}, due(t, tx, "ep_b"))
	require.Empty(t, due(t, tx, "ep_"), "an id that begins another is another endpoint")

	heads := map[string]int64{}
	require.NoError(t, schedule.Heads(tx, func(ep string, at time.Time) { heads[ep] = at.UnixMilli() }))
	require.Equal(t, map[string]int64{"ep_a": -1, "ep_b": 1}, heads)
}

func TestMovingLeavesNoEntryBehind(t *testing.T) {
	tx := newMemory()
	first, second := state("ep_a", 10, 1), state("ep_a", 20, 1)
	require.NoError(t, schedule.Put(tx, "d1", first, nil))
	require.NoError(t, schedule.Put(tx, "d1", second, first))
	require.Equal(t, []string{"d1@20"}, due(t, tx, "ep_a"))
	got, err := schedule.State(tx, "d1")
	require.NoError(t, err)
	require.True(t, proto.Equal(second, got))

	schedule.Remove(tx, "d1", got)
	require.Empty(t, due(t, tx, "ep_a"))
	got, err = schedule.State(tx, "d1")
	require.NoError(t, err)
	require.Nil(t, got)
	require.Empty(t, tx.data)
}

func TestStaleEntriesAreTold(t *testing.T) {
	tx := newMemory()
	require.NoError(t, schedule.Put(tx, "d1", state("ep_a", 10, 1), nil))
	require.NoError(t, schedule.Put(tx, "d1", state("ep_a", 20, 1), nil)) // its former place is not named
	var current []bool
	var stale []schedule.Entry
	require.NoError(t, schedule.Scan(tx, "ep_a", func(e schedule.Entry) bool {
		s, err := schedule.State(tx, e.Delivery)
		require.NoError(t, err)
		current = append(current, e.Current(s))
		if !e.Current(s) {
			stale = append(stale, e)
		}
		return true
	}))
	require.Equal(t, []bool{false, true}, current)
	for _, e := range stale {
		e.Drop(tx)
	}
	require.Equal(t, []string{"d1@20"}, due(t, tx, "ep_a"))
}

func TestUnreadableStateIsAnErrorNotAPanic(t *testing.T) {
	tx := newMemory()
	tx.Put(schemas.Retries, []byte("s/d1"), []byte("\xff\xff"))
	_, err := schedule.State(tx, "d1")
	require.ErrorContains(t, err, "d1")
	require.Empty(t, due(t, tx, "ep_a"))
}

func ordered(endpoint string, group uint64, order int64, behind bool) *webhooksv1.WaitingState {
	s := state(endpoint, 10, order)
	s.OrderGroup = &group
	if behind {
		s.Reason = webhooksv1.WaitingReason_WAITING_REASON_ORDERED
	}
	return s
}

func inOrder(t *testing.T, tx schedule.Tx, endpoint string, group uint64, from int64) (out []string) {
	t.Helper()
	require.NoError(t, schedule.ScanOrder(tx, endpoint, group, from, func(delivery string, _ *webhooksv1.WaitingState) bool {
		out = append(out, delivery)
		return true
	}))
	return out
}

func TestWhatIsInOrder(t *testing.T) {
	tx := newMemory()
	for id, s := range map[string]*webhooksv1.WaitingState{
		"d1": ordered("ep_a", 7, 1, false), "d3": ordered("ep_a", 7, 300, true), "d2": ordered("ep_a", 7, 2, true),
		"other group": ordered("ep_a", 8, 0, false), "other endpoint": ordered("ep_b", 7, 1, false), "none": state("ep_a", 20, 0),
	} {
		require.NoError(t, schedule.Put(tx, id, s, nil))
	}
	require.Equal(t, []string{"d1", "d2", "d3"}, inOrder(t, tx, "ep_a", 7, 0))
	require.Equal(t, []string{"d3"}, inOrder(t, tx, "ep_a", 7, 3))
	require.Equal(t, []string{"other group@10", "d1@10", "none@20"}, due(t, tx, "ep_a"), "what has to wait for another is never due")

	s := ordered("ep_a", 7, 1, false)
	schedule.Remove(tx, "d1", s)
	require.NoError(t, schedule.Put(tx, "d2", ordered("ep_a", 7, 2, false), nil))
	require.Equal(t, []string{"d2", "d3"}, inOrder(t, tx, "ep_a", 7, 0))
	require.Equal(t, []string{"other group@10", "d2@10", "none@20"}, due(t, tx, "ep_a"))

	require.NoError(t, schedule.Put(tx, "d2", ordered("ep_a", 7, 2, true), ordered("ep_a", 7, 2, false)))
	require.Equal(t, []string{"other group@10", "none@20"}, due(t, tx, "ep_a"))
}

func TestStaleEntriesOfAnOrderAreDropped(t *testing.T) {
	tx := newMemory()
	require.NoError(t, schedule.Put(tx, "gone", ordered("ep_a", 7, 1, true), nil))
	tx.Delete(schemas.Retries, []byte("s/gone"))
	require.NoError(t, schedule.Put(tx, "d2", ordered("ep_a", 7, 2, true), nil))
	entries := len(tx.index)
	require.Equal(t, []string{"d2"}, inOrder(t, tx, "ep_a", 7, 0))
	require.Len(t, tx.index, entries-1)
}
