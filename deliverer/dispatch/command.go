package dispatch

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// command takes a command on the deliveries of an endpoint. Its record is done with the transaction that takes it, whatever
// it asks for: none holds up the partition.
func (t *task) command(tx *stream.Tx, in *kgo.Record) error {
	// Tracked, so that a new owner who is given it again does not carry it out twice.
	p := tx.Track(1)
	t.opened(p, 1)
	if p.Done(0) {
		return nil
	}
	tx.Finish(p, 0)
	cmd := new(webhooksv1.Command)
	if err := readCommand(in.Value, cmd); err != nil {
		t.emitUnreadable(tx, in, err)
		return nil
	}
	t.now = tx.Now()
	switch cmd.GetAction().(type) {
	case *webhooksv1.Command_StartReplay:
		return t.startReplay(tx, cmd)
	case *webhooksv1.Command_ChangeReplay:
		return t.changeReplay(tx, cmd)
	}
	c := newKept(cmd, in.Offset, t.now)
	if f := t.flights[c.at.Delivery]; f != nil && (f.running || f.landed) {
		c.during = f.number
	}
	// Behind one that waits it is not attended to before.
	before := len(t.waitingFor(c.at.Delivery))
	if before == 0 {
		if done, err := t.attend(tx, c, t.now); done || err != nil {
			return err
		}
	}
	if before >= maxKeptOfDelivery || t.crowded() {
		return t.refuse(tx, cmd, tooManyCommands())
	}
	return t.keep(tx, c)
}

func newKept(cmd *webhooksv1.Command, offset int64, now time.Time) *keptCommand {
	c := &keptCommand{cmd: cmd, at: schedule.Place{Offset: offset}, since: now}
	switch action := cmd.GetAction().(type) {
	case *webhooksv1.Command_RetryDelivery:
		c.at.Delivery, c.endpoint = action.RetryDelivery.GetDeliveryId(), action.RetryDelivery.GetEndpointId()
	case *webhooksv1.Command_TestEndpoint:
		c.at.Delivery, c.endpoint = action.TestEndpoint.GetDeliveryId(), action.TestEndpoint.GetEndpointId()
	case *webhooksv1.Command_CancelDelivery:
		c.at.Delivery, c.endpoint = action.CancelDelivery.GetDeliveryId(), action.CancelDelivery.GetEndpointId()
	}
	return c
}

func readCommand(value []byte, cmd *webhooksv1.Command) error {
	err := proto.Unmarshal(value, cmd)
	switch {
	case err != nil:
		return fmt.Errorf("decode command: %w", err)
	case cmd.GetId() == "":
		return errors.New("a command without an id")
	case !id.ValidOrg(cmd.GetOrganizationId()):
		return errors.New("a command without an organization")
	}
	return nil
}

// attend does what a command asks for and answers it, or says that it has to wait.
func (t *task) attend(tx *stream.Tx, c *keptCommand, now time.Time) (done bool, err error) {
	if commandName(c.cmd) == unknownCommand {
		return true, t.refuse(tx, c.cmd, httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "This version does not know the command."))
	}
	if !id.Valid(id.Delivery, c.at.Delivery) || !id.Valid(id.Endpoint, c.endpoint) || t.part.PartitionOf(c.endpoint) != t.part.ID() {
		return true, t.refuse(tx, c.cmd, httpapi.NewProblem(http.StatusBadRequest, "malformed_command", "The command names no delivery of this owner's."))
	}
	switch c.cmd.GetAction().(type) {
	case *webhooksv1.Command_RetryDelivery:
		return t.retry(tx, c, now)
	case *webhooksv1.Command_CancelDelivery:
		return t.cancel(tx, c, now)
	}
	return t.test(tx, c, now)
}

func (t *task) refuse(tx *stream.Tx, cmd *webhooksv1.Command, problem *httpapi.Problem) error {
	return t.answer(tx, cmd, &webhooksv1.CommandOutcome{
		Result: &webhooksv1.CommandOutcome_Refusal{Refusal: resource.Refusal(problem)},
	})
}

// answer writes what came of a command. One with an Idempotency-Key came from its organization's owner, who remembers
// and answers it.
func (t *task) answer(tx *stream.Tx, cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome) error {
	outcome.CommandId = cmd.GetId()
	t.answered = append(t.answered, answered{cmd, outcome})
	org := cmd.GetOrganizationId()
	if cmd.GetIdempotencyKey() != nil {
		r, err := cloudevent.Conclusion(cmd, outcome, tx.Now())
		if err != nil {
			return err
		}
		tx.Emit(schemas.Inbound, org, r)
		return nil
	}
	value, err := proto.Marshal(outcome)
	if err != nil {
		return fmt.Errorf("encode outcome of command %s: %w", cmd.GetId(), err)
	}
	tx.Emit(schemas.CommandOutcomes, org, &kgo.Record{Key: []byte(cmd.GetId()), Value: value})
	return nil
}

// answered is a command that the open transaction answers.
type answered struct {
	cmd     *webhooksv1.Command
	outcome *webhooksv1.CommandOutcome
}

// reportAnswers counts and logs what a durable transaction said of commands.
func (t *task) reportAnswers() {
	for _, a := range t.answered {
		result := "done"
		refusal := a.outcome.GetRefusal()
		if refusal != nil {
			result = "refused"
		}
		name, c := commandName(a.cmd), newKept(a.cmd, 0, time.Time{})
		t.d.metrics.commands.WithLabelValues(name, result).Inc()
		t.log.Info("command answered", "org", a.cmd.GetOrganizationId(), "endpoint", c.endpoint, "delivery_id", c.at.Delivery,
			"command", a.cmd.GetId(), "action", name, "result", result, "code", refusal.GetCode())
	}
}

// commandNames are the labels of commands.
var commandNames = []string{"retry", "test", "cancel", "start_replay", "change_replay", unknownCommand}

const unknownCommand = "unknown"

func commandName(cmd *webhooksv1.Command) string {
	switch cmd.GetAction().(type) {
	case *webhooksv1.Command_RetryDelivery:
		return "retry"
	case *webhooksv1.Command_TestEndpoint:
		return "test"
	case *webhooksv1.Command_CancelDelivery:
		return "cancel"
	case *webhooksv1.Command_StartReplay:
		return "start_replay"
	case *webhooksv1.Command_ChangeReplay:
		return "change_replay"
	}
	return unknownCommand
}
