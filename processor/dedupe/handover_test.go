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

// owner is a task that does with its memory what the test says.
type owner struct{ memory *dedupe.Memory }

// ask is what the next record does.
type ask func(m *dedupe.Memory, tx *stream.Tx) error

func (o *owner) Process(tx *stream.Tx, in *kgo.Record) error {
	return in.Context.Value(askKey{}).(ask)(o.memory, tx)
}
func (o *owner) Advance(*stream.Tx, time.Time) error { return nil }
func (o *owner) Settled(bool)                        {}
func (o *owner) Full() bool                          { return false }
func (o *owner) Close()                              { o.memory.Close() }
func (o *owner) Drain(context.Context)               {}

type askKey struct{}

func doing(a ask) *kgo.Record {
	return &kgo.Record{Context: context.WithValue(context.Background(), askKey{}, a)}
}

// place is a memory of one of two partitions.
type place struct{ *streamtest.Harness }

func newPlace(t streamtest.TB) place {
	cfg := dedupe.Config{Store: "seen", Reading: make(chan struct{}, 1), Log: slog.New(slog.DiscardHandler)}
	return place{streamtest.New(t, stream.Spec{
		Group: "g", Input: "in", Stores: []stream.StoreSpec{{Topic: "seen"}},
		NewTask: func(p *stream.Partition) (stream.Task, error) { return &owner{dedupe.Open(p, cfg)}, nil },
	})}
}

// see gives an event of an account, and says what was known of it.
func (p place) see(account, event string, as dedupe.Known, days int) (known dedupe.Known) {
	p.Process(doing(func(m *dedupe.Memory, tx *stream.Tx) (err error) {
		key := dedupe.KeyOf("stripe", account, event)
		if known, err = m.Recall(tx, key); err == nil && known != dedupe.Done {
			m.Remember(tx, key, as, tx.Now().Add(time.Duration(days)*day))
		}
		return err
	}))
	return known
}

func (p place) recall(account, event string) (known dedupe.Known) {
	p.Process(doing(func(m *dedupe.Memory, tx *stream.Tx) (err error) {
		known, err = m.Recall(tx, dedupe.KeyOf("stripe", account, event))
		return err
	}))
	return known
}

const pieceLimit = 100

func (p place) handOver(account string) (pieces [][]byte) {
	p.Process(doing(func(m *dedupe.Memory, tx *stream.Tx) error {
		return m.HandOver(tx, dedupe.AccountOf("stripe", account), pieceLimit, func(events []byte) { pieces = append(pieces, events) })
	}))
	return pieces
}

func taking(account string, pieces [][]byte) *kgo.Record {
	return doing(func(m *dedupe.Memory, tx *stream.Tx) error {
		for _, piece := range pieces {
			if ok, err := m.TakeOver(tx, dedupe.AccountOf("stripe", account), piece); err != nil || !ok {
				return fmt.Errorf("take over: ok %v, %w", ok, err)
			}
		}
		return nil
	})
}

func TestWhatIsHandedOverIsKnownUntilTheSameDay(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	from.see("cus_1", "evt_1", dedupe.Done, 8)
	to.Process(taking("cus_1", from.handOver("cus_1")))
	require.Equal(t, dedupe.Done, from.recall("cus_1", "evt_1"), "it is not forgotten where it was")
	to.Crash()
	to.Now = to.Now.Add(9*day - time.Second)
	require.Equal(t, dedupe.Done, to.recall("cus_1", "evt_1"))
	to.Now = to.Now.Add(time.Second)
	require.Equal(t, dedupe.New, to.recall("cus_1", "evt_1"))
}

func TestAnAccountIsHandedOverWholeAndAlone(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	const count = 50
	for i := range count {
		from.see("cus_1", fmt.Sprint("evt_", i), dedupe.Done, 1+i%32) // in every segment there can be
		from.see("cus_2", fmt.Sprint("evt_", i), dedupe.Done, 32)
	}
	from.see("", "evt_0", dedupe.Done, 32)
	pieces := from.handOver("cus_1")
	require.Greater(t, len(pieces), 1)
	for _, piece := range pieces {
		require.LessOrEqual(t, len(piece), pieceLimit)
	}
	to.Process(taking("cus_1", pieces))
	require.Len(t, to.Keys("seen"), count)
	for i := range count {
		require.Equal(t, dedupe.Done, to.recall("cus_1", fmt.Sprint("evt_", i)))
		require.Equal(t, dedupe.New, to.recall("cus_2", fmt.Sprint("evt_", i)))
	}
	require.Empty(t, from.handOver("cus_3"))
}

func TestADeadEventThatIsHandedOverMayBeDone(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	from.see("cus_1", "evt_1", dedupe.Dead, 32)
	pieces := from.handOver("cus_1")
	to.Process(taking("cus_1", pieces))
	require.Equal(t, dedupe.Dead, to.see("cus_1", "evt_1", dedupe.Done, 32))
	to.Process(taking("cus_1", pieces))
	require.Equal(t, dedupe.Done, to.recall("cus_1", "evt_1"), "what is done stays so")

	from.Process(taking("cus_1", to.handOver("cus_1")))
	require.Equal(t, dedupe.Done, from.recall("cus_1", "evt_1"), "what was done elsewhere is done")
}

func TestWhatIsOverIsNotHandedOver(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	from.see("cus_1", "evt_1", dedupe.Done, 1)
	late := from.handOver("cus_1")
	from.Now, to.Now = from.Now.Add(2*day), to.Now.Add(2*day)
	require.Empty(t, from.handOver("cus_1"))
	to.Process(taking("cus_1", late))
	require.Empty(t, to.Keys("seen"))
}

func TestAHandOverThatIsAbortedLeavesNoTrace(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	from.see("cus_1", "evt_1", dedupe.Done, 8)
	to.Abort(taking("cus_1", from.handOver("cus_1")))
	require.Empty(t, to.Keys("seen"))
	to.Redeliver()
	require.Equal(t, dedupe.Done, to.recall("cus_1", "evt_1"))
}

func TestAPieceThatIsNoneIsRefused(t *testing.T) {
	from, to := newPlace(t), newPlace(t)
	from.see("cus_1", "evt_1", dedupe.Done, 8)
	piece := from.handOver("cus_1")[0]
	to.Process(doing(func(m *dedupe.Memory, tx *stream.Tx) error {
		ok, err := m.TakeOver(tx, dedupe.AccountOf("stripe", "cus_1"), append(piece, 0))
		require.False(t, ok)
		return err
	}))
	require.Empty(t, to.Keys("seen"))
}

// TestHandedOverMemoriesAgreeWithSets: whatever is seen and handed over between two memories, each knows what a map of expiry
// days knows that is merged likewise.
func TestHandedOverMemoriesAgreeWithSets(t *testing.T) {
	type entry struct {
		known dedupe.Known
		last  dedupe.Day
	}
	rapid.Check(t, func(t *rapid.T) {
		places, models := [2]place{newPlace(t), newPlace(t)}, [2]map[string]entry{{}, {}}
		known := func(i int, event string) dedupe.Known {
			if e, ok := models[i][event]; ok && e.last >= dedupe.DayOf(places[i].Now) {
				return e.known
			}
			return dedupe.New
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "place")
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				places[i].Crash()
			case 1:
				passed := time.Duration(rapid.IntRange(1, 20).Draw(t, "days")) * day
				places[0].Now, places[1].Now = places[0].Now.Add(passed), places[1].Now.Add(passed)
			case 2:
				places[1-i].Process(taking("cus_1", places[i].handOver("cus_1")))
				for event, e := range models[i] {
					if is, have := known(i, event), known(1-i, event); is != dedupe.New && (have == dedupe.New || have == dedupe.Dead && is == dedupe.Done) {
						models[1-i][event] = e
					}
				}
			default:
				event := fmt.Sprint("evt_", rapid.IntRange(0, 4).Draw(t, "event"))
				as := rapid.SampledFrom([]dedupe.Known{dedupe.Done, dedupe.Dead}).Draw(t, "as")
				days := 1 + 7*int(event[4]-'0')
				want := known(i, event)
				require.Equal(t, want, places[i].see("cus_1", event, as, days), event)
				if want != dedupe.Done {
					models[i][event] = entry{as, dedupe.DayOf(places[i].Now.Add(time.Duration(days) * day))}
				}
			}
		}
	})
}
