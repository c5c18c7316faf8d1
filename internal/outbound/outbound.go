// Package outbound makes the body of the request that merchants receive (CONTRACT §4). Fan-out makes it once, when an
// event is sent, and whoever needs it again after it is gone makes the very same bytes from the event's row in ClickHouse:
// the same event always gives the same body.
package outbound

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
)

// SchemaVersion is that of every public event type.
const SchemaVersion = 1

// Body is the event's body: the members in the order that the contract lists them, the data as it came.
func Body(e *cloudevent.Event, schemaVersion int) []byte {
	b := make([]byte, 0, 512+len(e.Data))
	b = appendText(append(b, `{"id":`...), e.ID)
	b = appendText(append(b, `,"type":`...), e.Type)
	b = appendText(append(b, `,"timestamp":`...), httpapi.FormatTime(time.UnixMilli(e.OccurredUnixMS)))
	b = appendText(append(b, `,"organizationId":`...), e.Organization)
	b = appendTextOrNull(append(b, `,"source":`...), e.Source)
	b = appendTextOrNull(append(b, `,"subject":`...), e.Subject)
	b = appendTextOrNull(append(b, `,"correlationId":`...), e.CorrelationID)
	b = appendTextOrNull(append(b, `,"causationId":`...), e.CausationID)
	b = strconv.AppendInt(append(b, `,"schemaVersion":`...), int64(schemaVersion), 10)
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
