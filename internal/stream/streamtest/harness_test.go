package streamtest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/stream"
)

// count sums values by key: the smallest task with state.
type count struct{ settled []bool }

func countSpec(c *count) stream.Spec {
	return stream.Spec{
		Group: "count", Input: "in",
		Stores: []stream.StoreSpec{{Topic: "sums", Index: func(key, value []byte, put func([]byte)) {
			put(append(append([]byte(nil), value...), key...))
		}}},
		NewTask: func(*stream.Partition) (stream.Task, error) { return c, nil },
	}
}

func (c *count) Process(tx *stream.Tx, in *kgo.Record) error {
	value, _, err := tx.Get("sums", in.Key)
	if err != nil {
		return err
	}
	old, _ := strconv.Atoi(string(value))
	n, _ := strconv.Atoi(string(in.Value))
	if n < 0 {
		tx.Delete("sums", in.Key)
		return nil
	}
	sum := strconv.Itoa(old + n)
	tx.Put("sums", in.Key, []byte(sum))
	tx.Emit("out", string(in.Key), &kgo.Record{Key: in.Key, Value: []byte(sum)})
	return nil
}
func (c *count) Advance(*stream.Tx, time.Time) error { return nil }
func (c *count) Settled(committed bool)              { c.settled = append(c.settled, committed) }
func (c *count) Full() bool                          { return false }
func (c *count) Close()                              {}
func (c *count) Drain(context.Context)               {}

func rec(key, value string) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: []byte(value)}
}

func TestStateOutputsAndAborts(t *testing.T) {
	c := &count{}
	h := New(t, countSpec(c))
	out := h.Process(rec("a", "1"), rec("a", "2"), rec("b", "5"))
	require.Len(t, out.Topic("out"), 3)
	require.Len(t, out.Topic("sums"), 2, "a key is produced once a transaction")
	require.Equal(t, "3", string(h.Get("sums", []byte("a"))))
	require.EqualValues(t, 3, h.Watermark())

	h.Abort(rec("a", "10"), rec("c", "1"))
	require.Equal(t, "3", string(h.Get("sums", []byte("a"))))
	require.EqualValues(t, 3, h.Watermark())
	out = h.Redeliver()
	require.Equal(t, "13", string(out.Topic("out")[0].Value))
	require.Equal(t, []string{"a", "b", "c"}, h.Keys("sums"))

	out = h.Process(rec("b", "-1"))
	require.Nil(t, out.Topic("sums")[0].Value, "a tombstone")
	require.Equal(t, []string{"a", "c"}, h.Keys("sums"))
	require.Equal(t, []bool{true, false, true, true}, c.settled)
}

// reader is a count that says what it will read.
type reader struct {
	count
	calls []string
}

func (r *reader) Prefetch(in *kgo.Record, read func(store string, key []byte)) {
	r.calls = append(r.calls, "ahead "+string(in.Key))
	read("sums", in.Key)
}

func (r *reader) Process(tx *stream.Tx, in *kgo.Record) error {
	r.calls = append(r.calls, "process "+string(in.Key))
	return r.count.Process(tx, in)
}

func TestWhatATaskNamesIsReadAhead(t *testing.T) {
	r := &reader{}
	spec := countSpec(nil)
	spec.NewTask = func(*stream.Partition) (stream.Task, error) { return r, nil }
	h := New(t, spec)
	calls := func() []string {
		defer func() { r.calls = nil }()
		return r.calls
	}
	h.Process(rec("a", "1"), rec("b", "2"), rec("a", "3"))
	require.Equal(t, []string{"ahead a", "ahead b", "ahead a", "process a", "process b", "process a"}, calls())
	h.Process(rec("b", "5"))
	require.Equal(t, []string{"ahead b", "process b"}, calls())
	h.Abort(rec("a", "-1"), rec("b", "7"))
	calls()
	h.Redeliver()
	require.Equal(t, []string{"ahead a", "ahead b", "process a", "process b"}, calls())
	require.Nil(t, h.Get("sums", []byte("a")))
	require.Equal(t, "14", string(h.Get("sums", []byte("b"))))
}

// slow finishes units when told.
type slow struct {
	p       *stream.Partition
	flight  map[int64]*stream.Pending
	again   []int64 // given again while in flight
	maybe   map[int64]bool
	results []result
}

type result struct {
	offset int64
	unit   int
}

func (s *slow) Process(tx *stream.Tx, in *kgo.Record) error {
	n, _ := strconv.Atoi(string(in.Value))
	p := tx.Track(n)
	if s.flight[in.Offset] != nil {
		s.again = append(s.again, in.Offset)
	}
	s.flight[in.Offset], s.maybe[in.Offset] = p, p.MaybeStarted()
	return nil
}

func (s *slow) Advance(tx *stream.Tx, _ time.Time) error {
	for _, r := range s.results {
		if p := s.flight[r.offset]; !p.Done(r.unit) {
			tx.Emit("attempts", "ep", rec(strconv.Itoa(int(r.offset)), strconv.Itoa(r.unit)))
			tx.Finish(p, r.unit)
		}
	}
	return nil
}
func (s *slow) Settled(committed bool) {
	if committed {
		s.results = nil
	}
}
func (s *slow) Full() bool            { return false }
func (s *slow) Close()                {}
func (s *slow) Drain(context.Context) {}

func slowSpec(tasks *[]*slow) stream.Spec {
	return stream.Spec{
		Group: "slow", Input: "in", Window: 4,
		NewTask: func(p *stream.Partition) (stream.Task, error) {
			s := &slow{p: p, flight: map[int64]*stream.Pending{}, maybe: map[int64]bool{}}
			*tasks = append(*tasks, s)
			return s, nil
		},
	}
}

func TestUnitsEndOutOfOrderAcrossACrash(t *testing.T) {
	var tasks []*slow
	h := New(t, slowSpec(&tasks))
	h.Process(rec("", "2"), rec("", "1"), rec("", "2"))
	require.EqualValues(t, 0, h.Watermark())
	require.True(t, h.Full())

	tasks[0].results = []result{{2, 1}, {1, 0}, {0, 0}}
	require.Len(t, h.Advance(h.Now), 3)
	require.EqualValues(t, 0, h.Watermark(), "unit 1 of record 0 is not done")

	h.Crash()
	require.Empty(t, h.Redeliver(), "nothing is done again")
	s := tasks[1]
	require.Equal(t, []bool{true, false}, []bool{s.flight[0].Done(0), s.flight[0].Done(1)})
	require.True(t, s.flight[1].Done(0))
	require.Equal(t, []bool{false, true}, []bool{s.flight[2].Done(0), s.flight[2].Done(1)})
	require.True(t, s.maybe[0])

	s.results = []result{{0, 1}, {2, 0}}
	require.Len(t, h.Advance(h.Now), 2)
	require.EqualValues(t, 3, h.Watermark())
}

func TestAnAbortKeepsWhatIsInFlight(t *testing.T) {
	var tasks []*slow
	h := New(t, slowSpec(&tasks))
	h.Abort(rec("", "1"), rec("", "1"))
	s := tasks[0]
	s.results = []result{{1, 0}} // ends while its record waits to be given again
	require.Len(t, h.Advance(h.Now), 1)
	require.EqualValues(t, 0, h.Watermark())
	h.Redeliver()
	require.Equal(t, []int64{0, 1}, s.again)
	require.True(t, s.flight[1].Done(0))
	s.results = []result{{0, 0}}
	h.Advance(h.Now)
	require.EqualValues(t, 2, h.Watermark())
}

func TestACleanStopLeavesNoDoubt(t *testing.T) {
	var tasks []*slow
	h := New(t, slowSpec(&tasks))
	h.Process(rec("", "1"), rec("", "1"))
	h.Stop()
	h.Redeliver()
	require.False(t, tasks[1].maybe[0])
	h.Crash()
	h.Redeliver()
	require.True(t, tasks[2].maybe[0])
}

func TestWaking(t *testing.T) {
	var tasks []*slow
	h := New(t, slowSpec(&tasks))
	p := tasks[0].p
	p.WakeAt(h.Now.Add(time.Minute))
	p.WakeAt(h.Now.Add(time.Hour))
	require.Equal(t, h.Now.Add(time.Minute), h.WakeTime())
	h.Advance(h.Now.Add(time.Minute))
	require.True(t, h.WakeTime().IsZero())
	p.Wake()
	h.WaitWoken()
}
