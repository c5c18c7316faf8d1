package outbound_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/outbound"
)

func TestTheMembersStandAsTheContractListsThem(t *testing.T) {
	whole := cloudevent.Event{
		ID: "evt_1", Type: "loop.completed", OccurredUnixMS: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC).UnixMilli(), Organization: "org_1",
		Source: "/billing", Subject: `a"b`, CorrelationID: "c", CausationID: "evt_0", Data: []byte(`{"n": 1.50,"h":"<&>"}`),
	}
	for name, c := range map[string]struct {
		event cloudevent.Event
		body  string
	}{
		"all of them": {whole, `{"id":"evt_1","type":"loop.completed","timestamp":"2026-01-02T03:04:05.006Z","organizationId":"org_1",` +
			`"source":"/billing","subject":"a\"b","correlationId":"c","causationId":"evt_0","schemaVersion":1,"data":{"n": 1.50,"h":"<&>"}}`},
		"null where there is none": {cloudevent.Event{ID: "evt_1", Data: []byte(`{}`)},
			`{"id":"evt_1","type":"","timestamp":"1970-01-01T00:00:00.000Z","organizationId":"","source":null,"subject":null,` +
				`"correlationId":null,"causationId":null,"schemaVersion":1,"data":{}}`},
		"what is not UTF-8 is replaced": {cloudevent.Event{ID: "\xff", Data: []byte(`{}`)},
			`{"id":"` + "\uFFFD" + `","type":"","timestamp":"1970-01-01T00:00:00.000Z","organizationId":"","source":null,"subject":null,` +
				`"correlationId":null,"causationId":null,"schemaVersion":1,"data":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			body := outbound.Body(&c.event, outbound.SchemaVersion)
			require.Equal(t, c.body, string(body))
			require.True(t, json.Valid(body))
		})
	}
}
