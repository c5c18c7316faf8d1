package dispatch

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/betterdata/webhooks/deliverer/control"
)

// bounds are of what the tasks of a process have in hand together.
type bounds struct {
	// attempts run at once; what is launched beyond waits for a goroutine.
	attempts int
	// bytes of records and payloads held for deliveries in hand.
	bytes int64
}

// defaultBounds: an event of 2 KiB for one endpoint each fills the bytes with 131,072 deliveries, sixteen full windows;
// events of 256 KiB, with 1,024, where one window alone would take 2 GiB. A record is counted once however many of its
// deliveries are in hand, and until the last of them has left. The bounds are passed only by what one call brings in:
// a record (4 MiB at most), or one visit's pull for an endpoint that answers soon.
var defaultBounds = bounds{attempts: 4096, bytes: 256 << 20}

// room is what is left of the bounds, and who may take it.
//
// Slots and bytes go to whoever asks until 6/8 of either are taken. From there on an endpoint that has not shown that it
// answers soon (control.Endpoint.Quick) has at most one delivery in hand, and from 7/8 on it begins none; what it cannot
// take waits in the schedule as saturated, and it is asked again every crowdPoll. So endpoints that hang, however many,
// hold 3,584 of the 4,096 slots at most and the other 512 turn over at least once a second for those that answer; one that
// nobody knows yet has the places between 3,072 and 3,584 to show itself. Were all endpoints to hang that answered a
// second ago, the pool could still be full once, until they time out.
//
// While all are quick nothing is spilled: jobs queue, and tasks say Full.
type room struct {
	bounds
	// begun counts the attempts begun and not ended, those that wait for a goroutine included.
	begun atomic.Int64
	held  atomic.Int64 // bytes
}

const (
	eighths  = 8
	crowded  = 6
	reserved = 7
	// crowdPoll is how often an endpoint that found no room is looked at again.
	crowdPoll = 200 * time.Millisecond
)

// share is how many deliveries an endpoint may have in hand now, as far as the others are concerned.
func (r *room) share(e *control.Endpoint, now time.Time) int {
	taken := r.taken()
	switch {
	case taken < crowded || e.Quick(now):
		return math.MaxInt
	case taken < reserved:
		return 1
	}
	return 0
}

// spare reports that nothing else is short of room.
func (r *room) spare() bool { return r.taken() < crowded }

// taken is how much of the bounds is, in eighths.
func (r *room) taken() int64 {
	return max(r.begun.Load()*eighths/int64(r.attempts), r.held.Load()*eighths/r.bytes)
}

// over reports that the bytes are used up.
func (r *room) over() bool { return r.held.Load() >= r.bounds.bytes }

// load is the memory of a record or a payload, shared by the flights made of it. It belongs to one task.
type load struct {
	bytes   int64
	holders int
}

// newLoad counts bytes, with one holder.
func (t *task) newLoad(bytes int) *load {
	t.d.room.held.Add(int64(bytes))
	return &load{bytes: int64(bytes), holders: 1}
}

func (l *load) share() *load {
	l.holders++
	return l
}

// drop gives up one holder's part.
func (t *task) drop(l *load) {
	if l == nil {
		return
	}
	if l.holders--; l.holders > 0 {
		return
	}
	r := &t.d.room
	if left := r.held.Add(-l.bytes); left < r.bounds.bytes && left+l.bytes >= r.bounds.bytes {
		t.d.pool.roomAgain()
	}
}

func (t *task) unload(f *flight) {
	t.drop(f.load)
	f.load = nil
}
