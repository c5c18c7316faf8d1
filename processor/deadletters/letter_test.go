package deadletters

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

var buried = time.UnixMilli(1767225600123)

func rowOf(eventID string) *webhooksv1.InboundRow {
	return &webhooksv1.InboundRow{
		Source: "stripe", SourceEventId: "evt_s", EventId: eventID, OrganizationId: "org_1", Account: "cus_1", Type: "invoice.paid",
		Outcome: schemas.OutcomeDead, Reason: "malformed", ReceivedUnixMs: 1,
	}
}

// sent is a letter after its way over the log, in records that Kafka takes.
func sent(t require.TestingT, letter *webhooksv1.DeadInbound) *webhooksv1.DeadInbound {
	for _, r := range []*kgo.Record{Record(letter), HandedOn(letter)} {
		require.True(t, stream.Fits(r), "%d bytes", len(r.Value))
		require.Equal(t, letter.Event.EventId, string(r.Key))
		got := &webhooksv1.DeadInbound{}
		require.NoError(t, proto.Unmarshal(r.Value, got))
		letter = got
	}
	return letter
}

func TestALetterThatIsHandedOnIsTheSame(t *testing.T) {
	record := &kgo.Record{Key: []byte("stripe/"), Value: []byte(`{"id":"evt_s"}`), Headers: []kgo.RecordHeader{{Key: "\xff", Value: nil}}, Partition: 7, Offset: 42}
	letter := New(schemas.InboundUnrouted, record, rowOf("evt_1"), buried)
	on := HandedOn(letter)
	source, eventType := kafka.ReadHeader(on.Headers, schemas.HeaderSource), kafka.ReadHeader(on.Headers, schemas.HeaderType)
	require.True(t, proto.Equal(letter, ReadHandedOn(source, eventType, on.Value)))
	require.Equal(t, "inbound.unrouted/7/42", kafka.ReadHeader(on.Headers, schemas.HeaderID))

	require.Nil(t, ReadHandedOn("stripe", eventType, on.Value), "a source cannot hand letters on")
	require.Nil(t, ReadHandedOn(source, schemas.TypeCommand, on.Value))
	require.Nil(t, ReadHandedOn(source, eventType, []byte("\xff")))
	require.Nil(t, ReadHandedOn(source, eventType, nil), "whose event has no id")
}

func TestALetterHasTheWholeRecord(t *testing.T) {
	header := func(key string, value []byte) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: value} }
	for name, record := range map[string]kgo.Record{
		"as the edge writes it":   {Key: []byte("org_1"), Value: []byte(`{"id":"evt_s"}`), Headers: []kgo.RecordHeader{header("ce_id", []byte("evt_s"))}},
		"nothing in it":           {},
		"empty is not none":       {Key: []byte{}, Value: []byte{}, Headers: []kgo.RecordHeader{header("a", []byte{}), header("b", nil)}},
		"a header twice, ordered": {Headers: []kgo.RecordHeader{header("b", []byte("1")), header("a", []byte("2")), header("b", []byte("1"))}},
		"keys that are no text":   {Headers: []kgo.RecordHeader{header("\xff\xfe", []byte("\x00\xff")), header("", []byte("x")), header("ce_\x00id", nil)}},
		"a body that is no text":  {Key: []byte("\xff"), Value: []byte("\x00\xc3\x28")},
		"the largest body":        {Key: []byte("org_1"), Value: make([]byte, schemas.MaxInboundBody)},
	} {
		t.Run(name, func(t *testing.T) {
			record.Partition, record.Offset = 7, 42
			letter := sent(t, New(schemas.Inbound, &record, rowOf("evt_1"), buried))
			require.Empty(t, unreplayable(letter))
			require.Equal(t, int64(42), letter.Offset)
			require.Equal(t, buried.UnixMilli(), letter.BuriedUnixMs)
			require.True(t, proto.Equal(rowOf("evt_1"), letter.Event))

			want := record
			want.Topic, want.Offset = schemas.Inbound, 0
			require.Equal(t, &want, Original(letter))
		})
	}
}

func TestWhatIsTooLargeIsLeftOutAndSaid(t *testing.T) {
	many := kgo.RecordHeader{Key: "x", Value: make([]byte, 1000)}
	for name, test := range map[string]struct {
		record  kgo.Record
		headers int
	}{
		"body over the limit":  {kgo.Record{Value: make([]byte, schemas.MaxInboundBody+1), Headers: []kgo.RecordHeader{many}}, 1},
		"body and headers":     {kgo.Record{Value: make([]byte, schemas.MaxInboundBody), Headers: repeated(many, 100)}, 100},
		"headers alone":        {kgo.Record{Value: []byte("small"), Headers: repeated(many, 5000)}, 0},
		"a key of a megabyte":  {kgo.Record{Value: make([]byte, 3<<20), Key: make([]byte, 1<<20)}, 0},
		"many, many headers":   {kgo.Record{Headers: repeated(kgo.RecordHeader{Key: "xx", Value: []byte{}}, 1<<19)}, 0},
		"a header of all that": {kgo.Record{Headers: []kgo.RecordHeader{{Key: strings.Repeat("\xff", 4<<20)}}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			letter := sent(t, New(schemas.Inbound, &test.record, rowOf("evt_1"), buried))
			require.Equal(t, incomplete, unreplayable(letter))
			require.Nil(t, letter.Body)
			require.Len(t, letter.Headers, test.headers)
			require.Equal(t, "malformed", letter.Event.Reason)
		})
	}
}

func repeated(h kgo.RecordHeader, n int) (all []kgo.RecordHeader) {
	for range n {
		all = append(all, h)
	}
	return all
}

func TestTextsOfALettersRowAreBounded(t *testing.T) {
	long := strings.Repeat("é", 2<<20) // two bytes each: maxText cuts none in half, one byte more does
	row := rowOf("evt_" + long)
	row.Type, row.Account, row.Source = long, "x"+long, "\xff\xfe"
	letter := sent(t, New(schemas.Events, &kgo.Record{Value: []byte("{}")}, row, buried))
	require.Empty(t, unreplayable(letter), "they stand in the headers too")
	require.Len(t, letter.Event.Type, maxText)
	require.Len(t, letter.Event.Account, maxText-1)
	require.Empty(t, letter.Event.Source)
	require.Len(t, row.Type, len(long), "the caller's is as it was")
}

func TestALetterOfAnEarlierVersionCannotBeReplayed(t *testing.T) {
	require.Equal(t, earlier, unreplayable(&webhooksv1.DeadInbound{Event: rowOf("evt_1"), Body: []byte("{}")}))
	require.Equal(t, unknownTopic, unreplayable(&webhooksv1.DeadInbound{Topic: schemas.Billing}))
}

// TestAnyRecord: whatever stands on the log, its letter encodes, fits, and gives the record back or says that it cannot.
func TestAnyRecord(t *testing.T) {
	size := rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 100, 30 << 10, 60 << 10, 1 << 20, schemas.MaxInboundBody, stream.MaxOutput})
	text := rapid.Custom(func(t *rapid.T) []byte {
		return append(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"), bytes.Repeat([]byte{0xff}, size.Draw(t, "more"))...)
	})
	rapid.Check(t, func(t *rapid.T) {
		record := &kgo.Record{Key: text.Draw(t, "key"), Value: text.Draw(t, "value"), Partition: 3}
		for range rapid.IntRange(0, 4).Draw(t, "headers") {
			record.Headers = append(record.Headers, kgo.RecordHeader{Key: string(text.Draw(t, "name")), Value: text.Draw(t, "content")})
		}
		row := rowOf(string(text.Draw(t, "event id")))
		row.Type = string(text.Draw(t, "type"))
		letter := sent(t, New(schemas.Events, record, row, buried))
		if letter.Incomplete {
			require.Nil(t, letter.Body)
			return
		}
		want := *record
		want.Topic = schemas.Events
		require.Equal(t, &want, Original(letter))
	})
}
