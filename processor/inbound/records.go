package inbound

import (
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// emit produces a message. It encodes: text from outside was made valid UTF-8 when it was read.
func emit(tx *stream.Tx, topic, routingKey, key string, m proto.Message) {
	value, err := proto.Marshal(m)
	if err != nil {
		panic("BUG: a record does not encode: " + err.Error())
	}
	tx.Emit(topic, routingKey, &kgo.Record{Key: []byte(key), Value: value})
}

// row says what became of an event.
func (t *task) row(tx *stream.Tx, e *event, outcome result, reason string) {
	emit(tx, schemas.InboundRows, routing(e), e.eventID, inboundRow(e, outcome, reason))
}

func inboundRow(e *event, outcome result, reason string) *webhooksv1.InboundRow {
	return &webhooksv1.InboundRow{
		Source:         e.source,
		SourceEventId:  e.id,
		EventId:        e.eventID,
		OrganizationId: e.organization,
		Account:        e.account,
		Type:           e.eventType,
		Outcome:        names[outcome],
		Reason:         reason,
		ReceivedUnixMs: e.acceptedAt.UnixMilli(),
	}
}

// bury puts what cannot be used where it can be looked at and replayed from, once.
func (t *task) bury(tx *stream.Tx, e *event, reason string) result {
	if e.buried {
		return duplicate
	}
	t.log.Warn("inbound record cannot be used", "org", e.organization, "event_id", e.eventID, "source", e.source,
		"type", e.eventType, "reason", reason)
	letter := e.letter
	if letter == nil {
		letter = deadletters.New(schemas.Inbound, e.record, inboundRow(e, dead, reason), tx.Now())
	}
	tx.Emit(schemas.InboundDead, routing(e), deadletters.Record(letter))
	emit(tx, schemas.InboundRows, routing(e), letter.Event.EventId, letter.Event)
	return dead
}

// routing is the key that decides where an event's rows go: the organization, or where it names none the event itself.
func routing(e *event) string {
	if e.organization != "" {
		return e.organization
	}
	return e.eventID
}
