package fanout

import (
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/schemas"
)

// schemaVersion is that of every public event type.
const schemaVersion = 1

// event is a record of `events`, read.
type event struct {
	id, organization, eventType, source, subject string
	correlationID, causationID                   string
	causeSource, causeEventID                    string
	occurredMS, acceptedMS                       int64
	endpointSet                                  uint64
	loopID                                       string
	data                                         []byte

	body []byte
	// decoded is body as filters see it, once one has asked.
	decoded *eventfilter.Event
}

var loopIDPath = jsonscan.Compile("/loopId")

// Reasons why a record cannot be fanned out.
const (
	reasonNoOrganization = "no_organization"
	reasonNoID           = "no_event_id"
	reasonNoType         = "no_type"
	reasonMalformed      = "malformed_data" // not a JSON object
	reasonTooLarge       = "too_large"      // what follows from it exceeds what Kafka takes
)

// readEvent reads a record; reason is "" when it can be used.
func readEvent(in *kgo.Record) (e *event, reason string) {
	e = &event{data: in.Value}
	occurred := ""
	accepted := in.Timestamp
	for _, h := range in.Headers {
		switch h.Key {
		case schemas.HeaderID:
			e.id = text(h.Value)
		case schemas.HeaderOrganization:
			e.organization = text(h.Value)
		case schemas.HeaderType:
			e.eventType = text(h.Value)
		case schemas.HeaderSource:
			e.source = text(h.Value)
		case schemas.HeaderSubject:
			e.subject = text(h.Value)
		case schemas.HeaderTime:
			occurred = string(h.Value)
		case schemas.HeaderAcceptedAt:
			accepted = timeOr(string(h.Value), accepted)
		case schemas.HeaderCorrelationID:
			e.correlationID = text(h.Value)
		case schemas.HeaderCausationID:
			e.causationID = text(h.Value)
		case schemas.HeaderCauseSource:
			e.causeSource = text(h.Value)
		case schemas.HeaderCauseEventID:
			e.causeEventID = text(h.Value)
		case schemas.HeaderEndpointSet:
			// Absent or unreadable: the event was not made in its organization's partition, and there is nothing to wait for.
			e.endpointSet, _ = strconv.ParseUint(string(h.Value), 10, 64)
		}
	}
	e.acceptedMS = accepted.UnixMilli()
	e.occurredMS = timeOr(occurred, accepted).UnixMilli()
	var loopID [1]jsonscan.Value
	if loopIDPath.Scan(e.data, loopID[:]) != nil {
		return e, reasonMalformed
	}
	e.loopID = loopID[0].String()
	switch {
	case !id.ValidOrg(e.organization):
		return e, reasonNoOrganization
	case e.id == "":
		return e, reasonNoID
	case e.eventType == "":
		return e, reasonNoType
	case len(e.data) > maxData:
		return e, reasonTooLarge
	}
	e.body = e.encode()
	return e, ""
}

// text reads a header's value. Records of ours are UTF-8; another byte must not make a row that does not encode.
func text(value []byte) string { return strings.ToValidUTF8(string(value), "\ufffd") }

func timeOr(text string, otherwise time.Time) time.Time {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at
	}
	return otherwise
}

// encode builds the body of the request: the members in the order that the contract lists them, the data as it came.
// The same event always gives the same bytes.
func (e *event) encode() []byte {
	b := make([]byte, 0, 512+len(e.data))
	b = appendText(append(b, `{"id":`...), e.id)
	b = appendText(append(b, `,"type":`...), e.eventType)
	b = appendText(append(b, `,"timestamp":`...), httpapi.FormatTime(time.UnixMilli(e.occurredMS)))
	b = appendText(append(b, `,"organizationId":`...), e.organization)
	b = appendTextOrNull(append(b, `,"source":`...), e.source)
	b = appendTextOrNull(append(b, `,"subject":`...), e.subject)
	b = appendTextOrNull(append(b, `,"correlationId":`...), e.correlationID)
	b = appendTextOrNull(append(b, `,"causationId":`...), e.causationID)
	b = strconv.AppendInt(append(b, `,"schemaVersion":`...), schemaVersion, 10)
	b = append(append(b, `,"data":`...), e.data...)
	return append(b, '}')
}

func appendTextOrNull(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendText(b, s)
}

// appendText writes a JSON string. What is not UTF-8 is replaced, which the error would say.
func appendText(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
