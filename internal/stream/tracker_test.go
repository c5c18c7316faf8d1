package stream

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// world is the model that the tracker is tested against: a log whose offsets have gaps, the units of its records, and
// what has been done, started and committed.
type world struct {
	offsets []int64
	units   []int
	done    map[unitOf]bool // durably
	// started by an owner that did not stop cleanly: who comes next must suspect them.
	started map[unitOf]bool

	watermark int64
	metadata  string
}

type unitOf struct {
	record, unit int
}

func drawWorld(t *rapid.T) *world {
	w := &world{done: map[unitOf]bool{}, started: map[unitOf]bool{}}
	offset := int64(0)
	for range rapid.IntRange(1, 40).Draw(t, "records") {
		offset += rapid.Int64Range(1, 3).Draw(t, "gap")
		w.offsets = append(w.offsets, offset)
		w.units = append(w.units, rapid.IntRange(0, 70).Draw(t, "units")) // 0: done when processed
	}
	return w
}

// owner is one assignment.
type owner struct {
	w    *world
	t    *rapid.T
	tr   tracker
	next int // record
	// pend are the records in flight, by index, as its task keeps them.
	pend map[int]*Pending
	// Of the open transaction:
	finished []finish
	ended    []unitOf
}

func (w *world) assign(t *rapid.T) *owner {
	meta, ours := decodeMetadata(w.metadata)
	require.Equal(t, w.metadata != "", ours)
	o := &owner{w: w, t: t, tr: newTracker(1<<20, position{w.watermark, 0}, meta), pend: map[int]*Pending{}}
	o.next = w.index(w.watermark)
	return o
}

// index is the first record not below an offset.
func (w *world) index(offset int64) int {
	for i, at := range w.offsets {
		if at >= offset {
			return i
		}
	}
	return len(w.offsets)
}

// process takes the next record and starts what is not done.
func (o *owner) process() {
	i := o.next
	o.next++
	o.tr.record(&kgo.Record{Offset: o.w.offsets[i]})
	units := o.w.units[i]
	if units == 0 {
		return
	}
	p, err := o.tr.track(units)
	require.NoError(o.t, err)
	if known := o.pend[i]; known != nil {
		require.Same(o.t, known, p, "a record given again keeps its Pending")
		return
	}
	o.pend[i] = p
	for u := range units {
		at := unitOf{i, u}
		require.Equal(o.t, o.w.done[at], p.Done(u), "record %d unit %d: done before", i, u)
		if !p.Done(u) {
			if o.w.started[at] {
				require.True(o.t, p.MaybeStarted(), "record %d unit %d was started by an earlier owner", i, u)
			}
			o.w.started[at] = true
		}
	}
}

// finish ends some unit that is in flight.
func (o *owner) finish() {
	var open []unitOf
	for i := range o.w.offsets {
		if p := o.pend[i]; p != nil {
			for u := range o.w.units[i] {
				if !p.Done(u) {
					open = append(open, unitOf{i, u})
				}
			}
		}
	}
	if len(open) == 0 {
		return
	}
	at := rapid.SampledFrom(open).Draw(o.t, "ends")
	require.True(o.t, o.pend[at.record].set(at.unit))
	o.finished = append(o.finished, finish{o.pend[at.record], at.unit})
	o.ended = append(o.ended, at)
}

// settle ends the transaction, and checks what would be committed before it does.
func (o *owner) settle(commit, clean bool) {
	if commit {
		watermark := o.tr.watermark().offset
		meta := o.tr.metadata(10, clean)
		meta.Transaction = 1
		metadata, err := encodeMetadata(meta)
		require.NoError(o.t, err)
		o.w.watermark, o.w.metadata = watermark, metadata
		for _, at := range o.ended {
			o.w.done[at] = true
		}
	}
	from := o.tr.startNext.offset
	o.tr.settle(commit, o.finished)
	if !commit {
		o.next = o.w.index(from)
	}
	o.finished, o.ended = nil, nil
	if commit {
		o.requireWatermark()
	}
}

// requireWatermark: everything below is processed and done, and the record at it is not.
func (o *owner) requireWatermark() {
	at := o.w.index(o.w.watermark)
	require.LessOrEqual(o.t, at, o.next)
	for i := range at {
		for u := range o.w.units[i] {
			require.True(o.t, o.w.done[unitOf{i, u}], "record %d unit %d is below the watermark", i, u)
		}
	}
	if at < o.next {
		undone := 0
		for u := range o.w.units[at] {
			if !o.w.done[unitOf{at, u}] {
				undone++
			}
		}
		require.Positive(o.t, undone, "record %d holds the watermark and has nothing left to do", at)
	}
}

func TestWhateverEndsInWhateverOrderIsDoneOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		o := w.assign(t)
		o.settle(true, false) // the claim
		claimed := 0          // records taken since the last commit
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				if o.next < len(w.offsets) && claimed < 10 {
					o.process()
					claimed++
				}
			case 3, 4, 5, 6:
				o.finish()
			case 7:
				o.settle(true, false)
				claimed = 0
			case 8:
				o.settle(false, false)
				claimed = 0
			case 9: // taken over, after a crash or a clean stop
				if rapid.Bool().Draw(t, "clean") {
					for len(o.inFlight()) > 0 && rapid.IntRange(0, 5).Draw(t, "drain") > 0 {
						o.finish()
					}
					clean := len(o.inFlight()) == 0
					o.settle(true, clean)
				}
				o = w.assign(t)
				o.settle(true, false)
				claimed = 0
			}
		}
		for o.next < len(w.offsets) {
			o.process()
		}
		for len(o.inFlight()) > 0 {
			o.finish()
		}
		o.settle(true, true)
		require.Equal(t, len(w.offsets), w.index(w.watermark), "all is done, the watermark is at the end")
		require.Zero(t, o.tr.units)
		meta, _ := decodeMetadata(w.metadata)
		require.Empty(t, meta.Done)
		require.Zero(t, meta.Reach)
	})
}

func (o *owner) inFlight() []unitOf {
	var open []unitOf
	for i, p := range o.pend {
		for u := range o.w.units[i] {
			if !p.Done(u) {
				open = append(open, unitOf{i, u})
			}
		}
	}
	return open
}

func TestMetadataOfTheFullestWindowFitsKafka(t *testing.T) {
	tr := newTracker(MaxWindow, position{0, 0}, nil)
	n := 0
	for offset := int64(0); !tr.full(); offset++ {
		units := 1
		if n == MaxWindow-1 {
			units = MaxUnits
		}
		n += units
		tr.record(&kgo.Record{Offset: offset})
		p, err := tr.track(units)
		require.NoError(t, err)
		for u := range units {
			if offset > 0 {
				p.set(u)
			}
		}
	}
	m := tr.metadata(maxAhead, false)
	m.Transaction = 1<<64 - 1
	metadata, err := encodeMetadata(m)
	require.NoError(t, err)
	require.LessOrEqual(t, len(metadata), 4096, "%d units", n)
	require.Greater(t, len(metadata), 3900)
}

func TestTrackRefusesWhatCouldNotBeFoundAgain(t *testing.T) {
	for name, test := range map[string]struct {
		window, units int
		record        bool
		want          string
	}{
		"outside of Process": {window: 1, units: 1, want: "outside of Process"},
		"without a window":   {units: 1, record: true, want: "without a Window"},
		"no units":           {window: 1, units: 0, record: true, want: "1 to 7680"},
		"too many units":     {window: 1, units: MaxUnits + 1, record: true, want: "1 to 7680"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTracker(test.window, position{}, nil)
			if test.record {
				tr.record(&kgo.Record{})
			}
			p, err := tr.track(test.units)
			require.ErrorContains(t, err, test.want)
			require.NotNil(t, p)
		})
	}
	t.Run("another number of units", func(t *testing.T) {
		tr := newTracker(10, position{}, nil)
		tr.record(&kgo.Record{Offset: 3})
		_, err := tr.track(2)
		require.NoError(t, err)
		tr.settle(false, nil)
		tr.record(&kgo.Record{Offset: 3})
		_, err = tr.track(3)
		require.ErrorContains(t, err, "units must depend on the record only")
	})
}

func TestForeignMetadataMeansNothingIsKnown(t *testing.T) {
	unnamed, err := encodeMetadata(&webhooksv1.CommitMetadata{Done: []byte{5}})
	require.NoError(t, err)
	for _, s := range []string{"", "member-1-abc", "!!", "AAAA", unnamed} {
		m, ours := decodeMetadata(s)
		require.False(t, ours, s)
		require.Empty(t, m.GetDone())
	}
}

func TestAllThatCouldBeInFlightAtAForeignOffsetIsSuspected(t *testing.T) {
	tr := newTracker(100, position{}, foreign(100))
	maybe := 0
	for offset := range int64(1000) {
		tr.record(&kgo.Record{Offset: offset})
		p, err := tr.track(1)
		require.NoError(t, err)
		if p.MaybeStarted() {
			maybe++
		}
	}
	require.Equal(t, 100+maxAhead, maybe)
	require.Zero(t, foreign(0).GetReach())
}

func FuzzDecodeMetadata(f *testing.F) {
	s, err := encodeMetadata(&webhooksv1.CommitMetadata{Done: []byte{5}, Reach: 3, Ahead: 9, Transaction: 77})
	require.NoError(f, err)
	f.Add(s)
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		m, _ := decodeMetadata(s)
		tr := newTracker(100, position{}, m)
		for offset := range int64(20) {
			tr.record(&kgo.Record{Offset: offset})
			if _, err := tr.track(3); err != nil {
				t.Fatal(err)
			}
		}
		_ = fmt.Sprint(tr.metadata(1, false), tr.watermark())
	})
}
