package dispatch

import (
	"container/heap"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/control"
	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// endpoint is what the task of its partition knows of an endpoint that has something to do.
type endpoint struct {
	id  string
	org string // "" until a delivery names it

	// spec is the endpoint as the copy holds it, nil when it does not exist; dest is made from it.
	spec *webhooksv1.Endpoint
	dest *sender.Destination
	// broken: its secrets do not open with our keys. Nothing can be signed, so nothing is sent, and everything waits.
	broken bool
	loaded bool
	count  uint64 // of changes when it was read

	control *control.Endpoint
	streak  control.Streak
	// written is its health as it is written, nil when it is well; ailing, that it may have changed since.
	written *webhooksv1.EndpointHealth
	ailing  bool
	// chains are what is in hand in strict order, by group, and floors the order below which nothing of a group is in the
	// schedule, as far as it is known; pointer picks the group out of an event; successes are those since the last failure.
	chains    map[uint64]*chain
	floors    map[uint64]int64
	pointer   *jsonscan.Scanner
	successes int
	// queue are deliveries in memory that wait for a slot, in order.
	queue []*flight
	// tests wait for a slot too, ahead of the queue.
	tests []*flight
	// pulled is how many deliveries of the schedule, and tests, are in hand; marking, how many of them are not in the queue yet.
	pulled, marking int
	// replays are those that are open, the oldest first. They go one after the other.
	replays []*replaying
	// spare are deliveries of replays in memory that wait for a slot that nothing else wants, in order.
	spare []*flight
	// lifted is how many deliveries of replays are in hand and were not in the schedule yet.
	lifted int
	// head is the earliest due time of what waits in the schedule and is not in hand; zero when nothing does.
	head time.Time
	// used is when it last had something to do.
	used time.Time

	// wake is when the task looks at it again; place is its index in the task's heap, -1 when it is not in it.
	wake  time.Time
	place int
}

// mode is what may be done with an endpoint's deliveries now.
type mode uint8

const (
	sending mode = iota
	paused
	disabled
	deleted
)

// sends reports that deliveries go out, now or once the endpoint is resumed.
func (m mode) sends() bool { return m == sending || m == paused }

func (e *endpoint) mode() mode {
	switch {
	case e.spec == nil:
		return deleted
	case !e.spec.GetEnabled():
		return disabled
	case e.spec.GetPaused() || e.broken:
		return paused
	}
	return sending
}

// off reports that the endpoint takes nothing, now or later: it is disabled or does not exist.
func (e *endpoint) off() bool {
	m := e.mode()
	return m == disabled || m == deleted
}

// enqueue has a flight wait for a slot.
func (e *endpoint) enqueue(f *flight) {
	switch {
	case f.test != nil:
		e.tests = append(e.tests, f)
	case f.taken:
		e.spare = append(e.spare, f)
	default:
		e.queue = append(e.queue, f)
	}
}

// inHand is how many deliveries run, or will without another look at the schedule.
func (e *endpoint) inHand() int { return e.control.Running() + len(e.queue) + e.marking }

// overdue reports that older deliveries wait in the schedule for a slot: newer ones must not overtake them.
func (e *endpoint) overdue(now time.Time) bool { return !e.head.IsZero() && !e.head.After(now) }

// endpoint returns the endpoint of that id, known or not.
func (t *task) endpoint(id, org string, now time.Time) *endpoint {
	e := t.endpoints[id]
	if e == nil {
		e = &endpoint{id: id, place: -1, control: control.New(control.Limits{Concurrency: t.d.cfg.Concurrency}, t.began)}
		t.endpoints[id] = e
	}
	if e.org == "" {
		e.org = org
	}
	e.used = now
	return e
}

// refresh reads the endpoint from the copy if it may have changed since it was read.
func (t *task) refresh(e *endpoint) error {
	count := t.d.changes.count(e.id)
	if e.loaded && e.count == count {
		return nil
	}
	spec, err := readEndpoint(t.d.deps.Endpoints, e.org, e.id)
	if err != nil {
		return err
	}
	e.count, e.loaded = count, true
	if e.spec != nil && spec != nil && e.spec.GetVersion() == spec.GetVersion() {
		return nil
	}
	e.spec, e.dest, e.broken = spec, nil, false
	e.pointer = pointerOf(spec.GetOrdering())
	if e.off() || e.streak.Judged && spec.GetVersion() > e.streak.Version {
		t.forgive(e)
	}
	if spec == nil {
		return nil
	}
	e.control.SetLimits(t.d.limits(spec.GetConcurrency(), spec.RateLimit))
	e.dest, err = sender.NewDestination(spec, t.d.deps.Guard, t.d.deps.Secrets, t.d.cfg.Timeout)
	if err != nil {
		e.broken = true
		t.log.Error("endpoint cannot be signed for, its deliveries wait; check SECRETS_KEY", "org", e.org, "endpoint", e.id, "error", err)
	}
	return nil
}

func readEndpoint(from Endpoints, org, id string) (*webhooksv1.Endpoint, error) {
	value, ok, err := from.Get(schemas.EndpointKey(org, id))
	if err != nil {
		return nil, fmt.Errorf("read endpoint %s: %w", id, err)
	}
	if !ok {
		return nil, nil
	}
	spec := new(webhooksv1.Endpoint)
	if err := proto.Unmarshal(value, spec); err != nil {
		return nil, fmt.Errorf("decode endpoint %s: %w", id, err)
	}
	return spec, nil
}

func readSetVersion(from Endpoints, org string) (uint64, error) {
	value, ok, err := from.Get([]byte(org))
	if err != nil || !ok {
		return 0, err
	}
	var set webhooksv1.EndpointSet
	if err := proto.Unmarshal(value, &set); err != nil {
		return 0, fmt.Errorf("decode endpoint set: %w", err)
	}
	return set.GetVersion(), nil
}

// touch has the task look at the endpoint at that time, or earlier if it is to already.
func (t *task) touch(e *endpoint, at time.Time) {
	switch {
	case e.place < 0:
		e.wake = at
		heap.Push(&t.agenda, e)
	case at.Before(e.wake):
		e.wake = at
		heap.Fix(&t.agenda, e.place)
	}
}

// waits notes that something waits for the endpoint in the schedule.
func (t *task) waits(e *endpoint, due, now time.Time) {
	if e.head.IsZero() || due.Before(e.head) {
		e.head = due
	}
	if due.Before(now) {
		due = now
	}
	t.touch(e, due)
}

// idleEndpoint is how long an endpoint without work is remembered.
const idleEndpoint = 5 * time.Minute

// resting reports that the endpoint has nothing to do.
func (e *endpoint) resting() bool {
	return len(e.queue) == 0 && len(e.chains) == 0 && len(e.replays) == 0 && e.pulled == 0 && e.head.IsZero() && e.place < 0
}

// forgetIdle drops endpoints that have nothing to do and nothing to remember.
func (t *task) forgetIdle(now time.Time) {
	for id, e := range t.endpoints {
		if e.resting() && e.well(now) && now.Sub(e.used) > idleEndpoint {
			delete(t.endpoints, id)
		}
	}
}

// well reports that nothing is or was written of its health, and that control has nothing to remember.
func (e *endpoint) well(now time.Time) bool {
	return e.written == nil && !e.ailing && e.control.Idle(now)
}

// agenda is a heap of endpoints by the time they are to be looked at.
type agenda []*endpoint

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].wake.Before(a[j].wake) }
func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

// Push and Pop are heap.Interface's.
func (a *agenda) Push(x any) {
	e := x.(*endpoint)
	e.place = len(*a)
	*a = append(*a, e)
}

func (a *agenda) Pop() any {
	old := *a
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*a = old[:len(old)-1]
	e.place = -1
	return e
}
