package sink

import (
	"math/rand/v2"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/testenv"
)

func counted(s *running, result string) float64 {
	var m dto.Metric
	require.NoError(s.t, s.metrics.batches[result].Write(&m))
	return m.GetCounter().GetValue()
}

func TestInsertsThatAreNotAcknowledged(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		what   fault
		hold   time.Duration
		result string
	}{
		"it landed, the answer was lost": {loseAnswer, 0, resultFound},
		"it never arrived":               {loseInsert, 0, resultAbsent},
		"it arrives after its deadline":  {delayInsert, 1500 * time.Millisecond, resultAbsent},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := quickFixture(t)
			s := f.start(plainTable())
			f.produce(100)
			f.exactlyOnce()
			f.proxy.breakNext(c.what, 3, c.hold)
			for f.proxy.hit.Load() > 0 { // one INSERT may carry all
				f.produce(500)
				f.exactlyOnce()
			}
			// What was delayed comes to no effect.
			f.proxy.allCome(t)
			f.exactlyOnce()
			f.settled()
			require.GreaterOrEqual(t, counted(s, c.result), 3.0)
			require.Zero(t, counted(s, resultStopped))
		})
	}
}

func TestTakeOverOfAnOpenBatch(t *testing.T) {
	t.Parallel()
	past, soon := -time.Minute, 1500*time.Millisecond
	cases := map[string]struct {
		// landed are the offsets of the open batch [0..2] that are in the table.
		landed   []int64
		deadline time.Duration
		stops    bool
	}{
		"it landed":                              {landed: []int64{0, 1, 2}, deadline: past},
		"it landed, before its deadline":         {landed: []int64{0, 1, 2}, deadline: soon},
		"it did not land":                        {deadline: past},
		"it did not land, before its deadline":   {deadline: soon},
		"only a part landed: nothing is guessed": {landed: []int64{0, 2}, deadline: past, stops: true},
		"it landed twice: nothing is guessed":    {landed: []int64{0, 1, 2, 0, 1, 2}, deadline: past, stops: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := quickFixture(t)
			var records []*kgo.Record
			for range 5 {
				records = append(records, f.record(1, f.now))
			}
			require.NoError(t, f.producer.ProduceSync(t.Context(), records...).FirstErr())
			for _, offset := range c.landed {
				f.insertRow(1, offset, "e-"+string(rune('0'+offset)))
			}
			f.leaveOpen(1, intent{first: 0, last: 2, rows: 3, try: 4, deadline: time.Now().Add(c.deadline).UnixMilli()})

			s := f.start(plainTable())
			if c.stops {
				require.Eventually(t, func() bool { return s.stoppedPartitions() == 1 }, 20*time.Second, 10*time.Millisecond)
				require.ErrorContains(t, s.Check(t.Context()), "1 partitions stopped")
				require.Equal(t, uint64(len(c.landed)), f.query("SELECT count() FROM inbound_events"))
				// The other partitions go on.
				require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(2, f.now)).FirstErr())
				require.Eventually(t, func() bool { return f.query("SELECT count() FROM inbound_events WHERE src_part = 2") == 1 },
					20*time.Second, 10*time.Millisecond)
				return
			}
			f.exactlyOnce()
			f.settled()
			f.produce(50)
			f.exactlyOnce()
		})
	}
}

func TestRowsOfAnEarlierTopicOfTheSameNameAreNotCounted(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	require.NoError(t, f.conn.Exec(t.Context(), "INSERT INTO inbound_events (event_id, received_at, src_topic, src_part, src_offset) "+
		"SELECT 'earlier', now(), 'earlier', 1, number FROM numbers(3)"))
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(1, f.now), f.record(1, f.now), f.record(1, f.now)).FirstErr())
	f.leaveOpen(1, intent{first: 0, last: 2, rows: 3, try: 1, deadline: 1})
	f.start(plainTable())
	require.Eventually(t, func() bool { return f.query("SELECT count() FROM inbound_events WHERE src_topic != 'earlier'") == 3 },
		20*time.Second, 10*time.Millisecond)
}

func TestForeignMetadataStopsThePartition(t *testing.T) {
	t.Parallel()
	for name, metadata := range map[string]string{
		"not base64": "kafka-ui!", "not a message": "_w", "no rows": mustEncode(t, intent{last: 5}),
		"ends before it begins": mustEncode(t, intent{last: -1, rows: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := quickFixture(t)
			require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(1, f.now)).FirstErr())
			f.commit(1, 0, metadata)
			s := f.start(plainTable())
			require.Eventually(t, func() bool { return s.stoppedPartitions() == 1 }, 20*time.Second, 10*time.Millisecond)
			require.Zero(t, f.query("SELECT count() FROM inbound_events"))
		})
	}
}

func FuzzDecodeIntent(f *testing.F) {
	f.Add(int64(0), "")
	f.Add(int64(3), mustEncode(f, intent{last: 5, rows: 2, try: 1, deadline: 9}))
	f.Add(int64(3), "_w")
	f.Fuzz(func(t *testing.T, offset int64, metadata string) {
		in, err := decodeIntent(offset, metadata)
		if err != nil || in == nil {
			return
		}
		again, err := decodeIntent(offset, mustEncode(t, *in))
		require.NoError(t, err)
		require.Equal(t, in, again)
	})
}

func mustEncode(t testing.TB, in intent) string {
	t.Helper()
	metadata, err := in.encode()
	require.NoError(t, err)
	return metadata
}

func TestStoppedPartitionGoesOnAfterTheTableWasCorrected(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(1, f.now), f.record(1, f.now)).FirstErr())
	f.insertRow(1, 0, "e-0")
	f.leaveOpen(1, intent{first: 0, last: 1, rows: 2, try: 1, deadline: 1})
	s := f.start(plainTable())
	require.Eventually(t, func() bool { return s.stoppedPartitions() == 1 }, 20*time.Second, 10*time.Millisecond)
	s.stop()

	require.NoError(t, f.conn.Exec(t.Context(), "DELETE FROM inbound_events WHERE src_part = 1 AND src_offset BETWEEN 0 AND 1"))
	f.start(plainTable())
	f.exactlyOnce()
}

// Sinks come, go, and are killed at any moment, while inserts lose their answers.
func TestInstancesComeAndGo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.Kafka(t), testenv.ClickHouse(t))
	seed := time.Now().UnixNano()
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	stay := f.start(plainTable())
	for range 8 {
		other := f.start(plainTable())
		for range 10 {
			f.produce(300)
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			if rng.IntN(4) == 0 {
				f.proxy.breakNext(fault(1+rng.IntN(2)), 1, 0)
			}
		}
		if rng.IntN(2) == 0 {
			other.kill()
		} else {
			other.stop()
		}
	}
	f.exactlyOnce()
	f.settled()
	require.Zero(t, counted(stay, resultStopped))
}

// An owner freezes with its INSERT on the way; its successor inserts; then the first INSERT arrives.
func TestInsertOfAFrozenOwnerDoesNotDoubleItsSuccessors(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	frozen := f.start(plainTable())
	f.produce(40)
	f.exactlyOnce()
	hold := 2 * time.Second
	f.proxy.breakNext(delayInsert, 1, hold)
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(0, f.now), f.record(0, f.now)).FirstErr())
	require.Eventually(t, func() bool { return f.proxy.hit.Load() <= 0 }, 10*time.Second, time.Millisecond)
	frozen.kill()

	successor := f.start(plainTable())
	f.exactlyOnce()
	require.Equal(t, 1.0, counted(successor, resultAbsent))
	f.proxy.allCome(t)
	f.exactlyOnce()
	f.settled()
}
