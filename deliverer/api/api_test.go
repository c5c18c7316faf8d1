package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// start is yesterday at midnight: rows that are older than their table's retention vanish.
var start = time.Now().UTC().Truncate(24 * time.Hour).Add(-24 * time.Hour)

// at is a time after start as the API writes it.
func at(d time.Duration) string { return start.Add(d).Format("2006-01-02T15:04:05.000Z") }

func TestDeliveriesAreListedNewestFirstInPages(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.delivery(row{id: w.id(id.Delivery, i), created: start.Add(time.Duration(i/2) * time.Second)})
	}
	var seen []string
	cursor := ""
	for pages := 0; ; pages++ {
		body := w.get(t, 200, "/v1/orgs/org_1/deliveries?limit=3"+cursor)
		for _, d := range body["data"].([]any) {
			seen = append(seen, d.(map[string]any)["createdAt"].(string)+d.(map[string]any)["id"].(string))
		}
		if body["nextCursor"] == nil {
			require.Equal(t, 2, pages)
			break
		}
		cursor = "&cursor=" + url.QueryEscape(body["nextCursor"].(string))
	}
	require.Len(t, seen, 7)
	for i := range seen[1:] {
		require.Greater(t, seen[i], seen[i+1])
	}
}

func TestListsReachBackAsFarAsThereIsSomething(t *testing.T) {
	w := newWorld(t)
	ages := []time.Duration{time.Minute, 5 * time.Hour, 3 * 24 * time.Hour, 30 * 24 * time.Hour, 60 * 24 * time.Hour}
	var deliveries, events []string
	for i, age := range ages {
		created := time.Now().Add(-age)
		w.event = w.id(id.Event, i)
		w.eventRow(1, created)
		w.delivery(row{id: w.id(id.Delivery, i), accepted: created, created: created})
		deliveries, events = append(deliveries, w.id(id.Delivery, i)), append(events, w.event)
	}
	for limit := 1; limit <= 6; limit++ {
		for path, want := range map[string][]string{
			"deliveries?": deliveries, "deliveries?status=delivered&": deliveries, "events?": events, "events?status=delivered&": events,
		} {
			var seen []string
			for cursor, more := "", true; more; {
				body := w.get(t, 200, fmt.Sprintf("/v1/orgs/org_1/%slimit=%d%s", path, limit, cursor))
				seen = append(seen, field(body["data"], "id")...)
				next, _ := body["nextCursor"].(string)
				cursor, more = "&cursor="+url.QueryEscape(next), next != ""
			}
			require.Equal(t, want, seen, "%s by %d", path, limit)
		}
	}
}

func TestDeliveryIsShownInItsNewestVersionWithItsAttempts(t *testing.T) {
	w := newWorld(t)
	dlv := w.id(id.Delivery, 1)
	w.delivery(row{id: dlv, status: "waiting", version: 1, next: start.Add(5 * time.Second)})
	w.delivery(row{id: dlv, status: "dead", reason: "exhausted", version: 3, attempts: 2, ended: start.Add(time.Minute)})
	w.delivery(row{id: dlv, status: "waiting", version: 2, attempts: 1, next: start.Add(5 * time.Minute)})
	w.attempt(dlv, 2, 503, "http_5xx", "Sorry")
	w.attempt(dlv, 1, 0, "timeout_total", "")
	w.attempt(w.id(id.Delivery, 2), 1, 200, "", "another's")

	got := w.get(t, 200, "/v1/orgs/org_1/deliveries/"+dlv)
	attempts := got["attempts"].([]any)
	delete(got, "attempts")
	require.Equal(t, object(`{"id":%q,"organizationId":"org_1","endpointId":%q,"eventId":%q,"eventType":"loop.completed",
		"status":"dead","reason":"exhausted","attemptCount":2,"nextAttemptAt":null,"replayId":null,"test":false,
		"createdAt":%q,"endedAt":%q}`, dlv, w.endpoint, w.event, at(0), at(time.Minute)), got)
	require.Len(t, attempts, 2)
	require.Equal(t, object(`{"id":%q,"deliveryId":%q,"number":1,"trigger":"schedule","startedAt":%q,
		"durationMs":9,"timings":{"queueMs":1,"dnsMs":2,"connectMs":3,"tlsMs":4,"firstByteMs":5,"bodyMs":6},
		"outcome":"failure","statusCode":null,"errorClass":"timeout_total","responseExcerpt":"",
		"nextAttemptAt":%q,"maybeRepeated":false}`, id.Derive(id.Attempt, dlv, "1"), dlv, at(time.Second), at(5*time.Minute)), attempts[0])
	require.Equal(t, 503.0, attempts[1].(map[string]any)["statusCode"])
	require.Equal(t, "Sorry", attempts[1].(map[string]any)["responseExcerpt"])
}

func TestDeliveryAndItsAttemptsAgree(t *testing.T) {
	w := newWorld(t)
	delivered, attempted, torn := w.id(id.Delivery, 1), w.id(id.Delivery, 2), w.id(id.Delivery, 3)
	w.delivery(row{id: delivered, version: 2, attempts: 1})
	w.delivery(row{id: attempted, version: 1, status: "waiting"})
	w.attempt(attempted, 1, 200, "", "")
	w.delivery(row{id: torn, version: 2, attempts: 2})
	w.attempt(torn, 1, 200, "", "")
	late := make(chan struct{})
	go func() {
		defer close(late)
		time.Sleep(3 * rowsAgain)
		w.attempt(delivered, 1, 200, "", "")
		w.delivery(row{id: attempted, version: 2, attempts: 1})
	}()
	for _, dlv := range []string{delivered, attempted} {
		got := w.get(t, 200, "/v1/orgs/org_1/deliveries/"+dlv)
		require.Equal(t, "delivered", got["status"])
		require.Len(t, got["attempts"], 1)
	}
	<-late
	got := w.get(t, 200, "/v1/orgs/org_1/deliveries/"+torn)
	require.Len(t, got["attempts"], 1, "what does not come is not waited for without end")
}

func TestDeliveryFilters(t *testing.T) {
	w := newWorld(t)
	other := w.id(id.Endpoint, 2)
	w.delivery(row{id: w.id(id.Delivery, 1), status: "delivered", created: start})
	w.delivery(row{id: w.id(id.Delivery, 2), status: "waiting", created: start.Add(time.Millisecond)})
	w.delivery(row{id: w.id(id.Delivery, 3), status: "dead", endpoint: other, created: start.Add(time.Second)})
	w.delivery(row{id: w.id(id.Delivery, 4), status: "dead", eventType: "order.allocation_failed", created: start.Add(2 * time.Second)})
	// Known to the ledger, and no delivery.
	w.delivery(row{id: w.id(id.Delivery, 5), status: "unmatched", created: start})
	w.delivery(row{id: w.id(id.Delivery, 6), status: "dead", org: "org_2", created: start})

	cases := map[string][]int{
		"":                                     {4, 3, 2, 1},
		"status=dead":                          {4, 3},
		"status=dead&status=waiting":           {4, 3, 2},
		"endpointId=" + other:                  {3},
		"eventId=" + w.event:                   {4, 3, 2, 1},
		"eventId=" + w.id(id.Event, 9):         {},
		"eventType=order.allocation_failed":    {4},
		"status=dead&endpointId=" + w.endpoint: {4},
		"since=" + at(time.Millisecond):        {4, 3, 2},
		"since=" + strings.Replace(at(0), "0Z", "01Z", 1):                {4, 3, 2},
		"until=" + at(time.Millisecond):                                  {1},
		"until=" + strings.Replace(at(time.Millisecond), "1Z", "11Z", 1): {2, 1},
		"since=" + at(24*time.Hour):                                      {},
	}
	for query, want := range cases {
		t.Run(query, func(t *testing.T) {
			body := w.get(t, 200, "/v1/orgs/org_1/deliveries?"+query)
			require.Nil(t, body["nextCursor"])
			ids := make([]string, 0, len(want))
			for _, n := range want {
				ids = append(ids, w.id(id.Delivery, n))
			}
			require.Equal(t, ids, field(body["data"], "id"))
		})
	}
}

func TestEventsSayWhatBecameOfThem(t *testing.T) {
	w := newWorld(t)
	cases := []struct {
		name    string
		matched int
		rows    []row
		status  string
		shown   int
	}{
		{"delivered", 2, []row{{status: "delivered"}, {status: "delivered"}}, "delivered", 2},
		{"dead if any is", 3, []row{{status: "delivered"}, {status: "dead"}, {status: "waiting"}}, "dead", 3},
		{"else waiting", 2, []row{{status: "delivered"}, {status: "waiting"}}, "waiting", 2},
		{"unmatched", 0, []row{{status: "unmatched"}}, "unmatched", 0},
		{"a disabled endpoint beside one that took it", 1, []row{{status: "unmatched"}, {status: "delivered"}}, "delivered", 1},
		{"replays and tests do not count", 1, []row{{status: "delivered"}, {status: "dead", replay: w.id(id.Replay, 1)}, {status: "dead", test: 1}}, "delivered", 3},
	}
	for i, c := range cases {
		w.event = w.id(id.Event, i)
		w.eventRow(c.matched, start.Add(time.Duration(i)*time.Second))
		for j, r := range c.rows {
			r.id = w.id(id.Delivery, i*10+j)
			r.accepted = start.Add(time.Duration(i) * time.Second)
			w.delivery(r)
		}
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, 200, "/v1/orgs/org_1/events/"+w.id(id.Event, i))
			require.Equal(t, c.status, got["status"])
			require.Len(t, got["deliveries"], c.shown)
		})
	}
	for _, status := range []string{"delivered", "dead", "waiting", "unmatched"} {
		t.Run("filter "+status, func(t *testing.T) {
			var want []string
			for i := len(cases) - 1; i >= 0; i-- {
				if cases[i].status == status {
					want = append(want, w.id(id.Event, i))
				}
			}
			body := w.get(t, 200, "/v1/orgs/org_1/events?status="+status)
			require.Equal(t, want, field(body["data"], "id"))
			body = w.get(t, 200, "/v1/orgs/org_1/events?since="+at(0)+"&until="+at(time.Hour)+"&status="+status)
			require.Equal(t, want, field(body["data"], "id"))
		})
	}
}

func TestEventIsShownWhole(t *testing.T) {
	w := newWorld(t)
	w.eventRow(1, start)
	got := w.get(t, 200, "/v1/orgs/org_1/events/"+w.event)
	require.Equal(t, object(`{"id":%q,"type":"loop.completed","timestamp":%q,"organizationId":"org_1",
		"source":"stripe","subject":null,"correlationId":"cor-1","causationId":null,"schemaVersion":1,
		"data":{"loopId":"dcm.order","n":9007199254740993},"acceptedAt":%q,
		"cause":{"source":"stripe","eventId":"evt_foreign"},"status":"waiting","deliveries":[]}`, w.event, at(-time.Minute), at(0)), got)
	// Numbers keep their digits.
	require.Contains(t, w.body(t, 200, "/v1/orgs/org_1/events/"+w.event), "9007199254740993")
}

func TestEventsArePagedByAcceptance(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.event = w.id(id.Event, i)
		w.eventRow(1, start.Add(time.Duration(i)*time.Millisecond))
	}
	first := w.get(t, 200, "/v1/orgs/org_1/events?limit=2&eventType=loop.completed")
	require.Equal(t, []string{w.id(id.Event, 4), w.id(id.Event, 3)}, field(first["data"], "id"))
	cursor := url.QueryEscape(first["nextCursor"].(string))
	second := w.get(t, 200, "/v1/orgs/org_1/events?limit=3&eventType=loop.completed&cursor="+cursor)
	require.Equal(t, []string{w.id(id.Event, 2), w.id(id.Event, 1), w.id(id.Event, 0)}, field(second["data"], "id"))
	require.Nil(t, second["nextCursor"])
	w.get(t, 400, "/v1/orgs/org_1/events?limit=2&cursor="+cursor)
	w.get(t, 400, "/v1/orgs/org_1/deliveries?eventType=loop.completed&cursor="+cursor)
}

func TestWhatIsRefused(t *testing.T) {
	w := newWorld(t)
	w.delivery(row{id: w.id(id.Delivery, 1), org: "org_2"})
	w.delivery(row{id: w.id(id.Delivery, 2), status: "unmatched"})
	cases := map[string]int{
		"/v1/orgs/org_1/deliveries/" + w.id(id.Delivery, 1): 404,
		"/v1/orgs/org_1/deliveries/" + w.id(id.Delivery, 2): 404,
		"/v1/orgs/org_1/deliveries/" + w.id(id.Delivery, 3): 404,
		"/v1/orgs/org_1/deliveries/nonsense":                404,
		"/v1/orgs/org_1/deliveries/" + w.event:              404,
		"/v1/orgs/org_1/events/" + w.id(id.Event, 3):        404,
		"/v1/orgs/org_1/events/x'; DROP TABLE events":       404,
		"/v1/orgs/org_1/deliveries?status=unmatched":        400,
		"/v1/orgs/org_1/deliveries?status=Dead":             400,
		"/v1/orgs/org_1/deliveries?endpointId=1":            400,
		"/v1/orgs/org_1/deliveries?since=yesterday":         400,
		"/v1/orgs/org_1/deliveries?limit=251":               400,
		"/v1/orgs/org_1/deliveries?colour=red":              400,
		"/v1/orgs/org_1/events?status=lost":                 400,
		"/v1/orgs/org_1/events?eventType=a'%20OR%20'1'='1":  200,
	}
	for path, status := range cases {
		t.Run(path, func(t *testing.T) { w.get(t, status, path) })
	}
}

func TestWithoutClickHouseTheAnswerIs503(t *testing.T) {
	conn, err := clickhouse.Open(t.Context(), "clickhouse://127.0.0.1:1/webhooks")
	require.NoError(t, err)
	w := serve(conn)
	for _, path := range []string{"deliveries", "events", "ledger", "deliveries/" + w.id(id.Delivery, 1), "events/" + w.id(id.Event, 1)} {
		body := w.get(t, 503, "/v1/orgs/org_1/"+path)
		require.Equal(t, "clickhouse_unavailable", body["code"])
	}
}

// world is the API over a database of its own, and what it takes to fill it.
type world struct {
	replays         *replayTable
	endpoints       rowsOf
	health          rowsOf
	t               *testing.T
	conn            driver.Conn
	handler         fasthttp.RequestHandler
	endpoint, event string
}

func serve(conn driver.Conn) *world {
	r := httpapi.NewRouter(httpapi.AdminKey("admin"), slog.New(slog.DiscardHandler))
	replays := &replayTable{rows: map[string]*webhooksv1.Replay{}}
	w := &world{conn: conn, replays: replays, endpoints: rowsOf{}, health: rowsOf{}}
	New(conn, Tables{replays, w.endpoints, w.health}, slog.New(slog.DiscardHandler)).Register(r)
	w.handler = r.Handler()
	w.endpoint, w.event = w.id(id.Endpoint, 1), w.id(id.Event, 1)
	return w
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := testenv.ClickHouse(t)
	require.NoError(t, clickhouse.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)))
	conn, err := clickhouse.Open(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	w := serve(conn)
	w.t = t
	return w
}

// id is an id that depends only on n.
func (w *world) id(prefix string, n int) string { return id.Derive(prefix, fmt.Sprint(n)) }

// row is a version of a delivery; what is left out has an ordinary value.
type row struct {
	id, org, endpoint, eventType, status, reason, replay string
	version                                              uint64
	attempts                                             uint16
	test                                                 uint8
	accepted, created, next, ended                       time.Time
}

func (w *world) delivery(r row) {
	w.t.Helper()
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&r.org, "org_1")
	def(&r.endpoint, w.endpoint)
	def(&r.eventType, "loop.completed")
	def(&r.status, "delivered")
	if r.accepted.IsZero() {
		r.accepted = start
	}
	if r.created.IsZero() {
		r.created = start
	}
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	w.insert("deliveries (delivery_id, organization_id, endpoint_id, event_id, event_type, status, reason, accepted_at, "+
		"next_attempt_at, ended_at, attempt_count, replay_id, test, version, created_at)",
		r.id, r.org, r.endpoint, w.event, r.eventType, r.status, r.reason, r.accepted, optional(r.next), optional(r.ended),
		r.attempts, r.replay, r.test, r.version, r.created)
}

func (w *world) attempt(delivery string, number int, status uint16, class, excerpt string) {
	w.t.Helper()
	next := start.Add(5 * time.Minute)
	w.insert("delivery_attempts (attempt_id, delivery_id, event_id, organization_id, number, trigger, started_at, duration_ms, "+
		"queue_ms, dns_ms, connect_ms, tls_ms, first_byte_ms, body_ms, outcome, status_code, error_class, response_excerpt, next_attempt_at)",
		id.Derive(id.Attempt, delivery, fmt.Sprint(number)), delivery, w.event, "org_1", uint16(number), "schedule",
		start.Add(time.Duration(number)*time.Second), uint32(9), uint32(1), uint32(2), uint32(3), uint32(4), uint32(5), uint32(6),
		"failure", status, class, excerpt, &next)
}

func (w *world) eventRow(matched int, accepted time.Time) {
	w.t.Helper()
	w.insert("events (event_id, organization_id, type, source, occurred_at, accepted_at, cause_source, cause_event_id, "+
		"correlation_id, schema_version, matched, data)",
		w.event, "org_1", "loop.completed", "stripe", accepted.Add(-time.Minute), accepted, "stripe", "evt_foreign", "cor-1",
		uint16(1), uint16(matched), `{"loopId":"dcm.order","n":9007199254740993}`)
}

func (w *world) insert(into string, values ...any) {
	w.t.Helper()
	batch, err := w.conn.PrepareBatch(w.t.Context(), "INSERT INTO "+into)
	require.NoError(w.t, err)
	defer batch.Close()
	require.NoError(w.t, batch.Append(values...))
	require.NoError(w.t, batch.Send())
}

func (w *world) body(t *testing.T, status int, path string) string {
	t.Helper()
	var ctx fasthttp.RequestCtx
	ctx.Request.Header.SetMethod(http.MethodGet)
	ctx.Request.SetRequestURI(strings.ReplaceAll(path, " ", "%20"))
	ctx.Request.Header.Set("Authorization", "Bearer admin")
	w.handler(&ctx)
	body := string(ctx.Response.Body())
	require.Equal(t, status, ctx.Response.StatusCode(), body)
	return body
}

func (w *world) get(t *testing.T, status int, path string) map[string]any {
	t.Helper()
	return object("%s", w.body(t, status, path))
}

func object(format string, args ...any) (o map[string]any) {
	if err := json.Unmarshal([]byte(fmt.Sprintf(format, args...)), &o); err != nil {
		panic(err)
	}
	return o
}

// field is one member of each object of a list.
func field(list any, name string) []string {
	values := make([]string, 0, len(list.([]any)))
	for _, o := range list.([]any) {
		values = append(values, o.(map[string]any)[name].(string))
	}
	return values
}
