package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/processor/plans"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org   = "org_1"
	admin = "admin-key"
)

// fakeTable is a table in memory. Reads behind a barrier fail while it is cut off; unread is a copy that has not begun.
type fakeTable struct {
	records  map[string][]byte
	watch    func(key, value []byte)
	cutOff   bool
	unread   bool
	age      time.Duration
	barriers []string
}

func (f *fakeTable) Get(key []byte) ([]byte, bool, error) {
	value, ok := f.records[string(key)]
	return value, ok, nil
}

func (f *fakeTable) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	var keys []string
	for key := range f.records {
		if strings.HasPrefix(key, string(prefix)) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !fn([]byte(key), f.records[key]) {
			return nil
		}
	}
	return nil
}

func (f *fakeTable) Check(context.Context) error {
	if f.unread {
		return errors.New("still being read")
	}
	return nil
}

func (f *fakeTable) Age() time.Duration { return f.age }

func (f *fakeTable) OnChange(fn func(key, value []byte)) { f.watch = fn }

func (f *fakeTable) WaitCurrent(_ context.Context, routingKey string) error {
	f.barriers = append(f.barriers, routingKey)
	if f.cutOff {
		return errors.New("cut off")
	}
	return nil
}

func (f *fakeTable) WaitAllCurrent(ctx context.Context) error { return f.WaitCurrent(ctx, "*") }

func (f *fakeTable) put(t *testing.T, key string, m proto.Message) {
	value, err := proto.Marshal(m)
	require.NoError(t, err)
	f.set(key, value)
}

func (f *fakeTable) set(key string, value []byte) {
	if value == nil {
		delete(f.records, key)
	} else {
		f.records[key] = value
	}
	if f.watch != nil {
		f.watch([]byte(key), value)
	}
}

// rig is the API over tables in memory.
type rig struct {
	t                                             testing.TB
	billing, entitlements, endpoints, connections *fakeTable
	handler                                       fasthttp.RequestHandler
}

func newRig(t testing.TB, audit driver.Conn, change ...func(*Config)) *rig {
	table := func() *fakeTable { return &fakeTable{records: map[string][]byte{}} }
	r := &rig{t: t, billing: table(), entitlements: table(), endpoints: table(), connections: table()}
	log := slog.New(slog.DiscardHandler)
	router := httpapi.NewRouter(httpapi.AdminKey(admin), log)
	cfg := Config{Plans: plans.Builtin(), EntitlementsMaxAge: time.Minute}
	for _, c := range change {
		c(&cfg)
	}
	New(cfg, Tables{r.billing, r.entitlements, r.endpoints, r.connections}, audit, log).Routes(router)
	r.handler = router.Handler()
	return r
}

func (r *rig) get(path string, headers ...string) *fasthttp.RequestCtx {
	ctx := &fasthttp.RequestCtx{}
	ctx.Init(&fasthttp.Request{}, nil, nil)
	ctx.Request.SetRequestURI(path)
	ctx.Request.Header.Set("Authorization", "Bearer "+admin)
	for i := 0; i < len(headers); i += 2 {
		ctx.Request.Header.Set(headers[i], headers[i+1])
	}
	r.handler(ctx)
	return ctx
}

func (r *rig) getJSON(path string) map[string]any {
	ctx := r.get(path)
	require.Equal(r.t, http.StatusOK, ctx.Response.StatusCode(), "%s", ctx.Response.Body())
	var body map[string]any
	require.NoError(r.t, json.Unmarshal(ctx.Response.Body(), &body))
	return body
}

func TestEntitlementsOfAnUnknownOrganization(t *testing.T) {
	r := newRig(t, nil)
	body := r.getJSON("/v1/orgs/nobody/entitlements")
	require.Equal(t, "nobody", body["organizationId"])
	require.Equal(t, "FREE", body["plan"])
	require.Equal(t, float64(0), body["version"])
	require.Equal(t, "none", body["status"])
	require.Len(t, body["capabilities"], 8)
	require.Equal(t, `"0"`, string(r.get("/v1/orgs/nobody/entitlements").Response.Header.Peek("ETag")))
}

func TestEntitlements(t *testing.T) {
	r := newRig(t, nil)
	r.entitlements.put(t, org, &webhooksv1.TenantCapabilitySnapshot{OrganizationId: org, Version: 7, Plan: "SCM_PRO", Status: "active"})
	require.Equal(t, "SCM_PRO", r.getJSON("/v1/orgs/org_1/entitlements")["plan"])
	for header, want := range map[string]int{
		`"7"`: 304, `W/"7"`: 304, `"6", "7"`: 304, `*`: 304, `"6"`: 200, `7`: 200,
	} {
		ctx := r.get("/v1/orgs/org_1/entitlements", "If-None-Match", header)
		require.Equal(t, want, ctx.Response.StatusCode(), header)
		require.Equal(t, `"7"`, string(ctx.Response.Header.Peek("ETag")))
	}
}

func TestEntitlementsAnswerWithoutKafka(t *testing.T) {
	r := newRig(t, nil)
	r.entitlements.cutOff = true
	require.Equal(t, http.StatusOK, r.get("/v1/orgs/org_1/entitlements").Response.StatusCode())
	require.Empty(t, r.entitlements.barriers)
}

func TestEntitlementsAreNotAnsweredFromACopyThatIsStillBeingRead(t *testing.T) {
	r := newRig(t, nil)
	r.entitlements.unread = true
	require.Equal(t, http.StatusServiceUnavailable, r.get("/v1/orgs/org_1/entitlements").Response.StatusCode())
}

func TestEntitlementsSayHowOldTheyMayBe(t *testing.T) {
	r := newRig(t, nil)
	r.entitlements.age = 42*time.Second + 900*time.Millisecond
	ctx := r.get("/v1/orgs/org_1/entitlements")
	require.Equal(t, http.StatusOK, ctx.Response.StatusCode())
	require.Equal(t, "42", string(ctx.Response.Header.Peek("Age")))

	r.entitlements.age = time.Minute + time.Millisecond
	ctx = r.get("/v1/orgs/org_1/entitlements")
	require.Equal(t, http.StatusServiceUnavailable, ctx.Response.StatusCode(), "older than is allowed")
	require.Contains(t, string(ctx.Response.Body()), "entitlements_stale")
	require.NotEmpty(t, ctx.Response.Header.Peek("Retry-After"))

	r = newRig(t, nil, func(c *Config) { c.EntitlementsMaxAge = 0 })
	r.entitlements.age = 100 * 24 * time.Hour
	ctx = r.get("/v1/orgs/org_1/entitlements")
	require.Equal(t, http.StatusOK, ctx.Response.StatusCode(), "without a bound")
	require.Equal(t, "8640000", string(ctx.Response.Header.Peek("Age")))
}

func TestBilling(t *testing.T) {
	r := newRig(t, nil)
	require.Equal(t, http.StatusNotFound, r.get("/v1/orgs/org_1/billing").Response.StatusCode())
	r.billing.put(t, org, &webhooksv1.BillingRecord{OrganizationId: org, Plan: "FREE", SettledInvoices: []uint64{1}, SettledUnixMs: []int64{1}})
	require.Equal(t, http.StatusNotFound, r.get("/v1/orgs/org_1/billing").Response.StatusCode(), "no event has come yet")
	r.billing.put(t, org, &webhooksv1.BillingRecord{OrganizationId: org, Plan: "FREE", CustomerIds: []string{"cus_1"}, CreatedUnixMs: 1})
	require.Equal(t, []any{"cus_1"}, r.getJSON("/v1/orgs/org_1/billing")["customerIds"])
	require.Equal(t, []string{org, org, org}, r.billing.barriers)
}

func TestManagementReadsAre503BehindTheirBarrier(t *testing.T) {
	r := newRig(t, nil)
	r.billing.cutOff, r.endpoints.cutOff, r.connections.cutOff = true, true, true
	for _, path := range []string{
		"/v1/orgs/org_1/billing", "/v1/orgs/org_1/endpoints", "/v1/orgs/org_1/endpoints/" + id.New(id.Endpoint),
		"/v1/orgs/org_1/connections", "/v1/orgs/org_1/connections/" + id.New(id.Connection),
	} {
		ctx := r.get(path)
		require.Equal(t, http.StatusServiceUnavailable, ctx.Response.StatusCode(), path)
		require.NotEmpty(t, ctx.Response.Header.Peek("Retry-After"), path)
	}
}

func TestEndpoints(t *testing.T) {
	r := newRig(t, nil)
	var ids []string
	for i := range 5 {
		endpoint := &webhooksv1.Endpoint{Id: id.New(id.Endpoint), OrganizationId: org, Version: 1, CreatedUnixMs: int64(1000 + i/2)}
		ids = append(ids, endpoint.Id)
		r.endpoints.put(t, org+"/"+endpoint.Id, endpoint)
	}
	r.endpoints.put(t, org, &webhooksv1.EndpointSet{Version: 5})
	r.endpoints.put(t, "org_12/"+ids[0], &webhooksv1.Endpoint{Id: ids[0]})
	slices.Reverse(ids)

	require.Equal(t, ids, idsOf(r.getJSON("/v1/orgs/org_1/endpoints")), "newest first")
	require.Nil(t, r.getJSON("/v1/orgs/org_1/endpoints")["nextCursor"])
	require.Empty(t, idsOf(r.getJSON("/v1/orgs/org_2/endpoints")))

	var paged []string
	path := "/v1/orgs/org_1/endpoints?limit=2"
	for pages := 1; ; pages++ {
		body := r.getJSON(path)
		paged = append(paged, idsOf(body)...)
		if body["nextCursor"] == nil {
			require.Equal(t, 3, pages)
			break
		}
		path = fmt.Sprintf("/v1/orgs/org_1/endpoints?limit=2&cursor=%s", body["nextCursor"])
	}
	require.Equal(t, ids, paged)

	one := r.get("/v1/orgs/org_1/endpoints/" + ids[0])
	require.Equal(t, http.StatusOK, one.Response.StatusCode())
	require.Equal(t, `"1"`, string(one.Response.Header.Peek("ETag")))
	for _, missing := range []string{"/v1/orgs/org_2/endpoints/" + ids[0], "/v1/orgs/org_1/endpoints/x", "/v1/orgs/org_1/endpoints/" + id.New(id.Endpoint)} {
		require.Equal(t, http.StatusNotFound, r.get(missing).Response.StatusCode(), missing)
	}
	require.Equal(t, http.StatusBadRequest, r.get("/v1/orgs/org_1/endpoints?limit=0").Response.StatusCode())
}

func idsOf(page map[string]any) (ids []string) {
	for _, object := range page["data"].([]any) {
		ids = append(ids, object.(map[string]any)["id"].(string))
	}
	return ids
}

func TestConnections(t *testing.T) {
	r := newRig(t, nil)
	connect := func(account, org string, created int64) string {
		c := &webhooksv1.Connection{
			Id: id.New(id.Connection), OrganizationId: org, Source: "stripe", Account: account, Status: "active", CreatedUnixMs: created,
		}
		r.connections.put(t, "stripe/"+account, c)
		return c.Id
	}
	first := connect("cus_1", org, 1)
	second := connect("cus_2", org, 2)
	other := connect("cus_3", "org_2", 3)
	require.Equal(t, []string{second, first}, idsOf(r.getJSON("/v1/orgs/org_1/connections")))
	require.Equal(t, []string{"*"}, r.connections.barriers)
	require.Equal(t, "cus_1", r.getJSON("/v1/orgs/org_1/connections/" + first)["account"])
	require.Equal(t, http.StatusNotFound, r.get("/v1/orgs/org_1/connections/"+other).Response.StatusCode())
	require.Equal(t, http.StatusNotFound, r.get("/v1/orgs/org_1/connections/nonsense").Response.StatusCode())

	moved := connect("cus_2", "org_2", 4)
	require.Equal(t, []string{first}, idsOf(r.getJSON("/v1/orgs/org_1/connections")))
	require.Equal(t, []string{moved, other}, idsOf(r.getJSON("/v1/orgs/org_2/connections")))
	r.connections.set("stripe/cus_1", nil)
	require.Empty(t, idsOf(r.getJSON("/v1/orgs/org_1/connections")))
	r.connections.set("stripe/cus_3", []byte{0xff})
	require.Equal(t, []string{moved}, idsOf(r.getJSON("/v1/orgs/org_2/connections")))
}

func TestARecordThatDoesNotDecodeIs500(t *testing.T) {
	r := newRig(t, nil)
	r.billing.set(org, []byte{0xff})
	r.entitlements.set(org, []byte{0xff})
	r.endpoints.set(org+"/ep", []byte{0xff})
	for _, path := range []string{"billing", "entitlements", "endpoints"} {
		require.Equal(t, http.StatusInternalServerError, r.get("/v1/orgs/org_1/"+path).Response.StatusCode(), path)
	}
}
