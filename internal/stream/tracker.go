package stream

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// MaxUnits bounds the units of one record. A window of MaxWindow units overshot by one such record still encodes below
// Kafka's 4,096 bytes of metadata: (16384 + 7680) / 8 bytes × 4/3 = 4,011, and 30 for the rest.
const MaxUnits = 7680

// Pending is a record some of whose units are not done.
type Pending struct {
	at    position
	done  []uint64 // a bit a unit
	units int
	left  int // units not done
	maybe bool
}

// Done reports that a unit was finished before, by this owner or an earlier one.
func (p *Pending) Done(unit int) bool { return p.done[unit/64]&(1<<(unit%64)) != 0 }

// MaybeStarted reports that an earlier owner, which did not stop cleanly, may have started the record's work.
func (p *Pending) MaybeStarted() bool { return p.maybe }

// Ended reports that every unit is done: finished before, or with the transaction that is open. Until then, and until
// that transaction has committed, the Pending must be kept: after an abort its record is given again.
func (p *Pending) Ended() bool { return p.left == 0 }

// Offset of the record on the group's input.
func (p *Pending) Offset() int64 { return p.at.offset }

func (p *Pending) set(unit int) bool {
	if p.Done(unit) {
		return false
	}
	p.done[unit/64] |= 1 << (unit % 64)
	p.left--
	return true
}

func (p *Pending) unset(unit int) {
	p.done[unit/64] &^= 1 << (unit % 64)
	p.left++
}

// position is a place on the input: the next record to take, and the leader epoch of the last one taken.
type position struct {
	offset int64
	epoch  int32
}

// tracker knows which records of a partition are done. It stands where the open transaction would leave it; settle
// takes that back after an abort.
type tracker struct {
	window int
	// open are the tracked records from the watermark on, in log order, finished ones between unfinished ones too. The
	// first given of them are processed; the rest were, in a transaction that aborted, and will be given again: what
	// their task has in flight, and what of it has ended since, stays known.
	open  []*Pending
	given int
	// units in the given ones, done or not.
	units int
	// next is the first record not processed; the watermark when nothing is open.
	next position
	// inherited says what earlier owners left beyond the watermark this assignment began at.
	inherited inherited

	current *kgo.Record // being processed
	// Where the open transaction began.
	startNext         position
	startGiven, spent int
}

// inherited maps the metadata of an earlier owner onto the records as they are polled again. Offsets are not dense, so
// units and records are counted, not computed.
type inherited struct {
	done  []byte
	reach int // units that may have been started
	ahead int // records after those that may have been started
	unit  int // units met so far
}

// take gives a record its share: the bits of its units, and whether it may have been started.
func (in *inherited) take(p *Pending) {
	for u := range p.units {
		if i := in.unit + u; i/8 < len(in.done) && in.done[i/8]&(1<<(i%8)) != 0 {
			p.set(u)
		}
	}
	switch {
	case in.unit < in.reach:
		p.maybe = true
	case in.ahead > 0:
		p.maybe = true
		in.ahead--
	}
	in.unit += p.units
}

func newTracker(window int, start position, meta *webhooksv1.CommitMetadata) tracker {
	return tracker{
		window:    window,
		next:      start,
		startNext: start,
		inherited: inherited{done: meta.GetDone(), reach: int(meta.GetReach()), ahead: int(meta.GetAhead())},
	}
}

// restart moves a tracker that has seen nothing. Bits are counted from the committed offset and mean nothing from
// elsewhere; what may have been started is suspected still.
func (t *tracker) restart(offset int64) {
	t.next = position{offset, -1}
	t.startNext = t.next
	t.inherited.done = nil
}

// record makes r the one that track means. Records come in offset order.
func (t *tracker) record(r *kgo.Record) {
	t.current = r
	t.next = position{r.Offset + 1, r.LeaderEpoch}
	t.spent++
}

// skip passes a record that is none of the task's: a transaction's marker.
func (t *tracker) skip(r *kgo.Record) { t.next = position{r.Offset + 1, r.LeaderEpoch} }

// track makes, or finds, the Pending of the current record. It never returns nil.
func (t *tracker) track(units int) (*Pending, error) {
	switch {
	case t.current == nil:
		return newPending(position{}, units), errors.New("Track called outside of Process")
	case t.window == 0:
		return newPending(position{}, units), errors.New("Track called in a group without a Window")
	case units < 1 || units > MaxUnits:
		return newPending(position{}, units), fmt.Errorf("record at offset %d tracked as %d units; 1 to %d are possible",
			t.current.Offset, units, MaxUnits)
	}
	if t.given == len(t.open) {
		p := newPending(position{t.current.Offset, t.current.LeaderEpoch}, units)
		t.inherited.take(p)
		t.open = append(t.open, p)
	}
	p := t.open[t.given]
	if p.at.offset != t.current.Offset || p.units != units {
		return newPending(p.at, units), fmt.Errorf("record at offset %d tracked as %d units, where before the one at %d had %d: "+
			"units must depend on the record only", t.current.Offset, units, p.at.offset, p.units)
	}
	t.given++
	t.units += p.units
	return p, nil
}

// full reports that no more records may be processed before units end.
func (t *tracker) full() bool { return t.window > 0 && t.units >= t.window }

// watermark is the place below which everything is done.
func (t *tracker) watermark() position {
	if p := t.oldest(); p < t.given {
		return t.open[p].at
	}
	return t.next
}

// oldest is the first record that is not known to be done for good, by its place in open.
func (t *tracker) oldest() int {
	for i, p := range t.open[:t.given] {
		if p.left > 0 {
			return i
		}
	}
	return t.given
}

// moved reports that the transaction took records.
func (t *tracker) moved() bool { return t.spent > 0 }

// settle ends the transaction.
func (t *tracker) settle(committed bool, finished []finish) {
	if committed {
		t.commit()
	} else {
		t.abort(finished)
	}
	t.current, t.spent = nil, 0
	t.startNext, t.startGiven = t.next, t.given
}

func (t *tracker) commit() {
	n := t.oldest()
	if n == 0 {
		return
	}
	for _, p := range t.open[:n] {
		t.units -= p.units
	}
	kept := copy(t.open, t.open[n:])
	clear(t.open[kept:])
	t.open = t.open[:kept]
	t.given -= n
}

func (t *tracker) abort(finished []finish) {
	for _, f := range finished {
		f.pending.unset(f.unit)
	}
	for _, p := range t.open[t.startGiven:t.given] {
		t.units -= p.units
	}
	t.next, t.given = t.startNext, t.startGiven
}

// metadata says what is done beyond the watermark and what may have been started. Ahead is how many records may be
// processed before the next commit; clean says that nothing is in flight here and nothing more will be started.
func (t *tracker) metadata(ahead int, clean bool) *webhooksv1.CommitMetadata {
	m := &webhooksv1.CommitMetadata{}
	if t.window == 0 {
		return m
	}
	units, reach := 0, 0
	var bits bitset
	for _, p := range t.open[t.oldest():] {
		for u := range p.units {
			if p.Done(u) {
				bits.set(units + u)
			}
		}
		units += p.units
		if !clean || p.maybe && p.left > 0 {
			reach = units
		}
	}
	// What was inherited and not met yet follows what is known.
	in := &t.inherited
	for i := in.unit; i < 8*len(in.done); i++ {
		if in.done[i/8]&(1<<(i%8)) != 0 {
			bits.set(units + i - in.unit)
		}
	}
	if in.reach > in.unit {
		reach = units + in.reach - in.unit
	}
	if clean {
		ahead = 0
	}
	m.Done, m.Reach, m.Ahead = bits, uint32(reach), uint32(max(ahead, in.ahead))
	return m
}

// bitset ends with its last set bit.
type bitset []byte

func (b *bitset) set(i int) {
	for len(*b) <= i/8 {
		*b = append(*b, 0)
	}
	(*b)[i/8] |= 1 << (i % 8)
}

func newPending(at position, units int) *Pending {
	units = max(units, 0)
	return &Pending{at: at, done: make([]uint64, (units+63)/64), units: units, left: units}
}

// encodeMetadata makes the string that Kafka keeps with an offset.
func encodeMetadata(m *webhooksv1.CommitMetadata) (string, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode commit metadata: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// decodeMetadata tells what a commit left; ours always name their transaction. An offset set by another program, Kafka's
// own tools for one, carries none of it.
func decodeMetadata(s string) (m *webhooksv1.CommitMetadata, ours bool) {
	m = new(webhooksv1.CommitMetadata)
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || proto.Unmarshal(b, m) != nil || m.GetTransaction() == 0 {
		return new(webhooksv1.CommitMetadata), false
	}
	return m, true
}

// foreign stands for the metadata of an offset that is not ours: nothing beyond it is known to be done, and whatever an
// owner could have had in flight there may have been started.
func foreign(window int) *webhooksv1.CommitMetadata {
	m := new(webhooksv1.CommitMetadata)
	if window > 0 {
		m.Reach, m.Ahead = uint32(window), maxAhead
	}
	return m
}
