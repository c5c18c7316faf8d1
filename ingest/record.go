package ingest

import (
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
)

// eventID is our id of a source's event: the same whenever it is sent again.
func eventID(source string, e *source.Event) string { return id.Derive(id.Event, source, e.ID) }

// inboundHeaders is how many headers an inbound record has at most.
const inboundHeaders = 12

// scratch is the memory of one event on its way to Kafka, used again once Kafka has acknowledged it.
type scratch struct {
	body    [firstRead]byte
	headers [inboundHeaders]kgo.RecordHeader
	// values are those of the headers, one behind the other.
	values [1536]byte
}

const millis = "2006-01-02T15:04:05.000Z"

// inboundRecord is the event as it stands on the log: on `inbound` where the account's organization is known, else on
// `inbound.unrouted`, whose owner finds out. What is to be ignored goes there too, so that no organization sees it. The value is body itself, the headers are in s.
func (s *scratch) inboundRecord(source string, e *source.Event, routes *routes, body []byte, now time.Time) (string, produce.Record) {
	var account strings.Builder
	account.Grow(len(source) + 1 + len(e.Account))
	account.WriteString(source)
	account.WriteByte('/')
	account.WriteString(e.Account)
	topic, routingKey, org := schemas.InboundUnrouted, account.String(), ""
	if e.Account != "" && e.Ignored == "" {
		if r := routes.of(routingKey); r.takes(e.Organization) {
			org = r.organization
		}
	}
	if org != "" {
		topic, routingKey = schemas.Inbound, org
	}
	evt := eventID(source, e)
	h := headers{list: s.headers[:0], values: s.values[:0]}
	h.add(schemas.HeaderSpecVersion, schemas.SpecVersion)
	h.add(schemas.HeaderID, e.ID)
	h.add(schemas.HeaderSource, source)
	h.add(schemas.HeaderType, e.Type)
	h.add(schemas.HeaderContentType, schemas.ContentTypeJSON)
	h.add(schemas.HeaderEventID, evt)
	h.add(schemas.HeaderAccount, e.Account)
	if org != "" {
		h.add(schemas.HeaderOrganization, org)
	}
	if e.Organization != "" {
		h.add(schemas.HeaderNamedOrganization, e.Organization)
	}
	if e.Ignored != "" {
		h.add(schemas.HeaderIgnored, e.Ignored)
	}
	h.addTime(schemas.HeaderAcceptedAt, now)
	if !e.Occurred.IsZero() {
		h.addTime(schemas.HeaderTime, e.Occurred)
	}
	return evt, produce.Record{Topic: topic, RoutingKey: routingKey, Value: body, Headers: h.list}
}

type headers struct {
	list   []kgo.RecordHeader
	values []byte
}

func (h *headers) add(key, value string) {
	start := len(h.values)
	h.values = append(h.values, value...)
	h.list = append(h.list, kgo.RecordHeader{Key: key, Value: h.values[start:len(h.values):len(h.values)]})
}

func (h *headers) addTime(key string, t time.Time) {
	start := len(h.values)
	h.values = t.UTC().AppendFormat(h.values, millis)
	h.list = append(h.list, kgo.RecordHeader{Key: key, Value: h.values[start:len(h.values):len(h.values)]})
}
