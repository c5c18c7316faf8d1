// Package routing is the task of the group `router`: it finds the organization of events whose account the edge could
// not place, and owns who is connected to which account.
//
// The owner of an account's partition of `inbound.unrouted` keeps three stores. `connections` says which organization
// holds the account, by an API call or learnt from an event's metadata. `unrouted-held` has the account's events that
// came before that was known, in order. `routes` is what edges follow: it is written only after the last held event
// was handed on, so that an edge that writes to the organization's topic directly cannot overtake them.
//
//	no connection             an event of a handled type is held; of another type, recorded as ignored
//	connection, no route      held events are being handed on, or one organization hands the account over to another;
//	                          what comes meanwhile is held behind them, for half a day or so
//	connection and route      what still comes here, from an edge that has not seen the route, is forwarded
//
// Organizations are told, by commands on their own topic and ahead of the events, when an account becomes theirs and
// when it was moved away from them, so that what they know of it moves along; one that was disconnected keeps it until
// another is connected, and then hands it over. A moved account goes live again once it has been handed over: until then the
// organization it was moved to does not know which of its events took effect.
//
// An account that is learnt anew, from a newer event that names another organization, is handed over too, but the first keeps
// what it has, for the account may pay for both. From then on it is shared: events go to the organization that they name,
// those that name nobody to the one that the newest names; all go by the router, and a connection made by API takes the account
// from everybody who keeps something of it. Whoever else is named, by an older event or one that is sent again, is told
// first what is known. Ahead of an event the others hear that it settles an invoice, or whose its subscription is since.
//
// A command with an Idempotency-Key comes from its organization's owner, and what became of it goes back there.
//
// What is handed on has its original id, source, body and headers; ce_retained says that it was held. Duplicates are
// not looked for here: that is the organization's partition's work. Nothing verified is dropped: an event that names no
// account, and so could never be connected, goes to the organization its metadata names. One that cannot be used becomes a dead
// letter; that goes by the partition of the event's id on `inbound`, where it is known whether it came before.
package routing

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Config says what the router must know of the rest.
type Config struct {
	// Handles reports whether a source's event type has an effect. Only such events are held.
	Handles func(source, eventType string) bool
	// Subscription is the id of the subscription that an event is about, and where the event has its place among those of it; ""
	// for an event of none. id is the source's of the event.
	Subscription func(source, eventType, id string, body []byte) (string, *webhooksv1.SubscriptionPosition)
	// Settled is the invoice that an event settles, and when; "" where it settles none.
	Settled func(source, eventType, id string, body []byte) (invoice string, unixMS int64)
}

// Router makes the group's tasks.
type Router struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
}

// New makes a Router.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Router, error) {
	if cfg.Handles == nil || cfg.Subscription == nil || cfg.Settled == nil {
		return nil, fmt.Errorf("router: Handles, Subscription and Settled are required")
	}
	return &Router{cfg: cfg, log: log, metrics: newMetrics(reg)}, nil
}

// Spec is what the stream runtime runs.
func (r *Router) Spec() stream.Spec {
	return stream.Spec{
		Group: schemas.GroupRouter,
		Input: schemas.InboundUnrouted,
		Stores: []stream.StoreSpec{
			{Topic: schemas.Connections}, {Topic: schemas.Routes}, {Topic: schemas.UnroutedHeld},
		},
		NewTask: func(p *stream.Partition) (stream.Task, error) { return newTask(r, p) },
	}
}

// task is the owner of one partition's accounts.
type task struct {
	*Router
	partition *stream.Partition
	// handingOn are the accounts that are connected and still have held events to be handed on, with the order of what began
	// that: a copy of the markers in the store.
	handingOn map[string]int64
	// closed are those that wait to be handed over, shown how many of them the metric has.
	closed closed
	shown  int
	// spent is what the present call has handed on.
	spent budget
	// counts are the results of the open transaction, which become metrics once it is committed.
	counts [results]int
	// overdue are the hand-overs that the open transaction has given up.
	overdue []givenUp
}

func newTask(r *Router, p *stream.Partition) (*task, error) {
	t := &task{Router: r, partition: p}
	if err := t.recall(); err != nil {
		return nil, err
	}
	if len(t.handingOn)+len(t.closed.since) > 0 {
		p.Wake()
	}
	t.show(len(t.closed.since))
	return t, nil
}

// recall reads whose held events are being handed on, and which accounts wait to be handed over, from what is committed.
func (t *task) recall() error {
	t.handingOn = map[string]int64{}
	err := t.partition.ReadScan(schemas.UnroutedHeld, []byte(handingOnPrefix), nil, func(key, value []byte) bool {
		order, _ := strconv.ParseInt(string(value), 10, 64) // none in the markers of before
		t.handingOn[string(key[len(handingOnPrefix):])] = order
		return true
	})
	if err != nil {
		return fmt.Errorf("find the accounts whose held events are being handed on: %w", err)
	}
	err = t.closed.recall(func(fn func(key, value []byte) bool) error {
		return t.partition.ReadScan(schemas.UnroutedHeld, []byte(holdersPrefix), nil, fn)
	})
	if err != nil {
		return fmt.Errorf("find the accounts that are being handed over: %w", err)
	}
	return nil
}

// show makes the metric say that so many of the partition's accounts wait to be handed over.
func (t *task) show(n int) {
	t.metrics.handingOver.Add(float64(n - t.shown))
	t.shown = n
}

// Process implements stream.Task.
func (t *task) Process(tx *stream.Tx, in *kgo.Record) error {
	t.spent = budget{}
	u := unit{task: t, tx: tx, order: in.Offset + 1}
	e := readEvent(in)
	if cloudevent.IsCommand(e.source, e.eventType) {
		return u.command(in, &e)
	}
	return u.event(in, &e)
}

// Advance implements stream.Task: it has the hand-overs given up that are overdue, and goes on handing on what is held.
func (t *task) Advance(tx *stream.Tx, now time.Time) error {
	t.spent = budget{}
	u := unit{task: t, tx: tx}
	if err := u.giveUp(now); err != nil {
		return err
	}
	for account, order := range t.handingOn {
		if t.spent.used() {
			return nil
		}
		u.order = order
		if err := u.goOn(account); err != nil {
			return err
		}
	}
	return nil
}

// Settled implements stream.Task.
func (t *task) Settled(committed bool) {
	if committed {
		t.metrics.add(&t.counts)
		t.tellOverdue()
		t.show(len(t.closed.since))
	}
	more := t.spent.givenUp >= maxGivenUp
	t.spent, t.counts, t.overdue = budget{}, [results]int{}, nil
	if !committed {
		if err := t.recall(); err != nil {
			// A store that cannot be read ends the session at the next call; the next owner reads its markers anew.
			t.log.Error("router could not read its markers after an abort", "partition", t.partition.ID(), "error", err)
		}
	}
	if len(t.handingOn) > 0 || more || !committed && len(t.closed.since) > 0 {
		t.partition.Wake()
	}
}

// Full implements stream.Task.
func (t *task) Full() bool { return false }

// Close implements stream.Task: nothing runs beside the calls.
func (t *task) Close() { t.show(0) }

// Drain implements stream.Task: nothing is in flight between calls.
func (t *task) Drain(context.Context) {}
