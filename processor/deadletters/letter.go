// Package deadletters keeps what the processor could not use, and gives it back once it can: what a dead letter is, how
// letters are found, and how they are replayed.
//
// A letter on `inbound.dead` has the record that brought the event, whole. A replay writes that record again, byte for
// byte, to the topic and the partition that it came from, where it takes its place behind what is there by now. With it,
// in one transaction, goes a note that the letter was replayed, and no replay takes a letter that has one: whatever is
// killed, and however many replay at once, each letter is replayed once. It may be asked for again, where that does no harm;
// then, or when its source sends the event again meanwhile, this holds by the topic that it came from:
//
//   - inbound: the event takes effect once. Its organization's owner remembers it, as dead until it took effect and as
//     done from then on, for DEDUPE_RETENTION after each; a letter that is older may meet an owner that has forgotten. An
//     event that is still of no use gets no second letter.
//   - inbound.unrouted: the same, since all that the router makes of it comes to the organization's owner, or where it makes
//     nothing of it to the owner of the partition of the event's id, who remembers it likewise. Its rows may say twice that it came.
//   - events: it is not replayed again. Fan-out remembers nothing, and a deliverer does not ask whether what it is given was
//     delivered before: it would count the same delivery's attempts from 1 once more.
//
// Where nobody remembers (fan-out, what has no id, and commands, which are carried out as they are read), a record that is
// still of no use gets a new letter in the place of the one that was replayed.
//
// Times are those of the record's headers; a record without them counts as accepted when it was replayed.
package deadletters

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	// maxText bounds each text of a letter's row: the texts come from headers, which the letter has anyway. All of them
	// together leave room for a record with the largest body that the edge takes, and its headers.
	maxText = 4 << 10
	// recordBytes is what a record has beside key and value, for stream.MaxOutput: also one that hands a letter on.
	recordBytes = 512
)

// New is the letter of a record of a topic (without prefix). It always encodes and fits into a record, whatever is in the
// one that it is about. The row that it has is for `inbound-rows` too.
func New(topic string, record *kgo.Record, row *webhooksv1.InboundRow, now time.Time) *webhooksv1.DeadInbound {
	letter := &webhooksv1.DeadInbound{
		Event: bounded(row), Body: record.Value, Key: record.Key,
		Topic: topic, Partition: record.Partition, Offset: record.Offset, BuriedUnixMs: now.UnixMilli(),
	}
	for _, h := range record.Headers {
		letter.Headers = append(letter.Headers, &webhooksv1.Header{Key: []byte(h.Key), Value: h.Value})
	}
	if len(record.Value) > schemas.MaxInboundBody || !fits(letter) {
		letter.Body, letter.Incomplete = nil, true
	}
	if !fits(letter) {
		letter.Headers, letter.Key = nil, nil
	}
	return letter
}

// Record is a letter as it stands on `inbound.dead`, under its event's id.
func Record(letter *webhooksv1.DeadInbound) *kgo.Record {
	return &kgo.Record{Key: []byte(letter.Event.EventId), Value: encode(letter)}
}

// HandedOn is a letter on its way, on `inbound`, to who knows whether its event came before: the owner of the partition of
// the event's id.
func HandedOn(letter *webhooksv1.DeadInbound) *kgo.Record {
	r := Record(letter)
	for _, h := range [...][2]string{
		{schemas.HeaderSpecVersion, schemas.SpecVersion},
		{schemas.HeaderID, fmt.Sprintf("%s/%d/%d", letter.Topic, letter.Partition, letter.Offset)},
		{schemas.HeaderSource, schemas.SourceManagement},
		{schemas.HeaderType, schemas.TypeDeadLetter},
		{schemas.HeaderContentType, schemas.ContentTypeProtobuf},
	} {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	return r
}

// ReadHandedOn is the letter that a record with this source and type hands on, nil where it is none.
func ReadHandedOn(source, eventType string, value []byte) *webhooksv1.DeadInbound {
	letter := &webhooksv1.DeadInbound{}
	if source != schemas.SourceManagement || eventType != schemas.TypeDeadLetter || proto.Unmarshal(value, letter) != nil ||
		letter.GetEvent().GetEventId() == "" {
		return nil
	}
	return letter
}

func encode(m *webhooksv1.DeadInbound) []byte {
	value, err := proto.Marshal(m)
	if err != nil {
		panic("BUG: a dead letter does not encode: " + err.Error())
	}
	return value
}

func fits(letter *webhooksv1.DeadInbound) bool {
	return len(letter.Event.EventId)+proto.Size(letter)+recordBytes <= stream.MaxOutput
}

// bounded is a row whose texts are valid and not too long.
func bounded(row *webhooksv1.InboundRow) *webhooksv1.InboundRow {
	row = proto.CloneOf(row)
	for _, text := range []*string{
		&row.Source, &row.SourceEventId, &row.EventId, &row.OrganizationId, &row.Account, &row.Type, &row.Outcome, &row.Reason,
	} {
		*text = strings.ToValidUTF8((*text)[:min(len(*text), maxText)], "")
	}
	return row
}

// Why a letter cannot be replayed.
const (
	incomplete   = "incomplete"    // too large to be kept whole
	earlier      = "earlier"       // of a version that kept the body alone
	unknownTopic = "unknown_topic" // none that letters come from
)

// unreplayable says why a letter cannot be replayed, "" where it can.
func unreplayable(letter *webhooksv1.DeadInbound) string {
	switch {
	case letter.Incomplete:
		return incomplete
	case letter.Topic == "":
		return earlier
	case !slices.Contains([]string{schemas.Inbound, schemas.InboundUnrouted, schemas.Events}, letter.Topic):
		return unknownTopic
	}
	return ""
}

// Original is the record that a letter is about. Its topic is without prefix.
func Original(letter *webhooksv1.DeadInbound) *kgo.Record {
	r := &kgo.Record{Topic: letter.Topic, Partition: letter.Partition, Key: letter.Key, Value: letter.Body}
	for _, h := range letter.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(h.Key), Value: h.Value})
	}
	return r
}
