package cloudevent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const at = 1760000000123

func TestAnEventIsReadAsItWasWritten(t *testing.T) {
	for name, e := range map[string]*Event{
		"whole": {
			ID: "evt_1", Type: "subscription.updated", Source: "/billing", Subject: "sub_1", Organization: "org_1",
			OccurredUnixMS: at, AcceptedUnixMS: at + 1, CorrelationID: "evt_0", CausationID: "evt_0", CauseSource: "stripe",
			CauseEventID: "evt_s", EndpointSet: 7, Data: []byte(`{}`),
		},
		"least": {ID: "evt_1", Type: "a", Source: "/a", Organization: "org_1", OccurredUnixMS: at, AcceptedUnixMS: at, Data: []byte(`{}`)},
	} {
		t.Run(name, func(t *testing.T) {
			r := e.Record()
			require.Equal(t, "org_1", string(r.Key))
			require.Equal(t, "1.0", kafka.ReadHeader(r.Headers, schemas.HeaderSpecVersion))
			require.Equal(t, schemas.ContentTypeJSON, kafka.ReadHeader(r.Headers, schemas.HeaderContentType))
			require.Equal(t, "2025-10-09T08:53:20.123Z", kafka.ReadHeader(r.Headers, schemas.HeaderTime))
			require.Equal(t, e, ReadEvent(r))
			for _, h := range r.Headers {
				require.NotEmpty(t, h.Value, h.Key)
			}
		})
	}
}

func TestAnEventWithoutTimesHasTheRecords(t *testing.T) {
	r := &kgo.Record{Timestamp: time.UnixMilli(at)}
	require.Equal(t, int64(at), ReadEvent(r).AcceptedUnixMS)
	require.Equal(t, int64(at), ReadEvent(r).OccurredUnixMS)
	r.Headers = []kgo.RecordHeader{{Key: schemas.HeaderAcceptedAt, Value: []byte("2025-10-09T08:53:21Z")}, {Key: schemas.HeaderTime, Value: []byte("soon")}}
	require.Equal(t, int64(1760000001000), ReadEvent(r).OccurredUnixMS, "what did not say when it happened, happened when it was accepted")
}

func TestACommand(t *testing.T) {
	cmd := &webhooksv1.Command{Id: "cmd_1", OrganizationId: "org_1", IssuedUnixMs: at}
	r, err := Command(cmd)
	require.NoError(t, err)
	require.Equal(t, "org_1", string(r.Key))
	got := map[string]string{}
	for _, h := range r.Headers {
		got[h.Key] = string(h.Value)
	}
	require.Equal(t, map[string]string{
		"ce_specversion": "1.0", "ce_id": "cmd_1", "ce_source": "management", "ce_type": "command", "content-type": "application/x-protobuf",
		"ce_time": "2025-10-09T08:53:20.123Z", "ce_acceptedat": "2025-10-09T08:53:20.123Z", "ce_organization": "org_1",
	}, got)
	require.True(t, IsCommand(got["ce_source"], got["ce_type"]))
	require.False(t, IsCommand("stripe", "command"), "a source cannot give commands")
	read := &webhooksv1.Command{}
	require.NoError(t, proto.Unmarshal(r.Value, read))
	require.True(t, proto.Equal(cmd, read))

	_, err = Command(&webhooksv1.Command{Id: "\xff"})
	require.Error(t, err)
}

func TestHandingOnChangesTheOrganizationOnly(t *testing.T) {
	before := (&Event{ID: "evt_1", Organization: "org_1", CauseSource: "x"}).Record().Headers
	after := WithOrganization(before, "org_2")
	require.Equal(t, "org_2", kafka.ReadHeader(after, schemas.HeaderOrganization))
	require.Len(t, after, len(before))
	require.Equal(t, "org_1", kafka.ReadHeader(before, schemas.HeaderOrganization), "what came is not touched")
	require.Equal(t, "x", kafka.ReadHeader(after, schemas.HeaderCauseSource))
}

func FuzzReadEvent(f *testing.F) {
	f.Add(schemas.HeaderTime, []byte("2025-10-09T08:53:20.123Z"))
	f.Add(schemas.HeaderEndpointSet, []byte("\xff"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e := ReadEvent(&kgo.Record{Headers: []kgo.RecordHeader{{Key: key, Value: value}}})
		again := ReadEvent(e.Record())
		again.Data = e.Data
		e.OccurredUnixMS, e.AcceptedUnixMS = again.OccurredUnixMS, again.AcceptedUnixMS
		require.Equal(t, e, again)
	})
}
