package archive_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// start is three days ago: rows that are older than their table's retention vanish.
var start = time.Now().UTC().Truncate(24 * time.Hour).Add(-72 * time.Hour)

// history is a record that a test writes, and the archive that reads it.
type history struct {
	*archive.Archive
	t    *testing.T
	conn driver.Conn
}

func newHistory(t *testing.T) *history {
	t.Helper()
	url := testenv.ClickHouse(t)
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	a, err := archive.New(testenv.FakeKafka(t), conn, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return &history{a, t, conn}
}

// event is a row of events; what is left out has an ordinary value.
type event struct {
	name, org, kind, data string
	at                    time.Duration
}

func (e event) id() string { return id.Derive(id.Event, e.name) }

func (h *history) events(events ...event) {
	h.t.Helper()
	batch, err := h.conn.PrepareBatch(h.t.Context(), "INSERT INTO events (event_id, organization_id, type, source, subject, "+
		"occurred_at, accepted_at, correlation_id, causation_id, schema_version, data)")
	require.NoError(h.t, err)
	defer batch.Close()
	for _, e := range events {
		o, kind, data := e.org, e.kind, e.data
		if o == "" {
			o = org
		}
		if kind == "" {
			kind = "order.created"
		}
		if data == "" {
			data = `{"n":9007199254740993}`
		}
		at := start.Add(e.at)
		require.NoError(h.t, batch.Append(e.id(), o, kind, "/loops", "a \"b\"", at.Add(-time.Second), at, "cor", "", uint16(1), data))
	}
	require.NoError(h.t, batch.Send())
}

// delivered writes the rows of an event's delivery: the statuses that it went through.
func (h *history) delivered(e event, endpoint, replay string, test uint8, statuses ...string) {
	h.t.Helper()
	batch, err := h.conn.PrepareBatch(h.t.Context(), "INSERT INTO deliveries (delivery_id, organization_id, endpoint_id, event_id, status, "+
		"accepted_at, replay_id, test, version, created_at)")
	require.NoError(h.t, err)
	defer batch.Close()
	for version, status := range statuses {
		require.NoError(h.t, batch.Append(id.Derive(id.Delivery, e.id(), endpoint, replay), org, endpoint, e.id(), status,
			start.Add(e.at), replay, test, uint64(version+1), start.Add(e.at)))
	}
	require.NoError(h.t, batch.Send())
}

// all reads a range to its end, page by page.
func (h *history) all(r archive.Range) (found []*webhooksv1.OutboundEvent) {
	h.t.Helper()
	at := archive.Position{}
	for range 10_000 {
		page, err := h.Page(h.t.Context(), r, at)
		require.NoError(h.t, err)
		found = append(found, page.Events...)
		if page.End {
			return found
		}
		require.True(h.t, page.Next.After(at), "each page comes further")
		at = page.Next
	}
	require.FailNow(h.t, "the range does not end")
	return nil
}

func names(events []*webhooksv1.OutboundEvent, known []event) []string {
	list := []string{}
	for _, e := range events {
		i := slices.IndexFunc(known, func(k event) bool { return k.id() == e.Id })
		list = append(list, known[i].name)
	}
	return list
}

func TestWhichEventsAReplayDelivers(t *testing.T) {
	h := newHistory(t)
	ep, other := id.Derive(id.Endpoint, "a"), id.Derive(id.Endpoint, "b")
	const s = time.Second
	known := []event{
		{name: "delivered", at: 1 * s}, {name: "dead", at: 2 * s}, {name: "waiting", at: 3 * s}, {name: "none", at: 4 * s},
		{name: "disabled", at: 5 * s}, {name: "dead, then by a replay", at: 6 * s}, {name: "dead, also by a replay", at: 7 * s},
		{name: "another's", at: 8 * s}, {name: "tested", at: 9 * s},
		{name: "other type", at: 10 * s, kind: "import.failed"}, {name: "other type, dead", at: 11 * s, kind: "import.failed"},
		{name: "dead, retried", at: 12 * s},
		{name: "early", at: -s}, {name: "late", at: time.Hour}, {name: "foreign", at: s, org: "org_2"},
	}
	h.events(known...)
	by := map[string]event{}
	for _, e := range known {
		by[e.name] = e
	}
	rpl := id.Derive(id.Replay, "1")
	h.delivered(by["delivered"], ep, "", 0, "waiting", "delivered")
	h.delivered(by["dead"], ep, "", 0, "waiting", "dead")
	h.delivered(by["waiting"], ep, "", 0, "waiting")
	h.delivered(by["disabled"], ep, "", 0, "unmatched")
	h.delivered(by["dead, then by a replay"], ep, "", 0, "waiting", "dead")
	h.delivered(by["dead, then by a replay"], ep, rpl, 0, "delivered")
	h.delivered(by["dead, also by a replay"], ep, "", 0, "dead")
	h.delivered(by["dead, also by a replay"], ep, rpl, 0, "dead")
	h.delivered(by["another's"], other, "", 0, "delivered")
	h.delivered(by["tested"], ep, "", 1, "delivered")
	h.delivered(by["other type, dead"], ep, "", 0, "dead")
	h.delivered(by["dead, retried"], ep, "", 0, "waiting", "dead", "delivered")
	h.delivered(by["early"], ep, "", 0, "dead")
	h.delivered(by["late"], ep, "", 0, "dead")

	endpoint := &webhooksv1.Endpoint{Id: ep, OrganizationId: org, EventTypes: []string{"order.*"}}
	span := archive.Range{
		Organization: org, Endpoint: endpoint, SinceUnixMS: start.UnixMilli(), UntilUnixMS: start.Add(time.Hour).UnixMilli(),
	}
	failed := []string{"dead", "dead, also by a replay", "other type, dead"}
	missing := []string{"none", "disabled", "another's", "tested"}
	for _, tc := range []struct {
		only  string
		types []string
		want  []string
	}{
		{"failed", nil, failed},
		{"missing", nil, missing},
		{"undelivered", nil, []string{"dead", "none", "disabled", "dead, also by a replay", "another's", "tested", "other type, dead"}},
		{"all", nil, []string{
			"delivered", "dead", "waiting", "none", "disabled", "dead, then by a replay", "dead, also by a replay", "another's", "tested",
			"other type, dead", "dead, retried",
		}},
		{"failed", []string{"import.failed"}, []string{"other type, dead"}},
		{"missing", []string{"import.*"}, []string{}},
		{"undelivered", []string{"order.*"}, []string{"dead", "none", "disabled", "dead, also by a replay", "another's", "tested"}},
		{"all", []string{"import.failed", "nothing.*"}, []string{"other type, dead"}},
	} {
		t.Run(tc.only+" "+strings.Join(tc.types, " "), func(t *testing.T) {
			r := span
			r.Only, r.EventTypes = tc.only, tc.types
			require.Equal(t, tc.want, names(h.all(r), known))
			n, exact, err := h.Count(t.Context(), r)
			require.NoError(t, err)
			require.True(t, exact)
			require.EqualValues(t, len(tc.want), n)
		})
	}
}

func TestWhatIsMissingMatchesTheSubscription(t *testing.T) {
	h := newHistory(t)
	known := []event{
		{name: "a", data: `{"loopId":"dcm.order","total":5}`}, {name: "b", data: `{"loopId":"dcm.returns","total":5}`, at: 1},
		{name: "c", data: `{"total":50}`, at: time.Millisecond},
		{name: "operational", kind: schemas.TypeEndpointDisabled, at: 2 * time.Millisecond, data: `{"total":50,"loopId":"dcm.order"}`},
	}
	h.events(known...)
	for _, tc := range []struct {
		name     string
		endpoint *webhooksv1.Endpoint
		want     []string
		uncount  bool
	}{
		{"all", &webhooksv1.Endpoint{EventTypes: []string{"*"}}, []string{"a", "b", "c"}, false},
		{"an operational one by name", &webhooksv1.Endpoint{EventTypes: []string{schemas.TypeEndpointDisabled}}, []string{"operational"}, false},
		{"loops", &webhooksv1.Endpoint{EventTypes: []string{"*"}, LoopIds: []string{"dcm.order"}}, []string{"a"}, false},
		{"filter", &webhooksv1.Endpoint{EventTypes: []string{"*"}, Filter: proto.String(`data.total > 10`)}, []string{"c"}, true},
		{"filter and loops", &webhooksv1.Endpoint{EventTypes: []string{"*"}, LoopIds: []string{"dcm.order"}, Filter: proto.String(`data.total > 10`)}, []string{}, true},
		{"a filter that does not compile", &webhooksv1.Endpoint{EventTypes: []string{"*"}, Filter: proto.String(`(`)}, []string{}, true},
		{"no type", &webhooksv1.Endpoint{}, []string{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.endpoint.Id = id.Derive(id.Endpoint, "a")
			r := archive.Range{
				Organization: org, Endpoint: tc.endpoint, SinceUnixMS: start.UnixMilli(), UntilUnixMS: start.Add(time.Hour).UnixMilli(),
				Only: schemas.ReplayMissing,
			}
			require.ElementsMatch(t, tc.want, names(h.all(r), known))
			n, exact, err := h.Count(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, !tc.uncount, exact, "a filter would have to be run over all")
			if exact {
				require.EqualValues(t, len(tc.want), n)
			}
		})
	}
}

func TestALongRangeIsReadInOrderAndOnce(t *testing.T) {
	h := newHistory(t)
	var known []event
	for i := range 10_000 { // many at one time, and a day without any
		at := time.Duration(i/700) * time.Millisecond
		if i >= 5_000 {
			at += 40 * time.Hour
		}
		known = append(known, event{name: fmt.Sprint(i), at: at})
	}
	h.events(known...)
	r := archive.Range{
		Organization: org, Endpoint: &webhooksv1.Endpoint{Id: id.Derive(id.Endpoint, "a"), EventTypes: []string{"order.*"}},
		SinceUnixMS: start.UnixMilli(), UntilUnixMS: start.Add(60 * time.Hour).UnixMilli(), Only: schemas.ReplayMissing,
	}
	found := h.all(r)
	require.Len(t, found, len(known))
	at := archive.Position{}
	for _, e := range found {
		next := archive.Position{AcceptedUnixMS: e.AcceptedUnixMs, EventID: e.Id}
		require.True(t, next.After(at))
		at = next
	}
	n, _, err := h.Count(t.Context(), r)
	require.NoError(t, err)
	require.EqualValues(t, len(known), n)

	page, err := h.Page(t.Context(), r, archive.Position{})
	require.NoError(t, err)
	require.Len(t, page.Events, archive.PageEvents)
}

func TestAPageIsBoundedInBytes(t *testing.T) {
	h := newHistory(t)
	large := `{"x":"` + strings.Repeat("x", 300_000) + `"}`
	var known []event
	for i := range 10 {
		known = append(known, event{name: fmt.Sprint(i), at: time.Duration(i) * time.Millisecond, data: large})
	}
	h.events(known...)
	r := archive.Range{
		Organization: org, Endpoint: &webhooksv1.Endpoint{Id: id.Derive(id.Endpoint, "a"), EventTypes: []string{"*"}},
		SinceUnixMS: start.UnixMilli(), UntilUnixMS: start.Add(time.Hour).UnixMilli(), Only: schemas.ReplayAll,
	}
	page, err := h.Page(t.Context(), r, archive.Position{})
	require.NoError(t, err)
	require.Len(t, page.Events, 4)
	require.False(t, page.End)
	require.Len(t, h.all(r), 10)
}

func TestEventsAreTheBytesThatWereSent(t *testing.T) {
	h := newHistory(t)
	known := []event{{name: "a"}, {name: "b", at: time.Hour}, {name: "foreign", org: "org_2"}}
	h.events(known...)
	wanted := []*webhooksv1.TakenEvent{
		{EventId: known[0].id(), AcceptedUnixMs: start.UnixMilli()}, {EventId: known[1].id(), AcceptedUnixMs: start.Add(time.Hour).UnixMilli()},
		{EventId: known[2].id(), AcceptedUnixMs: start.UnixMilli()}, {EventId: id.Derive(id.Event, "gone"), AcceptedUnixMs: start.UnixMilli()},
	}
	found, err := h.Events(t.Context(), org, wanted)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names(found, known))
	require.Equal(t, string(outbound.Body(&cloudevent.Event{
		ID: known[0].id(), Type: "order.created", Source: "/loops", Subject: `a "b"`, Organization: org, OccurredUnixMS: start.Add(-time.Second).UnixMilli(),
		CorrelationID: "cor", Data: []byte(`{"n":9007199254740993}`),
	}, 1)), string(found[0].Body))
}
