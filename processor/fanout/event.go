package fanout

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/subscription"
)

// event is a record of `events`, read.
type event struct {
	*cloudevent.Event
	loopID string

	body []byte
	// decoded is body as filters see it, once one has asked.
	decoded *eventfilter.Event
}

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
	var err error
	if e.loopID, err = subscription.LoopID(e.Data); err != nil {
		return e, reasonMalformed
	}
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
	e.body = outbound.Body(e.Event, outbound.SchemaVersion)
	return e, ""
}
