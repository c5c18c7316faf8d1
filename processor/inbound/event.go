package inbound

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/schemas"
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
	return e
}
