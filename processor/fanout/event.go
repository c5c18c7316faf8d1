package fanout

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/jsonscan"
)

// schemaVersion is that of every public event type.
const schemaVersion = 1

// event is a record of `events`, read.
type event struct {
	*cloudevent.Event
	loopID string

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
	e = &event{Event: cloudevent.ReadEvent(in)}
	var loopID [1]jsonscan.Value
	if loopIDPath.Scan(e.Data, loopID[:]) != nil {
		return e, reasonMalformed
	}
	e.loopID = loopID[0].String()
	switch {
	case !id.ValidOrg(e.Organization):
		return e, reasonNoOrganization
	case e.ID == "":
		return e, reasonNoID
	case e.Type == "":
		return e, reasonNoType
	case len(e.Data) > maxData:
		return e, reasonTooLarge
	}
	e.body = e.encode()
	return e, ""
}

// encode builds the body of the request: the members in the order that the contract lists them, the data as it came.
// The same event always gives the same bytes.
func (e *event) encode() []byte {
	b := make([]byte, 0, 512+len(e.Data))
	b = appendText(append(b, `{"id":`...), e.ID)
	b = appendText(append(b, `,"type":`...), e.Type)
	b = appendText(append(b, `,"timestamp":`...), httpapi.FormatTime(time.UnixMilli(e.OccurredUnixMS)))
	b = appendText(append(b, `,"organizationId":`...), e.Organization)
	b = appendTextOrNull(append(b, `,"source":`...), e.Source)
	b = appendTextOrNull(append(b, `,"subject":`...), e.Subject)
	b = appendTextOrNull(append(b, `,"correlationId":`...), e.CorrelationID)
	b = appendTextOrNull(append(b, `,"causationId":`...), e.CausationID)
	b = strconv.AppendInt(append(b, `,"schemaVersion":`...), schemaVersion, 10)
	b = append(append(b, `,"data":`...), e.Data...)
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
