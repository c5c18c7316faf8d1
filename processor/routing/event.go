package routing

import (
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// event is what the router reads of a record's headers.
type event struct {
	source, account, eventType string
	sourceEventID, eventID     string
	receivedUnixMS             int64
	// occurredUnixMS is 0 where the event does not say.
	occurredUnixMS int64
	// named is the organization that the event itself names, "" for none.
	named string
	// ignored is why the event must not take effect, "" for none.
	ignored string
}

func readEvent(in *kgo.Record) event {
	// Records of ours are UTF-8; another byte must not make a row that does not encode.
	header := func(key string) string { return strings.ToValidUTF8(kafka.ReadHeader(in.Headers, key), "\ufffd") }
	e := event{
		source: header(schemas.HeaderSource), account: header(schemas.HeaderAccount), eventType: header(schemas.HeaderType),
		sourceEventID: header(schemas.HeaderID), eventID: header(schemas.HeaderEventID), receivedUnixMS: in.Timestamp.UnixMilli(),
		named: header(schemas.HeaderNamedOrganization), ignored: header(schemas.HeaderIgnored),
	}
	// The edge names valid ids only; what has none of their form must not become a key.
	if !id.ValidOrg(e.named) {
		e.named = ""
	}
	if at, err := time.Parse(time.RFC3339Nano, header(schemas.HeaderAcceptedAt)); err == nil {
		e.receivedUnixMS = at.UnixMilli()
	}
	e.occurredUnixMS = cloudevent.Time([]byte(header(schemas.HeaderTime)), time.UnixMilli(0)).UnixMilli()
	return e
}

// key is the routing key of the event's account, and its key in `connections` and `routes`.
func (e *event) key() string { return schemas.AccountKey(e.source, e.account) }

func (e *event) row(org, outcome, reason string) *webhooksv1.InboundRow {
	return &webhooksv1.InboundRow{
		Source: e.source, SourceEventId: e.sourceEventID, EventId: e.eventID, OrganizationId: org, Account: e.account,
		Type: e.eventType, Outcome: outcome, Reason: reason, ReceivedUnixMs: e.receivedUnixMS,
	}
}
