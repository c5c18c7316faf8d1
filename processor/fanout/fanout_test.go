package fanout_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/fanout"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// table is a copy of `endpoints` in memory.
type table struct {
	mu       sync.Mutex
	data     map[string][]byte
	watchers []func(key, value []byte)
	scans    int
}

func newTable() *table { return &table{data: map[string][]byte{}} }

func (c *table) Get(key []byte) ([]byte, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value, ok := c.data[string(key)]
	return value, ok, nil
}

func (c *table) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scans++
	for _, key := range slices.Sorted(maps.Keys(c.data)) {
		if strings.HasPrefix(key, string(prefix)) && !fn([]byte(key), c.data[key]) {
			break
		}
	}
	return nil
}

func (c *table) OnChange(fn func(key, value []byte)) { c.watchers = append(c.watchers, fn) }

// put writes endpoints of an organization and, after them, the version of its set.
func (c *table) put(org string, version uint64, endpoints ...*webhooksv1.Endpoint) {
	for _, e := range endpoints {
		value, _ := proto.Marshal(e)
		c.write(org+"/"+e.Id, value)
	}
	value, _ := proto.Marshal(&webhooksv1.EndpointSet{Version: version})
	c.write(org, value)
}

func (c *table) write(key string, value []byte) {
	c.mu.Lock()
	if value == nil {
		delete(c.data, key)
	} else {
		c.data[key] = value
	}
	c.mu.Unlock()
	for _, fn := range c.watchers {
		fn([]byte(key), value)
	}
}

type world struct {
	*streamtest.Harness
	t     testing.TB
	table *table
}

func newWorld(t testing.TB) *world {
	table := newTable()
	f, err := fanout.New(table, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	return &world{Harness: streamtest.New(t, f.Spec()), t: t, table: table}
}

func endpoint(name string, change func(*webhooksv1.Endpoint)) *webhooksv1.Endpoint {
	e := &webhooksv1.Endpoint{Id: id.Derive(id.Endpoint, name), Uid: &name, Enabled: true, EventTypes: []string{"*"}, Version: 3}
	if change != nil {
		change(e)
	}
	return e
}

func event(org, eventType, data string, more ...kgo.RecordHeader) *kgo.Record {
	return &kgo.Record{Value: []byte(data), Headers: append([]kgo.RecordHeader{
		{Key: schemas.HeaderID, Value: []byte(id.Derive(id.Event, org, eventType))}, {Key: schemas.HeaderOrganization, Value: []byte(org)},
		{Key: schemas.HeaderType, Value: []byte(eventType)}, {Key: schemas.HeaderSource, Value: []byte("/billing")},
		{Key: schemas.HeaderTime, Value: []byte("2025-12-31T23:59:59Z")}, {Key: schemas.HeaderAcceptedAt, Value: []byte("2026-01-01T00:00:00.125Z")},
	}, more...)}
}

func header(key, value string) kgo.RecordHeader {
	return kgo.RecordHeader{Key: key, Value: []byte(value)}
}

// delivered lists the endpoints that get the event, sorted.
func (w *world) delivered(out streamtest.Outputs) []string {
	w.t.Helper()
	ids := []string{}
	for _, d := range w.deliveries(out) {
		for _, target := range d.Targets {
			ids = append(ids, target.EndpointId)
		}
	}
	slices.Sort(ids)
	return ids
}

func (w *world) deliveries(out streamtest.Outputs) []*webhooksv1.Deliveries {
	w.t.Helper()
	return decode[webhooksv1.Deliveries](w.t, out, schemas.Deliveries)
}

func (w *world) rows(out streamtest.Outputs) []*webhooksv1.DeliveryRow {
	w.t.Helper()
	return decode[webhooksv1.DeliveryRow](w.t, out, schemas.DeliveryRows)
}

func decode[T any, P interface {
	*T
	proto.Message
}](t testing.TB, out streamtest.Outputs, topic string) []*T {
	t.Helper()
	var all []*T
	for _, r := range out.Topic(topic) {
		m := new(T)
		require.NoError(t, proto.Unmarshal(r.Value, P(m)))
		all = append(all, m)
	}
	return all
}

func TestEventGoesToItsOrganizationsEndpoints(t *testing.T) {
	w := newWorld(t)
	mine, other := endpoint("mine", nil), endpoint("other", nil)
	w.table.put("org_1", 4, mine)
	w.table.put("org_2", 9, other)
	w.table.put("org_10", 9, other)

	out := w.Process(event("org_1", "loop.completed", `{"loopId":"dcm.order", "n": 1.50}`, header(schemas.HeaderSubject, `a"b`),
		header(schemas.HeaderCausationID, "evt_cause"), header(schemas.HeaderCauseSource, "stripe"), header(schemas.HeaderCauseEventID, "evt_s"),
		header(schemas.HeaderEndpointSet, "4")))
	eventID := id.Derive(id.Event, "org_1", "loop.completed")
	body := `{"id":"` + eventID + `","type":"loop.completed","timestamp":"2025-12-31T23:59:59.000Z","organizationId":"org_1",` +
		`"source":"/billing","subject":"a\"b","correlationId":null,"causationId":"evt_cause","schemaVersion":1,"data":{"loopId":"dcm.order", "n": 1.50}}`
	deliveryID := id.Derive(id.Delivery, eventID, mine.Id, "")
	accepted := int64(1767225600125)

	deliveries := w.deliveries(out)
	require.Len(t, deliveries, 1)
	require.Equal(t, body, string(deliveries[0].Event.Body), "the data as it came")
	require.True(t, json.Valid(deliveries[0].Event.Body))
	requireProto(t, &webhooksv1.Deliveries{
		Event:              &webhooksv1.OutboundEvent{Id: eventID, OrganizationId: "org_1", Type: "loop.completed", AcceptedUnixMs: accepted, Body: []byte(body)},
		EndpointSetVersion: 4, CreatedUnixMs: w.Now.UnixMilli(),
		Targets: []*webhooksv1.Target{{DeliveryId: deliveryID, EndpointId: mine.Id, EndpointVersion: 3}},
	}, deliveries[0])

	rows := w.rows(out)
	require.Len(t, rows, 1)
	requireProto(t, &webhooksv1.DeliveryRow{
		DeliveryId: deliveryID, OrganizationId: "org_1", EndpointId: mine.Id, EventId: eventID, EventType: "loop.completed", Status: "waiting",
		AcceptedUnixMs: accepted, NextAttemptUnixMs: w.Now.UnixMilli(), Version: 1, CreatedUnixMs: w.Now.UnixMilli(),
	}, rows[0])

	events := decode[webhooksv1.EventRow](t, out, schemas.EventRows)
	require.Len(t, events, 1)
	requireProto(t, &webhooksv1.EventRow{
		EventId: eventID, OrganizationId: "org_1", Type: "loop.completed", Source: "/billing", Subject: `a"b`, OccurredUnixMs: 1767225599000,
		AcceptedUnixMs: accepted, CauseSource: "stripe", CauseEventId: "evt_s", CausationId: "evt_cause", SchemaVersion: 1, Matched: 1,
		Data: []byte(`{"loopId":"dcm.order", "n": 1.50}`),
	}, events[0])
}

func requireProto(t testing.TB, want, got proto.Message) {
	t.Helper()
	require.True(t, proto.Equal(want, got), "want %v\ngot  %v", want, got)
}

func TestMatching(t *testing.T) {
	patterns := func(p ...string) func(*webhooksv1.Endpoint) {
		return func(e *webhooksv1.Endpoint) { e.EventTypes = p }
	}
	loops := func(loops ...string) func(*webhooksv1.Endpoint) {
		return func(e *webhooksv1.Endpoint) { e.LoopIds = loops }
	}
	filter := func(f string) func(*webhooksv1.Endpoint) {
		return func(e *webhooksv1.Endpoint) { e.Filter = &f }
	}
	for _, tc := range []struct {
		name      string
		endpoint  func(*webhooksv1.Endpoint)
		eventType string
		data      string
		want      bool
	}{
		{"exact", patterns("loop.started"), "loop.started", `{}`, true},
		{"exact, other", patterns("loop.started"), "loop.started.late", `{}`, false},
		{"prefix", patterns("loop.*"), "loop.transition.executed", `{}`, true},
		{"prefix needs its dot", patterns("loop.*"), "loop_commitment.threshold_reached", `{}`, false},
		{"prefix without dot", patterns("loop*"), "loop_commitment.threshold_reached", `{}`, true},
		{"one of several", patterns("import.*", "loop.started"), "loop.started", `{}`, true},
		{"all", patterns("*"), "subscription.updated", `{}`, true},
		{"all excludes operational types", patterns("*"), "endpoint.disabled", `{}`, false},
		{"all excludes the other too", patterns("*"), "delivery.exhausted", `{}`, false},
		{"all beside the name", patterns("*", "endpoint.disabled"), "endpoint.disabled", `{}`, true},
		{"operational by beginning", patterns("endpoint.*"), "endpoint.disabled", `{}`, true},
		{"loop", loops("dcm.order"), "loop.started", `{"loopId":"dcm.order"}`, true},
		{"another loop", loops("dcm.order"), "loop.started", `{"loopId":"dcm.returns"}`, false},
		{"no loop", loops("dcm.order"), "loop.started", `{}`, false},
		{"filter", filter(`data.total > 5`), "import.completed", `{"total":6}`, true},
		{"filter, no", filter(`data.total > 5`), "import.completed", `{"total":5}`, false},
		{"filter on attributes", filter(`source == "/billing" && event.organizationId == "org_1"`), "import.completed", `{}`, true},
		{"filter that cannot say", filter(`data.total > 5`), "import.completed", `{}`, false},
		{"filter that does not compile", filter(`data.total >`), "import.completed", `{"total":6}`, false},
		{"paused", func(e *webhooksv1.Endpoint) { e.Paused = true }, "import.completed", `{}`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.table.put("org_1", 1, endpoint("a", tc.endpoint))
			require.Equal(t, tc.want, len(w.delivered(w.Process(event("org_1", tc.eventType, tc.data)))) == 1)
		})
	}
}

func TestUnmatchedLeavesARow(t *testing.T) {
	w := newWorld(t)
	disabled := endpoint("disabled", func(e *webhooksv1.Endpoint) { e.Enabled = false })

	out := w.Process(event("org_1", "loop.started", `{}`))
	require.Empty(t, w.deliveries(out))
	rows := w.rows(out)
	require.Len(t, rows, 1, "no endpoint at all")
	require.Equal(t, "unmatched", rows[0].Status)
	require.Empty(t, rows[0].EndpointId)
	require.Zero(t, rows[0].NextAttemptUnixMs)
	require.Zero(t, decode[webhooksv1.EventRow](t, out, schemas.EventRows)[0].Matched)

	w.table.put("org_1", 1, disabled)
	rows = w.rows(w.Process(event("org_1", "loop.started", `{}`)))
	require.Len(t, rows, 1, "a disabled endpoint's match")
	require.Equal(t, "unmatched", rows[0].Status)
	require.Equal(t, disabled.Id, rows[0].EndpointId)

	enabled := endpoint("enabled", nil)
	w.table.put("org_1", 2, enabled)
	out = w.Process(event("org_1", "loop.started", `{}`))
	require.Equal(t, []string{enabled.Id}, w.delivered(out))
	require.Len(t, w.rows(out), 2)
}

func TestFanOutWaitsForTheEndpointsTheEventKnew(t *testing.T) {
	w := newWorld(t)
	old, fresh := endpoint("old", nil), endpoint("fresh", nil)
	w.table.put("org_1", 1, old)
	require.Len(t, w.delivered(w.Process(event("org_1", "loop.started", `{}`, header(schemas.HeaderEndpointSet, "1")))), 1)

	out := w.Process(event("org_1", "loop.completed", `{}`, header(schemas.HeaderEndpointSet, "2")))
	require.Empty(t, out, "it is held")
	require.True(t, w.Full(), "nothing may overtake it")
	require.Equal(t, int64(1), w.Watermark())
	require.Empty(t, w.Advance(w.Now))

	w.table.put("org_2", 9)
	require.False(t, w.Woken(), "another organization's change is nothing to it")
	w.table.put("org_1", 2, fresh)
	w.WaitWoken()
	require.Len(t, w.delivered(w.Advance(w.Now)), 2)
	require.False(t, w.Full())
	require.Equal(t, int64(2), w.Watermark())
	w.table.put("org_1", 3)
	require.False(t, w.Woken(), "it waits no more")
}

func TestWhatIsHeldIsFannedOutOnceBeforeWhatFollows(t *testing.T) {
	held := func(w *world) {
		w.table.put("org_1", 1, endpoint("a", nil))
		require.Empty(t, w.Process(event("org_1", "loop.started", `{}`, header(schemas.HeaderEndpointSet, "2"))))
	}
	types := func(out streamtest.Outputs) (list []string) {
		for _, row := range decode[webhooksv1.EventRow](t, out, schemas.EventRows) {
			list = append(list, row.Type)
		}
		return list
	}
	for name, happens := range map[string]func(w *world) streamtest.Outputs{
		"nothing else": func(w *world) streamtest.Outputs { return w.Advance(w.Now) },
		"the transaction that ends it aborts": func(w *world) streamtest.Outputs {
			w.Abort()
			require.True(t, w.Full())
			return w.Advance(w.Now)
		},
		"the owner dies": func(w *world) streamtest.Outputs { w.Crash(); return w.Redeliver() },
		"the owner stops before the change": func(w *world) streamtest.Outputs {
			w.table.put("org_1", 1)
			require.Empty(t, w.Stop())
			w.table.put("org_1", 2)
			return w.Redeliver()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			held(w)
			w.table.put("org_1", 2, endpoint("b", nil))
			require.Equal(t, []string{"loop.started"}, types(happens(w)))
			require.Equal(t, int64(1), w.Watermark())
			require.False(t, w.Full())
			require.Equal(t, []string{"loop.completed"}, types(w.Process(event("org_1", "loop.completed", `{}`))))
			require.Empty(t, w.Advance(w.Now))
		})
	}
	t.Run("the transaction that brought it aborts", func(t *testing.T) {
		w := newWorld(t)
		w.table.put("org_1", 1, endpoint("a", nil))
		w.Abort(event("org_1", "loop.started", `{}`, header(schemas.HeaderEndpointSet, "2")))
		require.False(t, w.Full())
		w.table.put("org_1", 2)
		require.Equal(t, []string{"loop.started"}, types(w.Redeliver()))
	})
}

// TestNoEventMissesAnEndpointOfItsVersion lets the copy change while events are fanned out: version n of the set has n
// endpoints.
func TestNoEventMissesAnEndpointOfItsVersion(t *testing.T) {
	const versions = 200
	w := newWorld(t)
	go func() {
		for v := range uint64(versions) {
			w.table.put("org_1", v+1, endpoint(fmt.Sprint(v), nil))
		}
	}()
	for v := 1; v <= versions; v += 7 {
		out := w.Process(event("org_1", "loop.started", `{}`, header(schemas.HeaderEndpointSet, fmt.Sprint(v))))
		for len(out) == 0 {
			w.WaitWoken()
			out = w.Advance(w.Now)
		}
		require.GreaterOrEqual(t, len(w.delivered(out)), v)
	}
}

func TestChangesOfEndpointsTakeEffect(t *testing.T) {
	w := newWorld(t)
	a := endpoint("a", nil)
	process := func() []string { return w.delivered(w.Process(event("org_1", "loop.started", `{}`))) }
	w.table.put("org_1", 1, a)
	require.Len(t, process(), 1)
	require.Len(t, process(), 1)
	require.Equal(t, 1, w.table.scans, "endpoints are read once")

	w.table.put("org_2", 1, endpoint("b", nil))
	require.Len(t, process(), 1)
	require.LessOrEqual(t, w.table.scans, 2)

	w.table.put("org_1", 2, endpoint("a", func(e *webhooksv1.Endpoint) { e.EventTypes = []string{"import.*"} }))
	require.Empty(t, process())
	w.table.put("org_1", 3, endpoint("a", nil))
	require.Len(t, process(), 1)
	w.table.write("org_1/"+a.Id, nil)
	require.Empty(t, process())
}

func TestThousandsOfEndpoints(t *testing.T) {
	const count = 2200 * streamtest.Partitions
	w := newWorld(t)
	var all []*webhooksv1.Endpoint
	for i := range count {
		all = append(all, endpoint(fmt.Sprint(i), nil))
	}
	w.table.put("org_1", 1, all...)
	out := w.Process(event("org_1", "loop.started", `{}`))
	require.Len(t, slices.Compact(w.delivered(out)), count)
	require.Len(t, w.rows(out), count)
	perPartition := map[int32]int{}
	for _, p := range out {
		if p.Topic != schemas.Deliveries {
			continue
		}
		var d webhooksv1.Deliveries
		require.NoError(t, proto.Unmarshal(p.Record.Value, &d))
		partition := kafka.PartitionOf(d.Targets[0].EndpointId, streamtest.Partitions)
		perPartition[partition]++
		for _, target := range d.Targets {
			require.Equal(t, partition, kafka.PartitionOf(target.EndpointId, streamtest.Partitions))
		}
	}
	for partition, records := range perPartition {
		require.LessOrEqual(t, records, 2, "partition %d", partition)
	}
}

func TestEventsThatCannotBeUsedAreBuried(t *testing.T) {
	for _, tc := range []struct {
		reason string
		in     *kgo.Record
	}{
		{"malformed_data", event("org_1", "loop.started", `[]`)},
		{"malformed_data", event("org_1", "loop.started", ``)},
		{"no_organization", event("a b", "loop.started", `{}`)},
		{"no_type", event("org_1", "", `{}`)},
		{"no_event_id", &kgo.Record{Value: []byte(`{}`), Headers: []kgo.RecordHeader{header(schemas.HeaderOrganization, "org_1")}}},
		{"too_large", event("org_1", "loop.started", `{"a":"`+strings.Repeat("a", 4<<20)+`"}`)},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			out := newWorld(t).Process(tc.in)
			letters := decode[webhooksv1.DeadInbound](t, out, schemas.InboundDead)
			require.Len(t, letters, 1)
			require.Equal(t, tc.reason, letters[0].Event.Reason)
			require.Len(t, out, 1)
			original := deadletters.Original(letters[0])
			require.Equal(t, schemas.Events, original.Topic)
			require.Equal(t, tc.in.Headers, original.Headers)
			require.Equal(t, tc.reason == "too_large", letters[0].Incomplete)
			if !letters[0].Incomplete {
				require.Equal(t, tc.in.Value, original.Value)
			}
		})
	}
}

// TestAnEventThatIsReplayedTwiceIsDeliveredTwice under the ids that it had: fan-out remembers nothing, so a replay must.
func TestAnEventThatIsReplayedTwiceIsDeliveredTwice(t *testing.T) {
	w := newWorld(t)
	w.table.put("org_1", 1, endpoint("a", nil))
	made := w.deliveries(w.Process(event("org_1", "loop.started", `{}`), event("org_1", "loop.started", `{}`)))
	require.Len(t, made, 2)
	require.Equal(t, made[0].Targets[0].DeliveryId, made[1].Targets[0].DeliveryId)
}

func FuzzFanOut(f *testing.F) {
	f.Add("loop.started", "subject", `{"loopId":"dcm.order"}`)
	f.Add("\xff", "\"\\\n", `{"a":[1,{"b":null}]}`)
	f.Fuzz(func(t *testing.T, eventType, subject, data string) {
		w := newWorld(t)
		w.table.put("org_1", 1, endpoint("a", nil))
		for _, d := range w.deliveries(w.Process(event("org_1", eventType, data, header(schemas.HeaderSubject, subject)))) {
			var body struct{ Data json.RawMessage }
			require.NoError(t, json.Unmarshal(d.Event.Body, &body))
			require.Equal(t, strings.TrimSpace(data), string(body.Data))
		}
	})
}

func BenchmarkFanOut(b *testing.B) {
	w := newWorld(b)
	w.table.put("org_1", 1, endpoint("a", nil))
	in := event("org_1", "subscription.updated", `{"change":"updated","snapshot":{"plan":"SCM_PRO"}}`)
	b.ReportAllocs()
	for b.Loop() {
		w.Process(in)
	}
}
