package dispatch

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// eventSource is ce_source of the events that the deliverer makes.
const eventSource = "/deliverer"

// emit produces a protobuf record in the endpoint's partition.
func (t *task) emit(tx *stream.Tx, topic string, f *flight, m proto.Message) error {
	value, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a record of %s for %s: %w", topic, f.id, err)
	}
	tx.Emit(topic, f.ep.id, &kgo.Record{Key: []byte(f.id), Value: value})
	return nil
}

// emitAttempt writes the attempt's row. Its id is a function of delivery and number.
func (t *task) emitAttempt(tx *stream.Tx, f *flight) error {
	r := &f.result
	row := &webhooksv1.AttemptRow{
		AttemptId:         id.Derive(id.Attempt, f.id, fmt.Sprint(f.number)),
		DeliveryId:        f.id,
		EventId:           f.event.GetId(),
		EndpointId:        f.ep.id,
		OrganizationId:    f.event.GetOrganizationId(),
		EventType:         f.event.GetType(),
		Number:            f.number,
		Trigger:           f.trigger(),
		StartedUnixMs:     r.Started.UnixMilli(),
		DurationMs:        ms(r.Duration),
		QueueMs:           ms(r.Timings.Queue),
		DnsMs:             ms(r.Timings.DNS),
		ConnectMs:         ms(r.Timings.Connect),
		TlsMs:             ms(r.Timings.TLS),
		FirstByteMs:       ms(r.Timings.FirstByte),
		BodyMs:            ms(r.Timings.Body),
		Outcome:           outcomeName(r.Success()),
		StatusCode:        uint32(r.StatusCode),
		ErrorClass:        r.Class.String(),
		ResponseExcerpt:   r.Excerpt,
		ResponseBytes:     uint32(r.ResponseBytes),
		RequestBytes:      uint32(r.RequestBytes),
		NextAttemptUnixMs: unixMS(f.verdict.due),
		DeliveryStatus:    f.status(),
		ReplayId:          f.replay,
		Test:              f.test != nil,
		MaybeRepeated:     f.maybe || r.Resent,
		Worker:            t.d.cfg.Worker,
	}
	return t.emit(tx, schemas.Attempts, f, row)
}

// trigger is why the attempt was made (CONTRACT §5).
func (f *flight) trigger() string {
	switch {
	case f.test != nil:
		return "test"
	case f.manual:
		return "manual"
	case f.replay != "":
		return "replay"
	}
	return "schedule"
}

// status is the delivery's, as it is shown.
func (f *flight) status() string {
	if f.delivered != 0 {
		return schemas.DeliveryDelivered
	}
	return f.verdict.status
}

// row is the delivery's next row.
func (f *flight) row(attempts uint32, ended time.Time) *webhooksv1.DeliveryRow {
	row := &webhooksv1.DeliveryRow{
		DeliveryId:        f.id,
		OrganizationId:    f.event.GetOrganizationId(),
		EndpointId:        f.ep.id,
		EventId:           f.event.GetId(),
		EventType:         f.event.GetType(),
		Status:            f.status(),
		Reason:            f.verdict.reason,
		AcceptedUnixMs:    f.event.GetAcceptedUnixMs(),
		NextAttemptUnixMs: unixMS(f.verdict.due),
		EndedUnixMs:       unixMS(ended),
		AttemptCount:      attempts,
		ReplayId:          f.replay,
		Test:              f.test != nil,
		Version:           f.rowVersion + 1,
		CreatedUnixMs:     f.created,
	}
	if f.delivered != 0 {
		row.Reason, row.EndedUnixMs = "", f.delivered
	}
	return row
}

// rowAs is the row if this were the verdict.
func (f *flight) rowAs(v verdict, attempts uint32, ended time.Time) *webhooksv1.DeliveryRow {
	g := *f
	g.verdict = v
	return g.row(attempts, ended)
}

// emitDelivery writes the delivery's next row, and its dead letter.
func (t *task) emitDelivery(tx *stream.Tx, f *flight, attempts uint32, ended time.Time) error {
	row := f.row(attempts, ended)
	if row.Status == schemas.DeliveryDead {
		dead := &webhooksv1.DeadDelivery{Delivery: row, ErrorClass: f.result.Class.String()}
		if err := t.emit(tx, schemas.DeliveriesDead, f, dead); err != nil {
			return err
		}
	}
	return t.emit(tx, schemas.DeliveryRows, f, row)
}

// emitDisable asks the organization's owner to disable an endpoint that said it is gone, naming the version judged.
func (t *task) emitDisable(tx *stream.Tx, f *flight) error {
	return t.disable(tx, f.event.GetOrganizationId(), id.Derive(id.Command, "disable", f.id, fmt.Sprint(f.number)),
		&webhooksv1.DisableEndpoint{EndpointId: f.ep.id, JudgedVersion: f.version, Reason: reasonGone})
}

// emitFailing does so for an endpoint that has done nothing but fail for too long.
func (t *task) emitFailing(tx *stream.Tx, e *endpoint) error {
	return t.disable(tx, e.org, id.Derive(id.Command, "disable", e.id, reasonFailing, fmt.Sprint(e.streak.Version)),
		&webhooksv1.DisableEndpoint{EndpointId: e.id, JudgedVersion: e.streak.Version, Reason: reasonFailing})
}

func (t *task) disable(tx *stream.Tx, org, commandID string, judgement *webhooksv1.DisableEndpoint) error {
	r, err := cloudevent.Command(&webhooksv1.Command{
		Id: commandID, OrganizationId: org, IssuedUnixMs: tx.Now().UnixMilli(),
		Action: &webhooksv1.Command_DisableEndpoint{DisableEndpoint: judgement},
	})
	if err != nil {
		return fmt.Errorf("disable endpoint %s: %w", judgement.GetEndpointId(), err)
	}
	tx.Emit(schemas.Inbound, org, r)
	return nil
}

// exhausted is the data of delivery.exhausted (CONTRACT §4).
type exhausted struct {
	DeliveryID   string `json:"deliveryId"`
	EndpointID   string `json:"endpointId"`
	EventID      string `json:"eventId"`
	EventType    string `json:"eventType"`
	AttemptCount uint32 `json:"attemptCount"`
	ErrorClass   string `json:"errorClass"`
}

// emitExhausted tells the organization's other endpoints of a delivery whose last attempt failed. It carries no version
// of the endpoint set: it is not made where that is known.
func (t *task) emitExhausted(tx *stream.Tx, f *flight) error {
	if schemas.Operational(f.event.GetType()) {
		return nil
	}
	data, err := json.Marshal(exhausted{
		DeliveryID: f.id, EndpointID: f.ep.id, EventID: f.event.GetId(), EventType: f.event.GetType(),
		AttemptCount: f.number, ErrorClass: f.result.Class.String(),
	})
	if err != nil {
		return fmt.Errorf("encode %s of %s: %w", schemas.TypeDeliveryExhausted, f.id, err)
	}
	org := f.event.GetOrganizationId()
	now := tx.Now().UnixMilli()
	cause := f.event.GetId()
	tx.Emit(schemas.Events, org, (&cloudevent.Event{
		// With the attempt's number: a delivery that is retried by hand may be exhausted again.
		ID: id.Derive(id.Event, schemas.TypeDeliveryExhausted, org, f.id, fmt.Sprint(f.number)), Type: schemas.TypeDeliveryExhausted,
		Source: eventSource, Subject: f.id, Organization: org, OccurredUnixMS: now, AcceptedUnixMS: now,
		CorrelationID: cause, CausationID: cause, CauseSource: eventSource, CauseEventID: f.id, Data: data,
	}).Record())
	return nil
}

// emitUnreadable keeps a record that is no Deliveries, as it came, among the dead letters.
func (t *task) emitUnreadable(tx *stream.Tx, in *kgo.Record, why error) {
	t.log.Error("record cannot be read, kept as dead letter", "topic", in.Topic, "offset", in.Offset, "error", why)
	key := fmt.Sprintf("unreadable/%d/%d", in.Partition, in.Offset)
	tx.Emit(schemas.DeliveriesDead, key, &kgo.Record{
		Key: []byte(key), Value: in.Value, Headers: []kgo.RecordHeader{{Key: "error", Value: []byte("unreadable")}},
	})
}

func outcomeName(success bool) string {
	if success {
		return "success"
	}
	return "failure"
}

func ms(d time.Duration) uint32 { return uint32(max(0, d.Milliseconds())) }

func unixMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
