// Package cloudevent writes and reads the records of `inbound*` and `events`: the CloudEvents Kafka protocol binding,
// binary mode (attributes as ce_ headers, the data as the value), with the extensions of schemas/headers.go.
//
// An Event is one of ours for the log `events`; a Command is a wish to an owner of state, on `inbound`, `inbound.unrouted`
// or `deliveries`. Both have the attributes that the specification requires, and times in one layout. Absent
// attributes are left out. What is read is valid UTF-8, whatever was written: it may become a field of a row.
//
// The edge writes its own records without this package, into memory that it uses again; its tests read them with it.
package cloudevent

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TimeLayout is that of every time in a header: RFC 3339, UTC, milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// Event is an event for the log `events`. Empty members are left out.
type Event struct {
	// ID is ours (evt_…), Source a URI-reference, Subject what it is about.
	ID, Type, Source, Subject string
	Organization              string
	// OccurredUnixMS is when it happened, AcceptedUnixMS when we heard of it; 0 is unknown.
	OccurredUnixMS, AcceptedUnixMS int64
	// CorrelationID groups what has one origin, CausationID is our id of the event that this one follows from. The cause's
	// source and its id there say the same in the words of who sent it.
	CorrelationID, CausationID, CauseSource, CauseEventID string
	// EndpointSet is the version of the organization's endpoint set, 0 where that is not known: then nobody waits for it.
	EndpointSet uint64
	// Data is JSON.
	Data []byte
}

// Record is the event as a record of its organization.
func (e *Event) Record() *kgo.Record {
	h := newHeaders(14, 640)
	h.add(schemas.HeaderSpecVersion, schemas.SpecVersion)
	h.add(schemas.HeaderID, e.ID)
	h.add(schemas.HeaderSource, e.Source)
	h.add(schemas.HeaderType, e.Type)
	h.addTime(schemas.HeaderTime, e.OccurredUnixMS)
	h.add(schemas.HeaderSubject, e.Subject)
	h.add(schemas.HeaderContentType, schemas.ContentTypeJSON)
	h.add(schemas.HeaderOrganization, e.Organization)
	h.addTime(schemas.HeaderAcceptedAt, e.AcceptedUnixMS)
	h.add(schemas.HeaderCorrelationID, e.CorrelationID)
	h.add(schemas.HeaderCausationID, e.CausationID)
	h.add(schemas.HeaderCauseSource, e.CauseSource)
	h.add(schemas.HeaderCauseEventID, e.CauseEventID)
	if e.EndpointSet > 0 {
		h.add(schemas.HeaderEndpointSet, strconv.FormatUint(e.EndpointSet, 10))
	}
	return &kgo.Record{Key: h.value(e.Organization), Value: e.Data, Headers: h.list}
}

// ReadEvent reads a record of `events`. What it does not say of times is the record's own.
func ReadEvent(r *kgo.Record) *Event {
	e := &Event{Data: r.Value}
	accepted, occurred := r.Timestamp, time.Time{}
	for _, h := range r.Headers {
		switch h.Key {
		case schemas.HeaderID:
			e.ID = Text(h.Value)
		case schemas.HeaderType:
			e.Type = Text(h.Value)
		case schemas.HeaderSource:
			e.Source = Text(h.Value)
		case schemas.HeaderSubject:
			e.Subject = Text(h.Value)
		case schemas.HeaderOrganization:
			e.Organization = Text(h.Value)
		case schemas.HeaderTime:
			occurred = Time(h.Value, occurred)
		case schemas.HeaderAcceptedAt:
			accepted = Time(h.Value, accepted)
		case schemas.HeaderCorrelationID:
			e.CorrelationID = Text(h.Value)
		case schemas.HeaderCausationID:
			e.CausationID = Text(h.Value)
		case schemas.HeaderCauseSource:
			e.CauseSource = Text(h.Value)
		case schemas.HeaderCauseEventID:
			e.CauseEventID = Text(h.Value)
		case schemas.HeaderEndpointSet:
			// What is unreadable was not made in its organization's partition, and there is nothing to wait for.
			e.EndpointSet, _ = strconv.ParseUint(string(h.Value), 10, 64)
		}
	}
	if occurred.IsZero() {
		occurred = accepted
	}
	e.OccurredUnixMS, e.AcceptedUnixMS = occurred.UnixMilli(), accepted.UnixMilli()
	return e
}

// Command is a command as a record of its organization. The caller gives it to the owner: on `inbound` by that
// organization, on `inbound.unrouted` by the account, on `deliveries` by the endpoint.
func Command(cmd *webhooksv1.Command) (*kgo.Record, error) {
	value, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", cmd.GetId(), err)
	}
	h := newHeaders(8, 320)
	h.add(schemas.HeaderSpecVersion, schemas.SpecVersion)
	h.add(schemas.HeaderID, cmd.GetId())
	h.add(schemas.HeaderSource, schemas.SourceManagement)
	h.add(schemas.HeaderType, schemas.TypeCommand)
	h.addTime(schemas.HeaderTime, cmd.GetIssuedUnixMs())
	h.add(schemas.HeaderContentType, schemas.ContentTypeProtobuf)
	h.add(schemas.HeaderOrganization, cmd.GetOrganizationId())
	h.addTime(schemas.HeaderAcceptedAt, cmd.GetIssuedUnixMs())
	return &kgo.Record{Key: h.value(cmd.GetOrganizationId()), Value: value, Headers: h.list}, nil
}

// Conclusion tells the organization's owner what came of a command with an Idempotency-Key, which it handed on and waits to
// remember. That owner answers it too: answered by whoever carried it out, the request could come again before its key is
// known to be concluded. The caller gives the record to `inbound`, by the organization.
func Conclusion(cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome, now time.Time) (*kgo.Record, error) {
	return Command(&webhooksv1.Command{
		Id: id.Derive(id.Command, "conclude", cmd.GetId()), OrganizationId: cmd.GetOrganizationId(), KeyId: cmd.GetKeyId(),
		IssuedUnixMs: now.UnixMilli(),
		Action: &webhooksv1.Command_ConcludeCommand{ConcludeCommand: &webhooksv1.ConcludeCommand{
			KeyHash: cmd.GetIdempotencyKey().GetHash(), Outcome: outcome,
		}},
	})
}

// IsCommand tells a command from a source's event, whose type alone might be the same.
func IsCommand(source, eventType string) bool {
	return source == schemas.SourceManagement && eventType == schemas.TypeCommand
}

// IsCommandRecord is IsCommand of a record's headers.
func IsCommandRecord(r *kgo.Record) bool {
	var source, eventType string
	for _, h := range r.Headers {
		switch h.Key {
		case schemas.HeaderSource:
			source = string(h.Value)
		case schemas.HeaderType:
			eventType = string(h.Value)
		}
	}
	return IsCommand(source, eventType)
}

// WithOrganization is a record's headers with another organization, for who hands it on; the rest is kept as it came.
func WithOrganization(all []kgo.RecordHeader, organization string) []kgo.RecordHeader {
	kept := make([]kgo.RecordHeader, 0, len(all)+2) // who hands it on may add one
	for _, h := range all {
		if h.Key != schemas.HeaderOrganization {
			kept = append(kept, h)
		}
	}
	return append(kept, kgo.RecordHeader{Key: schemas.HeaderOrganization, Value: []byte(organization)})
}

// Text is a header's value as valid UTF-8, which Protocol Buffers and ClickHouse require.
func Text(value []byte) string { return strings.ToValidUTF8(string(value), "\uFFFD") }

// Time is a header's time, or otherwise where it is none.
func Time(value []byte, otherwise time.Time) time.Time {
	if at, err := time.Parse(time.RFC3339Nano, string(value)); err == nil {
		return at
	}
	return otherwise
}

// headers of one record, whose values lie in one piece of memory.
type headers struct {
	list   []kgo.RecordHeader
	values []byte
}

// newHeaders has room for so many headers and bytes of values; more is possible.
func newHeaders(n, bytes int) headers {
	return headers{make([]kgo.RecordHeader, 0, n), make([]byte, 0, bytes)}
}

// value keeps a text beside the headers' values.
func (h *headers) value(text string) []byte {
	start := len(h.values)
	h.values = append(h.values, text...)
	return h.values[start:len(h.values):len(h.values)]
}

func (h *headers) add(key, value string) {
	if value != "" {
		h.list = append(h.list, kgo.RecordHeader{Key: key, Value: h.value(value)})
	}
}

func (h *headers) addTime(key string, unixMS int64) {
	if unixMS == 0 {
		return
	}
	start := len(h.values)
	h.values = time.UnixMilli(unixMS).UTC().AppendFormat(h.values, TimeLayout)
	h.list = append(h.list, kgo.RecordHeader{Key: key, Value: h.values[start:len(h.values):len(h.values)]})
}
