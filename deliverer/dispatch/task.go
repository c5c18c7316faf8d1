package dispatch

import (
	"container/heap"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// task is the logic of one partition.
type task struct {
	d    *Dispatcher
	part *stream.Partition
	log  *slog.Logger

	draining atomic.Bool
	// breakers, oldest and overdue (due, Unix ms) are for the metrics.
	breakers, oldest, overdue atomic.Int64
	// replays counts them by status, as replayStatuses.
	replays [len(replayStatuses)]atomic.Int64

	// mu is held during the runtime's calls, and by attempts as they end; not while a transaction is committed, so that
	// endpoints go on meanwhile. It guards all below.
	mu sync.Mutex

	endpoints map[string]*endpoint
	agenda    agenda
	// flights is what is in hand, by delivery.
	flights map[string]*flight
	// fresh counts those of them that hold their record on the input.
	fresh int
	// held are records whose endpoints the copy has not seen yet.
	held []*heldRecord
	// open are the records from the watermark on, and units what they have together; asideAt is when to look for what
	// holds them up.
	open    []openRecord
	units   int
	asideAt time.Time
	// results are attempts that have ended and are not durable yet.
	results []*flight
	// knowsWaiting: the endpoints with waiting deliveries are known.
	knowsWaiting bool
	swept        time.Time
	census       census
	// began is the time of the first call; ailing are the endpoints whose health may have changed since it was written.
	began  time.Time
	ailing []*endpoint

	// Of the open transaction, which seq numbers, to be settled.
	seq    uint64
	now    time.Time
	taken  []*flight // fresh ones in hand since it began
	marked []*flight // pulled, to be sent once it is durable that they may have been
	handed []*flight // ended or put to the schedule by it
	aside  []aside   // moved from the input to the schedule by it, while they run
	// ailments are what it writes of endpoints' health.
	ailments []ailment
	// answered are commands, to be counted.
	answered []answered

	// commands are those that are kept, by delivery, and keeps their number; asked, the deliveries whose commands are to be
	// looked at.
	commands map[string][]*keptCommand
	keeps    int
	asked    []string
	// searching are the deliveries that are looked for in the record, toSearch those that have to wait for that; searched is what
	// came of it, and archived what of that is to be used.
	searching map[string]bool
	toSearch  *line
	searched  []archivedDelivery
	archived  map[string]archivedDelivery
	// Of the open transaction: commands that it brought, and ended.
	brought, ended []*keptCommand
	lifted         []*flight    // taken by replays, to be sent once that is durable
	behind         []*replaying // changed and not written
	told           []func()     // what the log and the metrics say of replays once it is durable

	changed []string // endpoints, since the last Advance
	flying  int      // attempts begun and not ended
	quiet   chan struct{}
}

func newTask(d *Dispatcher, p *stream.Partition) *task {
	return &task{
		d: d, part: p, log: d.deps.Log.With("partition", p.ID()),
		endpoints: map[string]*endpoint{}, flights: map[string]*flight{},
		commands: map[string][]*keptCommand{}, searching: map[string]bool{}, toSearch: newLine(), archived: map[string]archivedDelivery{},
	}
}

// begin recalls, at the first call, what the last owner left beside the schedule.
func (t *task) begin(tx *stream.Tx, now time.Time) error {
	if !t.began.IsZero() {
		return nil
	}
	t.began = now
	if err := t.restoreHealth(tx, now); err != nil {
		return err
	}
	return t.restoreCommands(tx, now)
}

// Process takes the deliveries of one event, or a command.
func (t *task) Process(tx *stream.Tx, in *kgo.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(tx, tx.Now()); err != nil {
		return err
	}
	if cloudevent.IsCommandRecord(in) {
		return t.command(tx, in)
	}
	deliveries := new(webhooksv1.Deliveries)
	if err := proto.Unmarshal(in.Value, deliveries); err != nil {
		// Tracked, so that a new owner who is given it again keeps no second dead letter.
		p := tx.Track(1)
		t.opened(p, 1)
		if !p.Done(0) {
			t.emitUnreadable(tx, in, err)
			tx.Finish(p, 0)
		}
		return nil
	}
	if len(deliveries.GetTargets()) == 0 {
		return nil
	}
	if deliveries.CreatedUnixMs == 0 {
		deliveries.CreatedUnixMs = in.Timestamp.UnixMilli()
	}
	t.now = tx.Now()
	r := &heldRecord{
		deliveries: deliveries,
		pending:    tx.Track(len(deliveries.GetTargets())),
		offset:     in.Offset,
		load:       t.newLoad(len(in.Value)),
		seq:        t.seq,
	}
	t.opened(r.pending, len(deliveries.GetTargets()))
	known, err := t.known(r)
	switch {
	case err != nil:
		t.drop(r.load)
		return err
	case !known || t.draining.Load() || t.holds(r):
		t.held = append(t.held, r)
		t.part.WakeAt(t.now.Add(heldPoll))
		return nil
	}
	return t.admit(tx, r, t.now)
}

// Advance brings in what has happened.
func (t *task) Advance(tx *stream.Tx, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = now
	if err := t.begin(tx, now); err != nil {
		return err
	}
	if !t.knowsWaiting {
		if err := t.findWaiting(tx, now); err != nil {
			return err
		}
	}
	t.takeChanges(now)
	if err := t.handOver(tx); err != nil {
		return err
	}
	if t.draining.Load() {
		if err := t.putBack(tx); err != nil {
			return err
		}
		if err := t.writeHealth(tx); err != nil {
			return err
		}
		return t.writeReplays(tx, now)
	}
	if err := t.admitHeld(tx, now); err != nil {
		return err
	}
	if err := t.attendCommands(tx, now); err != nil {
		return err
	}
	if err := t.stepAside(tx, now); err != nil {
		return err
	}
	if err := t.visitDue(tx, now); err != nil {
		return err
	}
	if err := t.writeHealth(tx); err != nil {
		return err
	}
	if err := t.writeReplays(tx, now); err != nil {
		return err
	}
	t.sweep(now)
	more, err := t.census.step(tx)
	if more {
		t.part.Wake()
	}
	return err
}

// sweepEvery is how often all endpoints in memory are walked over: for the metrics, and for those that can go.
const sweepEvery = 2 * time.Second

func (t *task) sweep(now time.Time) {
	if now.Sub(t.swept) >= sweepEvery {
		t.swept = now
		t.forgetIdle(now)
		t.observe()
	}
	// What is shown as wrong must not stay so when nothing more happens here.
	if t.oldest.Load() != 0 || t.breakers.Load() != 0 {
		t.part.WakeAt(t.swept.Add(sweepEvery))
	}
}

// visitsPerAdvance bounds the endpoints looked at in one call, so that thousands that become due together are spread
// over transactions.
const visitsPerAdvance = 500

// visitDue looks after the endpoints whose time has come.
func (t *task) visitDue(tx *stream.Tx, now time.Time) error {
	for range visitsPerAdvance {
		if len(t.agenda) == 0 || t.agenda[0].wake.After(now) {
			break
		}
		e := heap.Pop(&t.agenda).(*endpoint)
		if err := t.visit(tx, e, now); err != nil {
			return err
		}
	}
	if len(t.agenda) > 0 {
		t.part.WakeAt(t.agenda[0].wake)
	}
	return nil
}

func (t *task) endpointChanged(endpoint string) {
	t.mu.Lock()
	t.changed = append(t.changed, endpoint)
	t.mu.Unlock()
	t.part.Wake()
}

// takeChanges has the endpoints that changed looked at.
func (t *task) takeChanges(now time.Time) {
	for _, id := range t.changed {
		if e := t.endpoints[id]; e != nil {
			t.touch(e, now)
		}
	}
	t.changed = t.changed[:0]
}

// Settled ends the transaction for what is in memory.
func (t *task) Settled(committed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if committed {
		t.committed(t.now)
	} else {
		t.aborted()
	}
	t.settleCommands(committed)
	t.closeRecords(committed)
	t.census.settle(committed)
	t.settleHealth(committed)
	t.seq++
	clear(t.taken)
	clear(t.marked)
	clear(t.handed)
	clear(t.aside)
	clear(t.answered)
	clear(t.lifted)
	clear(t.told)
	t.lifted, t.told = t.lifted[:0], t.told[:0]
	t.taken, t.marked, t.handed, t.aside, t.answered = t.taken[:0], t.marked[:0], t.handed[:0], t.aside[:0], t.answered[:0]
	if len(t.agenda) > 0 {
		t.part.WakeAt(t.agenda[0].wake)
	}
}

func (t *task) committed(now time.Time) {
	t.reportAnswers()
	for _, f := range t.handed {
		t.report(f)
		t.release(f)
		t.touch(f.ep, now)
		if r := f.ep.replay(f.replay); f.taken && !f.landed && r != nil {
			r.left = true
		}
		if !f.due.IsZero() {
			t.waits(f.ep, f.due, now)
		}
	}
	for _, f := range t.marked {
		f.ready = now
		f.ep.marking--
		f.ep.enqueue(f)
		t.touch(f.ep, now)
	}
	for _, f := range t.lifted {
		f.ready = now
		f.ep.spare = append(f.ep.spare, f)
		t.touch(f.ep, now)
	}
	for _, tell := range t.told {
		tell()
	}
}

// aborted takes back what the transaction did. What is in hand goes on; what waits is found again from the store.
// Records that came in with it are given again; those from before are not, and go back to where they were.
func (t *task) aborted() {
	t.backFromAside()
	for _, f := range t.marked {
		f.ep.marking--
		if f.test != nil {
			f.test.started = false
		}
		t.holdBehind(f, t.now)
		t.release(f)
	}
	for _, f := range t.lifted {
		t.release(f)
	}
	t.behind = nil
	for _, f := range t.handed {
		f.handed = false
		switch {
		case t.flights[f.id] != f, !f.fresh() && !f.landed && f.test == nil && f.seq == t.seq:
			t.holdBehind(f, t.now)
			t.release(f) // pulled to be ended, and never meant to be sent
		case f.landed:
			t.results = append(t.results, f)
		default:
			f.due = time.Time{}
			f.blocked = f.chain != nil // it is decided anew whether it is its turn
			f.ep.enqueue(f)
			t.touch(f.ep, t.now)
		}
	}
	for _, f := range t.taken {
		if f.seq == t.seq {
			f.detached = true
			t.unload(f) // its record must not be kept from coming by the memory it holds
		}
	}
	t.held = slices.DeleteFunc(t.held, func(r *heldRecord) bool {
		if r.seq == t.seq {
			t.drop(r.load)
		}
		return r.seq == t.seq
	})
	for _, e := range t.endpoints {
		e.head, e.floors = time.Time{}, nil
	}
	t.knowsWaiting = false
	t.part.Wake()
}

// Full reports that records must wait: the pool has none free, memory is used up, or the copy of endpoints is behind.
func (t *task) Full() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.held) > maxHeld || t.d.pool.full(t, t.d.room.over)
}

// maxHeld bounds the records that wait for the copy of endpoints.
const maxHeld = 1000

// Drain lets what runs end. What has not begun is left to the next owner.
func (t *task) Drain(ctx context.Context) {
	t.draining.Store(true)
	t.await(ctx)
}

// Close gives the partition up. Attempts that still run end by themselves and are forgotten: the next owner sends their
// numbers again, and says so.
func (t *task) Close() {
	t.draining.Store(true)
	t.d.forget(t)
	t.d.pool.forget(t)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.flights {
		t.unload(f)
	}
	for _, r := range t.held {
		t.drop(r.load)
	}
	t.held = nil
	for _, e := range t.endpoints {
		for _, r := range e.replays {
			t.dropPage(r)
		}
	}
}

var _ stream.Task = (*task)(nil)
var _ schedule.Tx = (*stream.Tx)(nil)
