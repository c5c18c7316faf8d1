package inbound

import (
	"fmt"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/idempotency"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Commands with an Idempotency-Key come here first, whoever carries them out: the key is the organization's. One that
// changes an endpoint is applied and remembered in one transaction. One that another owner carries out, an account's or an
// endpoint's, is reserved and handed on, and the conclusion comes back as a command. Only then is it answered, and from here:
// who has an answer and sends the request again must find it remembered.

// recall answers a command whose key is known, and says so.
func (t *task) recall(tx *stream.Tx, cmd *webhooksv1.Command) (what result, known bool, err error) {
	verdict, outcome, err := idempotency.Recall(idempotencyState{tx}, cmd, tx.Now())
	if err != nil || verdict == idempotency.New {
		return 0, false, err
	}
	if outcome != nil {
		emit(tx, schemas.CommandOutcomes, cmd.OrganizationId, cmd.Id, outcome)
	}
	if verdict == idempotency.Given {
		return duplicate, true, nil
	}
	t.tally.idempotent[verdict]++
	if verdict == idempotency.Replayed {
		return duplicate, true, nil
	}
	return refused, true, nil
}

// otherOwner is who carries a command out that the organization's owner does not.
type otherOwner struct{ topic, routingKey string }

// ownerOf finds the owner of what a command is about; ok is false where it is the organization's.
func ownerOf(cmd *webhooksv1.Command) (to otherOwner, ok bool) {
	switch action := cmd.Action.(type) {
	case *webhooksv1.Command_CreateConnection:
		wanted := action.CreateConnection.GetConnection()
		return otherOwner{schemas.InboundUnrouted, schemas.AccountKey(wanted.GetSource(), wanted.GetAccount())}, true
	case *webhooksv1.Command_RetryDelivery:
		return otherOwner{schemas.Deliveries, action.RetryDelivery.GetEndpointId()}, true
	case *webhooksv1.Command_TestEndpoint:
		return otherOwner{schemas.Deliveries, action.TestEndpoint.GetEndpointId()}, true
	case *webhooksv1.Command_CancelDelivery:
		return otherOwner{schemas.Deliveries, action.CancelDelivery.GetEndpointId()}, true
	case *webhooksv1.Command_StartReplay:
		return otherOwner{schemas.Deliveries, action.StartReplay.GetReplay().GetEndpointId()}, true
	case *webhooksv1.Command_ChangeReplay:
		return otherOwner{schemas.Deliveries, action.ChangeReplay.GetEndpointId()}, true
	}
	return otherOwner{}, false
}

// passOn reserves the key of a command and hands it to another owner.
func (t *task) passOn(tx *stream.Tx, cmd *webhooksv1.Command, to otherOwner) (result, error) {
	if err := idempotency.Reserve(idempotencyState{tx}, cmd, tx.Now()); err != nil {
		return 0, err
	}
	r, err := cloudevent.Command(cmd)
	if err != nil {
		return 0, err
	}
	tx.Emit(to.topic, to.routingKey, r)
	return forwarded, nil
}

// conclude takes down what came of a command that was handed on, and answers it.
func (t *task) conclude(tx *stream.Tx, e *event, cmd *webhooksv1.Command, c *webhooksv1.ConcludeCommand) (result, error) {
	if c.GetOutcome().GetCommandId() == "" {
		return t.bury(tx, e, reasonCommand), nil
	}
	if err := idempotency.Conclude(idempotencyState{tx}, cmd.OrganizationId, c.KeyHash, c.Outcome, tx.Now()); err != nil {
		return 0, fmt.Errorf("conclude command %s: %w", c.Outcome.CommandId, err)
	}
	emit(tx, schemas.CommandOutcomes, cmd.OrganizationId, c.Outcome.CommandId, c.Outcome)
	if c.Outcome.GetRefusal() != nil {
		return refused, nil
	}
	return processed, nil
}

// idempotencyState is the store `idempotency` as package idempotency sees it.
type idempotencyState struct{ tx *stream.Tx }

func (s idempotencyState) Get(key []byte) ([]byte, bool, error) {
	return s.tx.Get(schemas.Idempotency, key)
}
func (s idempotencyState) Put(key, value []byte) { s.tx.Put(schemas.Idempotency, key, value) }
func (s idempotencyState) Delete(key []byte)     { s.tx.Delete(schemas.Idempotency, key) }
