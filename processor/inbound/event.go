package inbound

import (
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

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
	body         []byte
	headers      []kgo.RecordHeader
}

// read takes what the headers say. A record without a time of acceptance was accepted when it was written.
func read(in *kgo.Record) event {
	e := event{body: in.Value, headers: in.Headers, acceptedAt: in.Timestamp}
	for _, h := range in.Headers {
		switch h.Key {
		case schemas.HeaderSource:
			e.source = text(h.Value)
		case schemas.HeaderID:
			e.id = text(h.Value)
		case schemas.HeaderType:
			e.eventType = text(h.Value)
		case schemas.HeaderEventID:
			e.eventID = text(h.Value)
		case schemas.HeaderAccount:
			e.account = text(h.Value)
		case schemas.HeaderOrganization:
			e.organization = text(h.Value)
		case schemas.HeaderAcceptedAt:
			if at, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				e.acceptedAt = at
			}
		}
	}
	return e
}

// text is a header's value; Protocol Buffers refuse what is not UTF-8.
func text(value []byte) string { return strings.ToValidUTF8(string(value), "\uFFFD") }
