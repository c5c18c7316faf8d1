package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
)

// solo owns one partition of a tracked group without Kafka: the session's rules for taking and committing, and what
// the commit would leave for the next owner.
type solo struct {
	t    *testing.T
	o    *owned
	task *holder
	next int64
	meta string
}

func newSolo(t *testing.T, db *store.DB, offset int64, meta string) *solo {
	t.Helper()
	s := &solo{t: t, next: offset, task: &holder{pending: map[int64]*Pending{}}}
	spec := &Spec{Group: "solo", Input: senderIn, Window: 1000, NewTask: func(*Partition) (Task, error) { return s.task, nil }}
	require.NoError(t, spec.check())
	st, err := db.Acquire(0, nil)
	require.NoError(t, err)
	decoded, _ := decodeMetadata(meta)
	s.o = newOwned(t.Context(), spec, 0, 1, st, position{offset, 0}, decoded, func() {})
	require.NoError(t, s.o.start())
	return s
}

// take gives the task what it may have of a long backlog, and says how many records that were.
func (s *solo) take(backlog int) (taken int) {
	s.t.Helper()
	for taken < backlog && s.o.mayTake() {
		require.NoError(s.t, s.o.process(&kgo.Record{Offset: s.next}, time.Now()))
		s.next++
		taken++
	}
	return taken
}

// commit ends what the task has in flight, all of it, and commits.
func (s *solo) commit() {
	s.t.Helper()
	require.NoError(s.t, s.o.advance(time.Now()))
	offsets, err := commitOffsets([]*owned{s.o}, 1)
	require.NoError(s.t, err)
	s.meta = *offsets[0].Metadata
	s.o.announced(1)
	s.o.settle(true)
}

// holder ends what it was given at the next Advance, and remembers what it had to suspect.
type holder struct {
	counter
	pending map[int64]*Pending
	maybe   int
}

func (h *holder) Process(tx *Tx, in *kgo.Record) error {
	p := tx.Track(1)
	h.pending[in.Offset] = p
	if p.MaybeStarted() {
		h.maybe++
	}
	return nil
}

func (h *holder) Advance(tx *Tx, _ time.Time) error {
	for offset, p := range h.pending {
		tx.Finish(p, 0)
		delete(h.pending, offset)
	}
	return nil
}

func TestFewAreSuspectedAfterACrashAtLittleTraffic(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()

	old := newSolo(t, db, 0, "")
	require.Zero(t, old.take(1000), "nothing is taken before the claim")
	old.commit()
	for range 20 {
		require.Equal(t, 3, old.take(3))
		old.commit()
	}
	// A backlog of 1,000 comes, the owner takes of it what it may, and dies.
	taken := old.take(1000)
	require.Equal(t, minAhead, taken)

	next := newSolo(t, db, 60, old.meta)
	next.commit()
	for range 12 {
		next.take(1000)
		next.commit()
	}
	require.Equal(t, minAhead, next.task.maybe, "exactly what may have been started is suspected")
}

func TestABusyPartitionTakesMoreInEachTransaction(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()

	s := newSolo(t, db, 0, "")
	s.commit()
	var taken []int
	for range 7 {
		taken = append(taken, s.take(10_000))
		s.commit()
	}
	require.Equal(t, []int{8, 16, 32, 64, 128, 256, 256}, taken)

	meta, ok := decodeMetadata(s.meta)
	require.True(t, ok)
	require.Equal(t, uint32(maxAhead), meta.GetAhead())

	after := newSolo(t, db, s.next, s.meta)
	after.commit()
	require.Equal(t, minAhead, after.take(10_000), "a new owner starts small")
	meta, _ = decodeMetadata(after.meta)
	require.Equal(t, uint32(maxAhead), meta.GetAhead(), "and still carries what the old one may have started")
}
