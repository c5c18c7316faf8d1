package dedupe_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/dedupe"
)

const day = 24 * time.Hour

// rememberer is a task that remembers each record's key for the days its value says, and says what it knew before.
type rememberer struct {
	memory *dedupe.Memory
	knew   []dedupe.Known
}

func (r *rememberer) Process(tx *stream.Tx, in *kgo.Record) error {
	key := dedupe.KeyOf("stripe", "cus_1", string(in.Key))
	known, err := r.memory.Recall(tx, key)
	r.knew = append(r.knew, known)
	if err == nil && known != dedupe.Done {
		r.memory.Remember(tx, key, dedupe.Known(in.Value[0]), tx.Now().Add(time.Duration(in.Value[1])*day))
	}
	return err
}
func (r *rememberer) Advance(tx *stream.Tx, _ time.Time) error { r.memory.Forget(tx); return nil }
func (r *rememberer) Settled(bool)                             {}
func (r *rememberer) Full() bool                               { return false }
func (r *rememberer) Close()                                   { r.memory.Close() }
func (r *rememberer) Drain(context.Context)                    {}

func newHarness(t streamtest.TB) *streamtest.Harness {
	cfg := dedupe.Config{Store: "seen", Reading: make(chan struct{}, 1), Log: slog.New(slog.DiscardHandler)}
	return streamtest.New(t, stream.Spec{
		Group: "g", Input: "in", Stores: []stream.StoreSpec{{Topic: "seen"}},
		NewTask: func(p *stream.Partition) (stream.Task, error) {
			return &rememberer{memory: dedupe.Open(p, cfg)}, nil
		},
	})
}

// see gives one event and says what was known of it.
func see(h *streamtest.Harness, key string, as dedupe.Known, days int) dedupe.Known {
	h.Process(&kgo.Record{Key: []byte(key), Value: []byte{byte(as), byte(days)}})
	return last(h)
}

func last(h *streamtest.Harness) dedupe.Known {
	knew := h.Task().(*rememberer).knew
	return knew[len(knew)-1]
}

func TestAnEventIsKnownUntilItsLastDayIsOver(t *testing.T) {
	h := newHarness(t)
	start := h.Now
	require.Equal(t, dedupe.New, see(h, "evt_1", dedupe.Done, 8))
	for _, passed := range []time.Duration{0, day, 8 * day, 9*day - time.Second} {
		h.Now = start.Add(passed)
		require.Equal(t, dedupe.Done, see(h, "evt_1", dedupe.Done, 8), passed)
	}
	h.Now = start.Add(9 * day)
	require.Equal(t, dedupe.New, see(h, "evt_1", dedupe.Done, 8))
}

// A retention that was shortened holds for what comes from then on. What is there was remembered by the longer one, in
// segments further ahead than the shorter one reaches.
func TestAShorterRetentionForgetsNothing(t *testing.T) {
	h := newHarness(t)
	for passed := range 16 { // whatever day of its segment it is
		key := fmt.Sprint("evt_", passed)
		require.Equal(t, dedupe.New, see(h, key, dedupe.Done, 32))
		h.Crash()
		require.Equal(t, dedupe.Done, see(h, key, dedupe.Done, 1))
		h.Now = h.Now.Add(day)
	}
}

func TestADeadEventMayBeDone(t *testing.T) {
	h := newHarness(t)
	require.Equal(t, dedupe.New, see(h, "evt_1", dedupe.Dead, 32))
	h.Now = h.Now.Add(20 * day)
	require.Equal(t, dedupe.Dead, see(h, "evt_1", dedupe.Done, 32))
	require.Equal(t, dedupe.Done, see(h, "evt_1", dedupe.Dead, 32))
	h.Now = h.Now.Add(20 * day)
	require.Equal(t, dedupe.Done, see(h, "evt_1", dedupe.Dead, 32))
}

func TestWhatIsOverLeavesTheDisk(t *testing.T) {
	h := newHarness(t)
	for i := range 100 {
		see(h, fmt.Sprint("evt_", i), dedupe.Done, 1+i%32)
	}
	require.Len(t, h.Keys("seen"), 100)
	h.Advance(h.Now.Add(33*day + 16*day))
	require.Empty(t, h.Keys("seen"))
}

// TestMemoryAgreesWithASet: whatever is sent when, through aborts, crashes and hand-overs, what is known is what a map
// of expiry days knows.
func TestMemoryAgreesWithASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHarness(t)
		type entry struct {
			known dedupe.Known
			last  dedupe.Day
		}
		model := map[string]entry{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				h.Crash()
			case 1:
				h.Stop()
			case 2:
				h.Now = h.Now.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "days")) * day)
			case 3:
				h.Abort(&kgo.Record{Key: []byte("evt_aborted"), Value: []byte{byte(dedupe.Done), 32}})
				h.Crash() // what was aborted is not given again
			}
			key := fmt.Sprint("evt_", rapid.IntRange(0, 5).Draw(t, "event"))
			as := rapid.SampledFrom([]dedupe.Known{dedupe.Done, dedupe.Done, dedupe.Dead}).Draw(t, "as")
			days := 1 + 6*int(key[4]-'0') // its source's, the same each time

			want := dedupe.New
			if m, ok := model[key]; ok && m.last >= dedupe.DayOf(h.Now) {
				want = m.known
			}
			require.Equal(t, want, see(h, key, as, days), key)
			if want != dedupe.Done {
				model[key] = entry{as, dedupe.DayOf(h.Now.Add(time.Duration(days) * day))}
			}
		}
	})
}

func BenchmarkNewEvents(b *testing.B) {
	h := newHarness(b)
	var batch []*kgo.Record
	for i := 0; b.Loop(); i++ {
		batch = append(batch, &kgo.Record{Key: fmt.Append(nil, "evt_", i), Value: []byte{byte(dedupe.Done), 32}})
		if len(batch) == 1000 {
			h.Process(batch...)
			batch = batch[:0]
		}
	}
}
