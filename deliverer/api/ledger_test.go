package api

import (
	"log/slog"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
)

// line is a line of the ledger as the API shows it.
func line(minute string, accepted, delivered, waiting, dead, unmatched int) map[string]any {
	return object(`{"minute":%q,"accepted":%d,"delivered":%d,"waiting":%d,"dead":%d,"unmatched":%d}`,
		minute, accepted, delivered, waiting, dead, unmatched)
}

func TestLedgerCountsEachEventAndEndpointOnce(t *testing.T) {
	w := newWorld(t)
	put := func(n int, d time.Duration, r row) {
		r.id, r.accepted, r.created = w.id(id.Delivery, n), start.Add(d), start.Add(d+time.Hour)
		w.delivery(r)
	}
	put(1, 0, row{status: "waiting", version: 1})
	put(1, 0, row{status: "delivered", version: 2})
	put(2, time.Second, row{status: "dead", version: 4})
	put(2, time.Second, row{status: "waiting", version: 3})
	put(3, 59999*time.Millisecond, row{status: "waiting"})
	put(4, 0, row{status: "unmatched"})
	put(5, 0, row{status: "unmatched", version: 1})
	put(5, 0, row{status: "unmatched", version: 1})
	put(6, time.Minute, row{status: "delivered"})
	put(7, 0, row{status: "dead", replay: w.id(id.Replay, 1)})
	put(8, 0, row{status: "delivered", test: 1})
	put(9, 0, row{status: "dead", org: "org_2"})

	got := w.get(t, 200, "/v1/orgs/org_1/ledger")
	require.Equal(t, map[string]any{"nextCursor": nil, "data": []any{
		line(at(time.Minute), 1, 1, 0, 0, 0),
		line(at(0), 5, 1, 1, 1, 2),
	}}, got)
	for _, m := range got["data"].([]any) {
		m := m.(map[string]any)
		require.Equal(t, m["accepted"], m["delivered"].(float64)+m["waiting"].(float64)+m["dead"].(float64)+m["unmatched"].(float64))
	}
	require.Equal(t, map[string]any{"nextCursor": nil, "data": []any{}}, w.get(t, 200, "/v1/orgs/org_3/ledger"))
}

func TestLedgerShowsWholeMinutes(t *testing.T) {
	w := newWorld(t)
	for n, d := range []time.Duration{0, 40 * time.Second, time.Minute, 2 * time.Minute, 2*time.Minute + 59*time.Second} {
		w.delivery(row{id: w.id(id.Delivery, n), accepted: start.Add(d)})
	}
	first, second, third := line(at(0), 2, 2, 0, 0, 0), line(at(time.Minute), 1, 1, 0, 0, 0), line(at(2*time.Minute), 2, 2, 0, 0, 0)
	for query, want := range map[string][]any{
		"since=" + at(0):               {third, second, first},
		"since=" + at(time.Minute):     {third, second},
		"since=" + at(time.Second):     {third, second},
		"since=" + at(time.Hour):       {},
		"until=" + at(2*time.Minute):   {second, first},
		"until=" + at(150*time.Second): {third, second, first},
		"until=" + at(0):               {},
		"since=" + at(time.Minute) + "&until=" + at(2*time.Minute): {second},
	} {
		t.Run(query, func(t *testing.T) {
			require.Equal(t, want, w.get(t, 200, "/v1/orgs/org_1/ledger?"+query)["data"])
		})
	}
}

func TestLedgerIsPagedByMinute(t *testing.T) {
	w := newWorld(t)
	var want []string
	for n, age := range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Hour, 3 * 24 * time.Hour, 60 * 24 * time.Hour} {
		accepted := time.Now().Add(-age)
		w.delivery(row{id: w.id(id.Delivery, n), accepted: accepted})
		want = append(want, httpapi.FormatTime(accepted.Truncate(time.Minute)))
	}
	for limit := 1; limit <= 6; limit++ {
		var seen []string
		for cursor, more := "", true; more; {
			body := w.get(t, 200, "/v1/orgs/org_1/ledger?limit="+string(rune('0'+limit))+cursor)
			require.LessOrEqual(t, len(body["data"].([]any)), limit)
			seen = append(seen, field(body["data"], "minute")...)
			next, _ := body["nextCursor"].(string)
			cursor, more = "&cursor="+url.QueryEscape(next), next != ""
		}
		require.Equal(t, want, seen, "by %d", limit)
	}
}

func TestLedgerCountsTheEventsThatHaveBeenShown(t *testing.T) {
	w := newWorld(t)
	accepted := time.Now().Add(-time.Minute)
	minute := httpapi.FormatTime(accepted.Truncate(time.Minute))
	deliver := func(n int, status string) {
		w.delivery(row{id: w.id(id.Delivery, n), accepted: accepted, status: status})
	}
	late := func(rows func()) (wait func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			time.Sleep(3 * rowsAgain)
			rows()
		}()
		return func() { <-done }
	}

	w.eventRow(2, accepted)
	deliver(1, "delivered")
	wait := late(func() { deliver(2, "waiting") })
	require.Equal(t, []any{line(minute, 2, 1, 1, 0, 0)}, w.get(t, 200, "/v1/orgs/org_1/ledger")["data"])
	wait()

	w.event = w.id(id.Event, 2)
	w.eventRow(0, accepted)
	wait = late(func() { deliver(3, "unmatched") })
	require.Equal(t, []any{line(minute, 3, 1, 1, 0, 1)}, w.get(t, 200, "/v1/orgs/org_1/ledger")["data"])
	wait()

	// What a list's bounds or its page leave out is not waited for, and what does not come not without end.
	w.event = w.id(id.Event, 3)
	w.eventRow(1, accepted.Add(-10*time.Minute))
	w.delivery(row{id: w.id(id.Delivery, 4), accepted: accepted.Add(-20 * time.Minute)})
	began := time.Now()
	w.get(t, 200, "/v1/orgs/org_1/ledger?limit=1")
	w.get(t, 200, "/v1/orgs/org_1/ledger?since="+minute)
	require.Less(t, time.Since(began), rowsApart)
	require.Len(t, w.get(t, 200, "/v1/orgs/org_1/ledger")["data"], 2)
	require.GreaterOrEqual(t, time.Since(began), rowsApart)
}

func TestLedgerRefuses(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{1, 2} {
		w.delivery(row{id: w.id(id.Delivery, n), accepted: start.Add(time.Duration(n) * time.Minute)})
	}
	next := url.QueryEscape(w.get(t, 200, "/v1/orgs/org_1/ledger?limit=1")["nextCursor"].(string))
	for _, query := range []string{
		"since=yesterday", "until=", "limit=0", "status=dead", "cursor=x", "since=" + at(0) + "&since=" + at(0),
		"since=" + at(0) + "&cursor=" + next,
	} {
		t.Run(query, func(t *testing.T) { w.get(t, 400, "/v1/orgs/org_1/ledger?"+query) })
	}
	w.get(t, 400, "/v1/orgs/org_2/ledger?cursor="+next)
}

// keys are the keys of org_1 by their one scope.
type keys struct{}

func (keys) Authenticate(bearer string) (httpapi.Principal, bool) {
	return httpapi.Principal{Organization: "org_1", Scopes: map[string]bool{bearer: true}}, true
}

func TestReadsNeedTheirScope(t *testing.T) {
	w := newWorld(t)
	r := httpapi.NewRouter(keys{}, slog.New(slog.DiscardHandler))
	New(w.conn, Tables{Replays: w.replays, Endpoints: w.endpoints, Health: w.health}, slog.New(slog.DiscardHandler)).Register(r)
	for _, path := range []string{"ledger", "deliveries", "events"} {
		for bearer, status := range map[string]int{"deliveries:read": 200, "endpoints:read": 403} {
			var ctx fasthttp.RequestCtx
			ctx.Request.Header.SetMethod(http.MethodGet)
			ctx.Request.SetRequestURI("/v1/orgs/org_1/" + path)
			ctx.Request.Header.Set("Authorization", "Bearer "+bearer)
			r.Handler()(&ctx)
			require.Equal(t, status, ctx.Response.StatusCode(), "%s with %s", path, bearer)
		}
	}
}
