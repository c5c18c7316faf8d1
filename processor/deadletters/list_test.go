package deadletters

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestFilters(t *testing.T) {
	w := newWorld(t)
	other := w.letter(schemas.Events, "evt_2", "org_2")
	other.Event.Reason, other.Event.Source, other.Event.Type = "no_type", "/billing", "loop.started"
	w.bury(w.letter(schemas.Inbound, "evt_1", "org_1"), other)
	time.Sleep(10 * time.Millisecond)
	between := time.Now()
	time.Sleep(10 * time.Millisecond)
	w.bury(w.letter(schemas.Inbound, "evt_3", "org_1"))

	for name, test := range map[string]struct {
		filter Filter
		want   []string
	}{
		"all":             {Filter{}, []string{"evt_1", "evt_2", "evt_3"}},
		"reason":          {Filter{Reasons: []string{"no_type", "x"}}, []string{"evt_2"}},
		"source":          {Filter{Sources: []string{"stripe"}}, []string{"evt_1", "evt_3"}},
		"organization":    {Filter{Organizations: []string{"org_2"}}, []string{"evt_2"}},
		"type":            {Filter{Types: []string{"invoice.paid"}}, []string{"evt_1", "evt_3"}},
		"our event id":    {Filter{EventIDs: []string{"evt_3"}}, []string{"evt_3"}},
		"the source's id": {Filter{EventIDs: []string{"of_evt_1", "evt_2"}}, []string{"evt_1", "evt_2"}},
		"since":           {Filter{Since: between}, []string{"evt_3"}},
		"until":           {Filter{Until: between}, []string{"evt_1", "evt_2"}},
		"since and until": {Filter{Since: between, Until: between.Add(time.Nanosecond)}, nil},
		"since tomorrow":  {Filter{Since: between.Add(24 * time.Hour)}, nil},
		"two that differ": {Filter{Organizations: []string{"org_2"}, Sources: []string{"stripe"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := w.found(test.filter)
			require.ElementsMatch(t, test.want, got)
		})
	}
}

func TestOnlyWhatIsCommittedIsRead(t *testing.T) {
	w := newWorld(t)
	all, _ := w.found(Filter{})
	require.Empty(t, all, "an empty topic has an end too")
	w.end(kgo.TryAbort, w.letter(schemas.Inbound, "evt_aborted", "org_1"))
	all, _ = w.found(Filter{})
	require.Empty(t, all)

	w.bury(w.letter(schemas.Inbound, "evt_1", "org_1"))
	w.open(w.letter(schemas.Inbound, "evt_open", "org_1"))
	go func() {
		time.Sleep(2 * quiet)
		_ = w.client.EndTransaction(t.Context(), kgo.TryCommit)
	}()
	all, _ = w.found(Filter{})
	require.Equal(t, []string{"evt_1", "evt_open"}, all, "an open transaction is waited for")
}

func TestGarbageIsNoLetter(t *testing.T) {
	w := newWorld(t)
	w.bury(w.letter(schemas.Inbound, "evt_1", "org_1"))
	require.NoError(t, w.client.BeginTransaction())
	w.write(&kgo.Record{Topic: w.cluster.Topic(schemas.InboundDead), Value: []byte("\xff")})
	w.write(&kgo.Record{Topic: w.cluster.Topic(schemas.InboundDead)})
	require.NoError(t, w.client.EndTransaction(t.Context(), kgo.TryCommit))
	all, _ := w.found(Filter{Sources: []string{"stripe"}})
	require.Equal(t, []string{"evt_1"}, all)
}

func TestAListIsALineALetter(t *testing.T) {
	w := newWorld(t)
	binary := w.letter(schemas.InboundUnrouted, "evt_2", "org_1")
	binary.Body = []byte("\xff\x00")
	old := &webhooksv1.DeadInbound{Event: rowOf("evt_3"), Body: []byte("<old>")}
	w.bury(w.letter(schemas.Inbound, "evt_1", "org_1"), binary, old)
	w.replay(Replay{Filter: Filter{EventIDs: []string{"evt_1"}}})

	list := func(bodies bool) (lines []map[string]any) {
		var out bytes.Buffer
		require.NoError(t, List(t.Context(), w.cluster, Filter{}, bodies, &out, slog.New(slog.DiscardHandler)))
		for text := range strings.Lines(out.String()) {
			var line map[string]any
			require.NoError(t, json.Unmarshal([]byte(text), &line))
			lines = append(lines, line)
		}
		require.Len(t, lines, 3)
		return lines
	}
	lines := list(false)
	first := lines[0]
	for member, want := range map[string]any{
		"eventId": "evt_1", "source": "stripe", "sourceEventId": "of_evt_1", "organizationId": "org_1", "account": "cus_1",
		"type": "invoice.paid", "reason": "malformed", "receivedAt": "1970-01-01T00:00:00.001Z", "topic": schemas.Inbound,
		"partition": float64(w.cluster.PartitionOf("org_1")), "offset": float64(0), "unreplayable": nil,
		"letter": []any{float64(w.cluster.PartitionOf("org_1")), float64(0)},
	} {
		require.Equal(t, want, first[member], member)
	}
	for _, member := range []string{"buriedAt", "replayedAt"} {
		at, err := time.Parse(time.RFC3339, first[member].(string))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), at, time.Minute)
	}
	require.NotContains(t, first, "body")
	require.Nil(t, lines[1]["replayedAt"])
	require.Equal(t, earlier, lines[2]["unreplayable"])

	lines = list(true)
	require.Equal(t, `{"id":"evt_1"}`, lines[0]["body"])
	require.Equal(t, "/wA=", lines[1]["bodyBase64"])
	require.NotContains(t, lines[1], "body")
	require.Equal(t, "<old>", lines[2]["body"])
}
