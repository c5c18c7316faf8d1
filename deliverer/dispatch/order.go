package dispatch

import (
	"hash/fnv"
	"math"
	"slices"
	"time"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Strict order. The deliveries of an endpoint that has an `ordering` fall into groups: one for "organization", one for each
// value of a JSON Pointer. Those of a group go one at a time in the order of acceptance, which is that of their records
// on the input, each once the one before it has ended. A delivery's group is fixed when its owner takes it from the
// input: a changed ordering holds for what comes after it, and what is older neither waits for the new nor is waited for.
// A replay is in no group, and neither is what is sent again by command after its end.
//
// No command changes an order. A retry makes the first of a group due; of one behind it, it is the attempt that is made when
// its turn comes. What waited for one that is cancelled may go.
//
// Of a group the first in the schedule is due as any other, or waits for its next attempt; the others wait as ORDERED,
// without a place among what is due, and the transaction that ends one makes the next due. So what is committed always
// says: the first of a group in the schedule is due, unless an older one is on the input, where the next owner finds it.
//
// In hand a group is a chain, and each goes out as soon as all before it have been answered with success, which no crash
// takes back: what has to be sent again for want of a commit was received in order. A failure holds those behind it, and
// they leave hand. A chain is drawn from the schedule as far as the endpoint has answered without a failure between, so
// that few are drawn in vain, and a backlog does not cost a transaction a delivery.

// chain is what is in hand of a group, by order.
type chain struct {
	group uint64
	hand  []*flight
}

// orderGroup is the group of a delivery from the input; ok is false when it is in no order.
func (e *endpoint) orderGroup(f *flight) (group uint64, ok bool) {
	if e.spec == nil || e.spec.Ordering == nil || f.replay != "" {
		return 0, false
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(e.spec.GetOrdering()))
	if e.pointer != nil {
		var found [1]jsonscan.Value
		if e.pointer.Scan(f.event.GetBody(), found[:]) == nil && found[0].Exists() {
			_, _ = h.Write([]byte{0, byte(found[0].Kind)})
			if found[0].Kind == jsonscan.String {
				_, _ = h.Write([]byte(found[0].String()))
			} else {
				_, _ = h.Write(found[0].Raw)
			}
		}
	}
	return h.Sum64(), true
}

// pointerOf is what an ordering picks out of an event; nil where that is nothing.
func pointerOf(ordering string) *jsonscan.Scanner {
	if ordering == "" || ordering == schemas.OrderingOrganization {
		return nil
	}
	s, err := jsonscan.Parse(ordering)
	if err != nil {
		return nil // cannot be: it was checked before it was taken
	}
	return s
}

// join puts a flight into its group's chain.
func (e *endpoint) join(f *flight, group uint64) {
	c := e.chains[group]
	if c == nil {
		c = &chain{group: group}
		if e.chains == nil {
			e.chains = map[uint64]*chain{}
		}
		e.chains[group] = c
	}
	at, _ := slices.BinarySearchFunc(c.hand, f.order, func(other *flight, order int64) int {
		if other.order <= order {
			return -1
		}
		return 1
	})
	c.hand = slices.Insert(c.hand, at, f)
	f.chain = c
}

// leave takes a flight that leaves hand out of its chain.
func (f *flight) leave() {
	c := f.chain
	if c == nil {
		return
	}
	c.hand = slices.DeleteFunc(c.hand, func(other *flight) bool { return other == f })
	if len(c.hand) == 0 && f.ep.chains[c.group] == c {
		delete(f.ep.chains, c.group)
	}
}

// inOrder reports that it is the flight's turn: all before it in its chain have succeeded.
func (f *flight) inOrder() bool {
	if f.chain == nil {
		return true
	}
	if f.blocked {
		return false
	}
	for _, other := range f.chain.hand {
		if other == f {
			return true
		}
		if !other.landed || !other.result.Success() {
			return false
		}
	}
	return true
}

// behind reports that a delivery has to wait for another of its group.
func behind(s *webhooksv1.WaitingState) bool {
	return s.GetReason() == webhooksv1.WaitingReason_WAITING_REASON_ORDERED
}

// older reports whether something of the flight's group that is older waits in the schedule.
func (t *task) older(tx *stream.Tx, f *flight) (bool, error) {
	if floor, known := f.ep.floors[f.chain.group]; known && floor >= f.order {
		return false, nil
	}
	_, first, err := t.firstInOrder(tx, f.ep, f.chain.group)
	return first != nil && first.GetOrder() < f.order, err
}

// empty is the floor of a group of which nothing waits in the schedule.
const empty = math.MaxInt64

// maxFloors bounds the floors that are remembered of an endpoint.
const maxFloors = 1024

// firstInOrder is the first of a group in the schedule, nil when there is none. It begins to look at the group's floor,
// below which there is nothing: what has left a store is passed over one by one until it is compacted.
func (t *task) firstInOrder(tx *stream.Tx, e *endpoint, group uint64) (delivery string, first *webhooksv1.WaitingState, err error) {
	floor := e.floors[group]
	if floor == empty {
		return "", nil, nil
	}
	err = schedule.ScanOrder(tx, e.id, group, floor, func(id string, s *webhooksv1.WaitingState) bool {
		delivery, first = id, s
		return false
	})
	if err != nil {
		return "", nil, err
	}
	if floor = empty; first != nil {
		floor = first.GetOrder()
	}
	if e.floors == nil || len(e.floors) >= maxFloors {
		e.floors = map[uint64]int64{}
	}
	e.floors[group] = floor
	return delivery, first, nil
}

// lowerFloor is told what enters the schedule.
func (f *flight) lowerFloor() {
	if f.chain == nil {
		return
	}
	if floor, known := f.ep.floors[f.chain.group]; known && floor > f.order {
		f.ep.floors[f.chain.group] = f.order
	}
}

// mustWait reports whether a delivery from the input has to go to the schedule because one before it is there, or is on
// its way there.
func (t *task) mustWait(tx *stream.Tx, f *flight) (bool, error) {
	if f.chain == nil {
		return false, nil
	}
	for _, other := range f.chain.hand {
		if other == f {
			break
		}
		if other.blocked {
			return true, nil
		}
	}
	return t.older(tx, f)
}

// reasonInOrder is why a delivery that begins to wait does so, if reason is why it would without order.
func (t *task) reasonInOrder(tx *stream.Tx, f *flight, reason webhooksv1.WaitingReason) (webhooksv1.WaitingReason, error) {
	const ordered = webhooksv1.WaitingReason_WAITING_REASON_ORDERED
	if f.chain == nil {
		return reason, nil
	}
	for _, other := range f.chain.hand {
		if other == f {
			break
		}
		if other.fresh() && !other.handed {
			return ordered, nil
		}
	}
	older, err := t.older(tx, f)
	switch {
	case err != nil:
		return reason, err
	case older:
		return ordered, nil
	case reason == ordered: // the one that it would wait for has just ended
		return webhooksv1.WaitingReason_WAITING_REASON_SATURATED, nil
	}
	return reason, nil
}

// holdBehind keeps from being sent, and in hand for long, what is behind a delivery that goes to the schedule.
func (t *task) holdBehind(f *flight, now time.Time) {
	if f.chain == nil {
		return
	}
	for _, other := range f.chain.hand {
		if other.order > f.order {
			other.blocked = true
		}
	}
	t.touch(f.ep, now)
}

// takeBack puts what is held behind another into the schedule.
func (t *task) takeBack(tx *stream.Tx, e *endpoint, now time.Time) error {
	if len(e.chains) == 0 {
		return nil
	}
	queue := e.queue
	e.queue = nil
	for _, f := range queue {
		var err error
		switch {
		case !f.blocked || f.detached:
			e.queue = append(e.queue, f)
		case f.fresh():
			err = t.spill(tx, f, webhooksv1.WaitingReason_WAITING_REASON_ORDERED, now)
		default:
			err = t.unmark(tx, f, webhooksv1.WaitingReason_WAITING_REASON_UNSPECIFIED)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// advanceOrder makes the delivery after one that ends in this transaction the next: due at once, if it waits; and draws
// more of the chain.
func (t *task) advanceOrder(tx *stream.Tx, f *flight, now time.Time) error {
	if f.chain == nil {
		return nil
	}
	next, state, err := t.firstInOrder(tx, f.ep, f.chain.group)
	if err != nil || state == nil || !behind(state) {
		return err
	}
	for _, other := range f.chain.hand {
		if other.order < state.GetOrder() && other.fresh() && !other.handed {
			return t.draw(tx, f.ep, f.chain, now) // that one is next
		}
	}
	t.census.remove(next, state.GetReason())
	state.Reason, state.DueUnixMs = webhooksv1.WaitingReason_WAITING_REASON_SATURATED, now.UnixMilli()
	t.census.add(next, state.GetReason())
	if err := schedule.Put(tx, next, state, nil); err != nil {
		return err
	}
	switch other := t.flights[next]; {
	case other == nil:
		t.waits(f.ep, now, now)
	case other.handed: // it went to the schedule in this transaction
		other.due = now
	default:
		return t.draw(tx, f.ep, f.chain, now)
	}
	return nil
}

// send is mark of a delivery whose turn it is; what follows it is drawn.
func (t *task) send(tx *stream.Tx, f *flight, s *webhooksv1.WaitingState) error {
	if err := t.mark(tx, f, s); err != nil || f.chain == nil {
		return err
	}
	return t.draw(tx, f.ep, f.chain, tx.Now())
}

// draw takes what follows the last in hand of a chain into hand.
func (t *task) draw(tx *stream.Tx, e *endpoint, c *chain, now time.Time) error {
	last, held := int64(0), 0
	for _, f := range c.hand {
		if f.blocked {
			return nil
		}
		if last = f.order; !f.landed && !f.handed {
			held++
		}
	}
	want := min(min(e.successes, e.control.Ahead())-held, t.d.room.share(e.control, now)-e.inHand())
	if held == 0 || want <= 0 || e.mode() != sending || t.d.room.over() || t.draining.Load() {
		return nil
	}
	var following []dueEntry
	err := schedule.ScanOrder(tx, e.id, c.group, last+1, func(delivery string, s *webhooksv1.WaitingState) bool {
		if !behind(s) || t.flights[delivery] != nil {
			return false
		}
		following = append(following, dueEntry{schedule.Entry{Delivery: delivery}, s})
		return len(following) < want
	})
	if err != nil {
		return err
	}
	for _, entry := range following {
		f, err := t.recall(tx, e, entry)
		if err != nil {
			return err
		}
		f.blocked = false
		if err := t.mark(tx, f, entry.state); err != nil {
			return err
		}
	}
	return nil
}
