package inbound

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// event is an inbound record, by its headers.
type event struct {
	source, id, eventType string
	// eventID is ours (evt_…).
	eventID      string
	account      string
	organization string
	acceptedAt   time.Time
	// named is the organization that the event itself names, empty for none.
	named  []byte
	body   []byte
	record *kgo.Record
	// letter is set where the router could not use the event, and hands its letter on. unusable is why it is to be buried
	// whatever it says, "" for nothing.
	letter   *webhooksv1.DeadInbound
	unusable string
	// buried says that it came before and could not be used.
	buried bool
}

// read takes what the headers say. A record without a time of acceptance was accepted when it was written.
func read(in *kgo.Record) event {
	e := event{body: in.Value, record: in, acceptedAt: in.Timestamp}
	for _, h := range in.Headers {
		switch h.Key {
		case schemas.HeaderSource:
			e.source = cloudevent.Text(h.Value)
		case schemas.HeaderID:
			e.id = cloudevent.Text(h.Value)
		case schemas.HeaderType:
			e.eventType = cloudevent.Text(h.Value)
		case schemas.HeaderEventID:
			e.eventID = cloudevent.Text(h.Value)
		case schemas.HeaderAccount:
			e.account = cloudevent.Text(h.Value)
		case schemas.HeaderOrganization:
			e.organization = cloudevent.Text(h.Value)
		case schemas.HeaderNamedOrganization:
			e.named = h.Value
		case schemas.HeaderAcceptedAt:
			e.acceptedAt = cloudevent.Time(h.Value, e.acceptedAt)
		}
	}
	if letter := deadletters.ReadHandedOn(e.source, e.eventType, in.Value); letter != nil {
		return letterOf(letter)
	}
	return e
}

// letterOf is the event of a letter: of no organization.
func letterOf(letter *webhooksv1.DeadInbound) event {
	of := letter.Event
	return event{
		source: of.Source, id: of.SourceEventId, eventType: of.Type, eventID: of.EventId, account: of.Account,
		letter: letter, unusable: of.Reason,
	}
}
