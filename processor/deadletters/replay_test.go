package deadletters

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestARecordIsReplayedToWhereItCameFrom(t *testing.T) {
	w := newWorld(t)
	for _, topic := range []string{schemas.Inbound, schemas.InboundUnrouted, schemas.Events} {
		letter := w.letter(topic, "evt_"+topic, "org_"+topic)
		w.bury(letter)
		ids, tally := w.replay(Replay{})
		require.Equal(t, []string{"evt_" + topic}, ids)
		require.Equal(t, 1, tally.Replayed)

		got := w.records(topic)
		require.Len(t, got, 1)
		want := Original(letter)
		require.Equal(t, want.Partition, got[0].Partition)
		require.Equal(t, want.Key, got[0].Key)
		require.Equal(t, want.Value, got[0].Value)
		require.Equal(t, want.Headers, got[0].Headers)
		require.WithinDuration(t, time.Now(), got[0].Timestamp, time.Minute, "an old one could be deleted at once")
	}
}

func TestALetterIsReplayedOnceUnlessItIsAskedForAgain(t *testing.T) {
	w := newWorld(t)
	var all []string
	for i := range maxLetters + 10 { // more than one transaction
		id := fmt.Sprintf("evt_%03d", i)
		all = append(all, id)
		w.bury(w.letter(schemas.Inbound, id, "org_"+id))
	}
	ids, _ := w.replay(Replay{DryRun: true})
	require.ElementsMatch(t, all, ids)
	require.Empty(t, w.records(schemas.Inbound), "a dry run writes nothing")
	_, replayed := w.found(Filter{})
	require.Empty(t, replayed)

	ids, _ = w.replay(Replay{Filter: Filter{EventIDs: all[:1]}})
	require.Equal(t, all[:1], ids)
	ids, tally := w.replay(Replay{})
	require.ElementsMatch(t, all[1:], ids)
	require.Equal(t, Tally{Replayed: len(all) - 1, Before: 1}, tally)
	ids, tally = w.replay(Replay{})
	require.Empty(t, ids)
	require.Equal(t, Tally{Before: len(all)}, tally)
	require.Len(t, w.records(schemas.Inbound), len(all))

	listed, replayed := w.found(Filter{})
	require.ElementsMatch(t, all, listed, "notes are no letters")
	require.ElementsMatch(t, all, replayed)

	ids, _ = w.replay(Replay{Again: true, Filter: Filter{EventIDs: all[:2]}})
	require.ElementsMatch(t, all[:2], ids)
	require.Len(t, w.records(schemas.Inbound), len(all)+2)
}

func TestWhatCannotBeReplayedIsCountedAndLeft(t *testing.T) {
	w := newWorld(t)
	whole, large := w.letter(schemas.Inbound, "evt_whole", "org_1"), w.letter(schemas.Inbound, "evt_large", "org_1")
	large.Body, large.Incomplete = nil, true
	w.bury(large, &webhooksv1.DeadInbound{Event: rowOf("evt_old"), Body: []byte("{}")}, whole)
	ids, tally := w.replay(Replay{})
	require.Equal(t, []string{"evt_whole"}, ids)
	require.Equal(t, Tally{Replayed: 1, Unreplayable: 2}, tally)
}

// TestReplaysAtATimeReplayEachLetterOnce: whoever comes later ends the one before, and what that has done holds.
func TestReplaysAtATimeReplayEachLetterOnce(t *testing.T) {
	w := newWorld(t)
	for i := range 3 * maxLetters {
		w.bury(w.letter(schemas.Events, fmt.Sprintf("evt_%03d", i), fmt.Sprintf("org_%d", i%7)))
	}
	var mu sync.Mutex
	var told []string
	var replays sync.WaitGroup
	for i := range 5 {
		replays.Go(func() {
			time.Sleep(time.Duration(i) * 30 * time.Millisecond)
			_, _ = Replay{}.Run(t.Context(), w.cluster, slog.New(slog.DiscardHandler), func(l *Letter) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, l.Event.EventId)
			})
		})
	}
	replays.Wait()
	ids, _ := w.replay(Replay{}) // what the last of them may have left
	told = append(told, ids...)
	var on []string
	for _, r := range w.records(schemas.Events) {
		on = append(on, string(r.Headers[0].Value))
	}
	slices.Sort(on)
	require.Equal(t, 3*maxLetters, len(slices.Compact(slices.Clone(on))), "all")
	require.Equal(t, 3*maxLetters, len(on), "none twice")
	slices.Sort(told)
	require.Equal(t, len(told), len(slices.Compact(slices.Clone(told))), "none is told of twice")
}

func TestAReplayThatWasKilledIsAborted(t *testing.T) {
	w := newWorld(t)
	w.bury(w.letter(schemas.Inbound, "evt_1", "org_1"))
	var letter *Letter
	require.NoError(t, Each(t.Context(), w.cluster, Filter{}, slog.New(slog.DiscardHandler), func(l *Letter) error {
		letter = l
		return nil
	}))
	killed, err := newWriter(t.Context(), w.cluster, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer killed.client.Close()
	require.NoError(t, killed.client.BeginTransaction())
	record := Original(letter.DeadInbound)
	record.Topic = w.cluster.Topic(record.Topic)
	require.NoError(t, killed.client.ProduceSync(t.Context(), record, killed.note(letter, time.Now())).FirstErr())

	ids, _ := w.replay(Replay{})
	require.Equal(t, []string{"evt_1"}, ids)
	require.Error(t, killed.client.EndTransaction(t.Context(), kgo.TryCommit), "it was not dead after all")
	require.Error(t, killed.write(t.Context(), []*Letter{letter}))
	require.Len(t, w.records(schemas.Inbound), 1)
}
