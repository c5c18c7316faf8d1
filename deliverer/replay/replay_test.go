package replay_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/deliverer/replay"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

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
	replay.Store().Index(key, value, func(k []byte) { m.index[string(k)] = true })
}

func (m *memory) Delete(_ string, key []byte)         { delete(m.data, string(key)) }
func (m *memory) DropIndex(_ string, indexKey []byte) { delete(m.index, string(indexKey)) }

func (m *memory) ScanIndex(_ string, prefix, _ []byte, fn func(indexKey []byte) bool) error {
	keys := []string{}
	for k := range m.index {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if bytes.HasPrefix([]byte(k), prefix) && !fn([]byte(k)) {
			return nil
		}
	}
	return nil
}

func rpl(n int) string { return fmt.Sprintf("rpl_%026d", n) }

func running(n int) *webhooksv1.Replay {
	return &webhooksv1.Replay{
		Id: rpl(n), OrganizationId: "org_1", EndpointId: "ep_1", Status: schemas.ReplayRunning, SinceUnixMs: 10, CursorUnixMs: 10, UntilUnixMs: 100,
	}
}

func take(r *webhooksv1.Replay, event string, at int64, started bool) {
	replay.Take(r, &webhooksv1.TakenEvent{EventId: event, AcceptedUnixMs: at, Started: started})
}

func open(t *testing.T, m *memory) (ids []string) {
	t.Helper()
	require.NoError(t, replay.EachOpen(m, func(r *webhooksv1.Replay) { ids = append(ids, r.GetId()) }))
	return ids
}

func TestAReplayIsDoneOnceItsRangeIsThroughAndItsHandIsEmpty(t *testing.T) {
	r := running(1)
	r.Total = new(uint64(5))
	take(r, "a", 20, true)
	take(r, "b", 30, true)
	require.EqualValues(t, 30, r.CursorUnixMs)
	require.Equal(t, "b", r.CursorEventId)
	replay.Settle(r, "a")
	replay.Settle(r, "a")
	require.EqualValues(t, 1, r.Done, "once")
	r.Exhausted = true
	require.False(t, replay.Finish(r, 7), "b is under way")
	replay.Settle(r, "b")
	require.True(t, replay.Finish(r, 7))
	require.Equal(t, schemas.ReplayDone, r.Status)
	require.EqualValues(t, 7, r.EndedUnixMs)
	require.EqualValues(t, 2, r.GetTotal(), "what there was, not what was counted before")
	require.False(t, replay.Finish(r, 8))
}

func TestACanceledReplayKeepsWhatMayBeUnderWay(t *testing.T) {
	r := running(1)
	take(r, "a", 20, true)
	take(r, "b", 30, false)
	replay.Cancel(r, 7)
	require.Equal(t, schemas.ReplayCanceled, r.Status)
	require.NotNil(t, replay.Taken(r, "a"))
	require.Nil(t, replay.Taken(r, "b"))
	require.True(t, replay.Open(r))
	replay.Settle(r, "a")
	require.False(t, replay.Open(r))
	r.Exhausted = true
	require.False(t, replay.Finish(r, 8), "it stays canceled")
}

func TestOpenReplaysAreFound(t *testing.T) {
	m := newMemory()
	first, second := running(1), running(2)
	for _, r := range []*webhooksv1.Replay{second, first} {
		ok, err := replay.Begin(m, r)
		require.NoError(t, err)
		require.True(t, ok)
	}
	require.Equal(t, []string{rpl(1), rpl(2)}, open(t, m), "the oldest first")
	replay.Cancel(first, 7)
	require.NoError(t, replay.Put(m, first))
	require.Equal(t, []string{rpl(2)}, open(t, m))

	// A restore finds index keys of every put that compaction has not taken.
	m.index["o/org_1/"+rpl(1)] = true
	require.Equal(t, []string{rpl(2)}, open(t, m))
	require.False(t, m.index["o/org_1/"+rpl(1)])
}

func TestReplaysOfAnEndpointAreBounded(t *testing.T) {
	m := newMemory()
	for n := range 200 {
		r := running(n)
		if n%2 == 0 {
			r.EndpointId = "ep_2"
		}
		ok, err := replay.Begin(m, r)
		require.NoError(t, err)
		require.True(t, ok)
		r.Exhausted = true
		require.True(t, replay.Finish(r, 1))
		require.NoError(t, replay.Put(m, r))
	}
	require.Len(t, m.data, 102, "of each endpoint the newest fifty, and the one that came last")
	require.NotNil(t, m.data["org_1/"+rpl(199)])
	require.Nil(t, m.data["org_1/"+rpl(1)])
	for key := range m.index {
		require.NotNil(t, m.data[key[strings.LastIndexAny(key, "\x00")+1:]], "nothing is left of those: %q", key)
	}
	for n := range replay.MaxActive {
		ok, err := replay.Begin(m, running(300+n))
		require.NoError(t, err)
		require.True(t, ok)
	}
	ok, err := replay.Begin(m, running(400))
	require.NoError(t, err)
	require.False(t, ok)
}

// Whatever is taken, put down and settled in whichever order: an event in hand is before the cursor, once, and what was
// taken is in hand or done.
func TestCursor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := running(1)
		next, taken := 0, 0
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				take(r, fmt.Sprintf("evt_%04d", next), int64(20+next/3), true)
				next, taken = next+1, taken+1
			case 1:
				replay.Pass(r, int64(20+next/3), fmt.Sprintf("evt_%04d", next))
				next++
			case 2, 3:
				if len(r.Taken) > 0 {
					replay.Settle(r, rapid.SampledFrom(r.Taken).Draw(t, "settled").EventId)
				}
			}
			require.Equal(t, taken, int(r.Done)+len(r.Taken))
			seen := map[string]bool{}
			for _, e := range r.Taken {
				require.False(t, seen[e.EventId])
				seen[e.EventId] = true
				require.LessOrEqual(t, e.EventId, r.CursorEventId)
			}
		}
	})
}

func TestADeliveryOfAReplayIsAlwaysTheSame(t *testing.T) {
	r := running(1)
	require.Equal(t, id.Derive(id.Delivery, "evt_1", "ep_1", rpl(1)), replay.DeliveryID(r, "evt_1"))
	require.NotEqual(t, replay.DeliveryID(running(2), "evt_1"), replay.DeliveryID(r, "evt_1"))
}
