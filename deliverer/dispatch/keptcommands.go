package dispatch

import (
	"slices"
	"time"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/stream"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A command that cannot end with the transaction that takes its record is kept in the schedule: it waits for an attempt
// that runs, for a test's, or until the record has a delivery that ended. Its record is done, so that it holds up nothing
// however long it takes, and whoever owns the partition next goes on with it.
//
// A delivery's commands are attended to in the order they came. An attempt that fails answers all that wait for it; one that
// succeeds, those before a retry that asks for another.
//
// They are in memory, and each is attended to anew whenever its delivery is: one beyond the bounds is refused.
const (
	// maxKeptOfDelivery bounds the commands that wait on a delivery.
	maxKeptOfDelivery = 16
	// maxKept bounds those of a partition.
	maxKept = 1000
)

// keptCommand is a command in hand.
type keptCommand struct {
	at       schedule.Place
	cmd      *webhooksv1.Command
	endpoint string
	// started is of a test: it may be under way.
	started bool
	// since is when this owner first saw it.
	since time.Time
	// during is the number of the delivery's attempt that had begun by then, 0 for none.
	during uint32
	// ended: the open transaction answers it.
	ended bool
}

// crowded reports that the partition keeps no more commands.
func (t *task) crowded() bool { return t.keeps-len(t.ended) >= maxKept }

func tooManyCommands() *httpapi.Problem {
	return httpapi.Unavailable("too_many_commands", "Too many commands wait already. Send it again when they have ended.")
}

// isKept reports that a command is in the schedule, or will be with the open transaction.
func (t *task) isKept(c *keptCommand) bool { return slices.Contains(t.commands[c.at.Delivery], c) }

// keep puts a command that did not end to the schedule.
func (t *task) keep(tx *stream.Tx, c *keptCommand) error {
	t.commands[c.at.Delivery] = append(t.commands[c.at.Delivery], c)
	t.keeps++
	t.brought = append(t.brought, c)
	return t.putCommand(tx, c)
}

func (t *task) putCommand(tx *stream.Tx, c *keptCommand) error {
	return schedule.PutCommand(tx, c.at, &webhooksv1.KeptCommand{Command: c.cmd, Started: c.started})
}

// restoreCommands finds the commands that an earlier owner kept.
func (t *task) restoreCommands(tx *stream.Tx, now time.Time) error {
	return schedule.ScanCommands(tx, func(at schedule.Place, k *webhooksv1.KeptCommand) {
		c := newKept(k.GetCommand(), at.Offset, now)
		c.started = k.GetStarted()
		// One that this version does not know has a place all the same, and is refused.
		c.at = at
		t.commands[at.Delivery] = append(t.commands[at.Delivery], c)
		t.keeps++
		t.ask(at.Delivery)
	})
}

// ask has the commands on a delivery looked at in the next call of Advance.
func (t *task) ask(delivery string) {
	t.asked = append(t.asked, delivery)
	t.part.Wake()
}

// askAgain has them looked at a moment later.
func (t *task) askAgain(delivery string, now time.Time) {
	t.asked = append(t.asked, delivery)
	t.part.WakeAt(now.Add(heldPoll))
}

// attendCommands goes on with the commands that wait for a search, and with those that are asked for.
func (t *task) attendCommands(tx *stream.Tx, now time.Time) error {
	t.takeSearched()
	// Who is next in line may need no search any more: as many are taken as find a place.
	for len(t.searching) < maxSearches && len(t.toSearch.order) > 0 {
		if err := t.attendDeliveries(tx, t.toSearch.take(maxSearches-len(t.searching)), now); err != nil {
			return err
		}
	}
	asked := t.asked
	t.asked = nil
	slices.Sort(asked)
	return t.attendDeliveries(tx, slices.Compact(asked), now)
}

func (t *task) attendDeliveries(tx *stream.Tx, deliveries []string, now time.Time) error {
	for _, delivery := range deliveries {
		for _, c := range t.commands[delivery] {
			if c.ended {
				continue
			}
			done, err := t.attend(tx, c, now)
			if err != nil {
				return err
			}
			if !done {
				break // those after it wait for it
			}
			t.endCommand(tx, c)
		}
	}
	return nil
}

// waitingFor are the commands on a delivery that the open transaction has not ended.
func (t *task) waitingFor(delivery string) (waiting []*keptCommand) {
	for _, c := range t.commands[delivery] {
		if !c.ended {
			waiting = append(waiting, c)
		}
	}
	return waiting
}

// waitingForAttempt are those of them that an attempt of the delivery answers, now that it has ended. The rest, and what else
// stands under its id and is refused, is attended to afterwards.
func (t *task) waitingForAttempt(f *flight) (answered []*keptCommand) {
	for _, c := range t.waitingFor(f.id) {
		if c.cmd.GetTestEndpoint() != nil || !t.concerns(c, f) {
			continue
		}
		if f.result.Success() && c.asksForMore(f) {
			break
		}
		answered = append(answered, c)
	}
	return answered
}

// asksForMore reports that a command is a retry that came when the attempt had begun.
func (c *keptCommand) asksForMore(f *flight) bool {
	return c.cmd.GetRetryDelivery() != nil && c.during == f.number
}

// endCommand lets go of a kept command that was answered.
func (t *task) endCommand(tx *stream.Tx, c *keptCommand) {
	c.ended = true
	t.ended = append(t.ended, c)
	schedule.RemoveCommand(tx, c.at)
}

// settleCommands ends the transaction for the kept commands.
func (t *task) settleCommands(committed bool) {
	gone := t.ended
	if !committed {
		gone = t.brought // they are given again
		for _, c := range t.ended {
			c.ended = false
		}
	}
	t.keeps -= len(gone)
	for _, c := range gone {
		list := slices.DeleteFunc(t.commands[c.at.Delivery], func(other *keptCommand) bool { return other == c })
		if t.commands[c.at.Delivery] = list; len(list) == 0 {
			delete(t.commands, c.at.Delivery)
			delete(t.archived, c.at.Delivery) // nobody looks to it that it stays true
		}
	}
	if committed {
		for _, c := range t.brought {
			if !c.ended {
				t.ask(c.at.Delivery)
			}
		}
	} else {
		for delivery := range t.commands {
			t.ask(delivery)
		}
	}
	clear(t.brought)
	clear(t.ended)
	t.brought, t.ended = t.brought[:0], t.ended[:0]
}

// toCome reports that the delivery may still come in by its own record: it is before the command's on the input.
func (t *task) toCome(c *keptCommand) bool {
	if t.part.Next() <= c.at.Offset {
		return true
	}
	for _, r := range t.held {
		for _, target := range r.deliveries.GetTargets() {
			if target.GetDeliveryId() == c.at.Delivery {
				return true
			}
		}
	}
	return false
}

// maxSearches bounds the deliveries of a partition that are looked for in the record at a time.
const maxSearches = 16

// archivedDelivery is what the record has of a delivery.
type archivedDelivery struct {
	delivery string
	*archive.Delivery
	err error
}

// search looks for a delivery in the record, beside the loop; what is found asks for its commands. A command that is not
// kept yet asks again when it is.
func (t *task) search(c *keptCommand) {
	delivery := c.at.Delivery
	switch {
	case t.searching[delivery] || !t.isKept(c):
		return
	case len(t.searching) >= maxSearches:
		t.toSearch.add(delivery)
		return
	}
	t.searching[delivery] = true
	org := c.cmd.GetOrganizationId()
	t.d.searches.Go(func() {
		d, err := t.d.deps.Archive.Find(t.part.Context(), t.part.ID(), org, delivery)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.searched = append(t.searched, archivedDelivery{delivery, d, err})
		t.part.Wake()
	})
}

// takeSearched takes down what searches have found.
func (t *task) takeSearched() {
	for _, f := range t.searched {
		delete(t.searching, f.delivery)
		if len(t.commands[f.delivery]) > 0 {
			t.archived[f.delivery] = f
			t.ask(f.delivery)
		}
	}
	t.searched = nil
}

// deliveryOf is a delivery's row as it is answered.
func deliveryOf(row *webhooksv1.DeliveryRow) *webhooksv1.CommandOutcome {
	return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Delivery{Delivery: &webhooksv1.Delivery{
		Id: row.GetDeliveryId(), OrganizationId: row.GetOrganizationId(), EndpointId: row.GetEndpointId(), EventId: row.GetEventId(),
		EventType: row.GetEventType(), Status: row.GetStatus(), Reason: row.GetReason(), AttemptCount: row.GetAttemptCount(),
		NextAttemptUnixMs: row.GetNextAttemptUnixMs(), ReplayId: row.GetReplayId(), Test: row.GetTest(),
		CreatedUnixMs: row.GetCreatedUnixMs(), EndedUnixMs: row.GetEndedUnixMs(),
	}}}
}

// answerWaiting answers the commands that waited for an attempt of the delivery, with what came of it.
func (t *task) answerWaiting(tx *stream.Tx, waiting []*keptCommand, row *webhooksv1.DeliveryRow, success bool) error {
	for _, c := range waiting {
		var err error
		if c.cmd.GetCancelDelivery() != nil && success {
			err = t.refuse(tx, c.cmd, hasEnded())
		} else {
			err = t.answer(tx, c.cmd, deliveryOf(row))
		}
		if err != nil {
			return err
		}
		t.endCommand(tx, c)
	}
	return nil
}
