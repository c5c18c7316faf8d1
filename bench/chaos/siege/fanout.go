package siege

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// expected is what must follow from one event of `events`.
type expected struct {
	event *cloudevent.Event
	set   uint64
	// enabled are the endpoints that get it, disabled those that would.
	enabled, disabled []*webhooksv1.Endpoint
}

// expectedOf compares an event with its organization's endpoints, which were all made before its first event.
func expectedOf(r *kgo.Record, targets []*webhooksv1.Endpoint) expected {
	x := expected{event: cloudevent.ReadEvent(r), set: uint64(len(targets))}
	for _, t := range targets {
		switch {
		case !slices.ContainsFunc(t.EventTypes, x.matches):
		case t.Enabled:
			x.enabled = append(x.enabled, t)
		default:
			x.disabled = append(x.disabled, t)
		}
	}
	slices.SortFunc(x.enabled, func(a, b *webhooksv1.Endpoint) int { return cmp.Compare(a.Id, b.Id) })
	return x
}

func (x *expected) matches(pattern string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	return pattern == x.event.Type || open && strings.HasPrefix(x.event.Type, prefix)
}

func (x *expected) deliveryID(endpoint string) string {
	return id.Derive(id.Delivery, x.event.ID, endpoint, "")
}

// rows of `deliveries`, by their key.
func (x *expected) rows() map[string]string {
	rows := map[string]string{}
	row := func(endpoint, status string) {
		r := &webhooksv1.DeliveryRow{
			DeliveryId: x.deliveryID(endpoint), OrganizationId: x.event.Organization, EndpointId: endpoint, EventId: x.event.ID,
			EventType: x.event.Type, Status: status, AcceptedUnixMs: x.event.AcceptedUnixMS, Version: 1,
		}
		rows[r.DeliveryId] = canonical(r)
	}
	for _, e := range x.enabled {
		row(e.Id, schemas.DeliveryWaiting)
	}
	for _, e := range x.disabled {
		row(e.Id, schemas.DeliveryUnmatched)
	}
	if len(rows) == 0 {
		row("", schemas.DeliveryUnmatched)
	}
	return rows
}

func (x *expected) eventRow() string {
	e := x.event
	return canonical(&webhooksv1.EventRow{
		EventId: e.ID, OrganizationId: e.Organization, Type: e.Type, Source: e.Source, Subject: e.Subject,
		OccurredUnixMs: e.OccurredUnixMS, AcceptedUnixMs: e.AcceptedUnixMS, CauseSource: e.CauseSource, CauseEventId: e.CauseEventID,
		CorrelationId: e.CorrelationID, CausationId: e.CausationID, SchemaVersion: 1, Matched: uint32(len(x.enabled)), Data: e.Data,
	})
}

func deliveriesKey(eventID string, partition int32) string {
	return fmt.Sprint(eventID, " in ", partition)
}

// deliveries are the records on the topic of that name: one in each partition that has an endpoint which gets the event.
func (x *expected) deliveries(partitions int32) map[string]string {
	by := map[int32]*webhooksv1.Deliveries{}
	for _, e := range x.enabled {
		p := kafka.PartitionOf(e.Id, partitions)
		if by[p] == nil {
			by[p] = &webhooksv1.Deliveries{EndpointSetVersion: x.set, Event: &webhooksv1.OutboundEvent{
				Id: x.event.ID, OrganizationId: x.event.Organization, Type: x.event.Type,
				AcceptedUnixMs: x.event.AcceptedUnixMS, Body: x.body(),
			}}
		}
		by[p].Targets = append(by[p].Targets, &webhooksv1.Target{
			DeliveryId: x.deliveryID(e.Id), EndpointId: e.Id, EndpointVersion: e.Version,
		})
	}
	records := map[string]string{}
	for p, d := range by {
		records[deliveriesKey(x.event.ID, p)] = canonicalDeliveries(d)
	}
	return records
}

// body is what merchants receive.
func (x *expected) body() []byte {
	orNull := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	e := x.event
	b, err := json.Marshal(map[string]any{
		"id": e.ID, "type": e.Type, "timestamp": httpapi.FormatTime(time.UnixMilli(e.OccurredUnixMS)),
		"organizationId": e.Organization, "source": orNull(e.Source), "subject": orNull(e.Subject),
		"correlationId": orNull(e.CorrelationID), "causationId": orNull(e.CausationID),
		"schemaVersion": 1, "data": json.RawMessage(e.Data),
	})
	if err != nil {
		return []byte(err.Error())
	}
	return b
}
