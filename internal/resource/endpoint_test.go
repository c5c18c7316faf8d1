package resource_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/resource"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func rules(t testing.TB) *resource.Rules {
	filters, err := eventfilter.NewCompiler()
	require.NoError(t, err)
	return resource.NewRules(resource.Config{Guard: netguard.New(netguard.Policy{}), Filters: filters})
}

// applying are the rules of whoever applies a patch that ingest let through.
func applying() *resource.Rules { return resource.NewRules(resource.Config{}) }

const minimal = `"url":"https://example.com/hook","eventTypes":["*"]`

func TestCreateTakesDefaults(t *testing.T) {
	create, problem := rules(t).ParseEndpointCreate("org_1", []byte(`{`+minimal+`}`))
	require.Nil(t, problem)
	require.Empty(t, create.Secret)
	require.False(t, create.NeedsKeyPair)

	encoded, err := json.Marshal(resource.EndpointView(create.Endpoint))
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"","organizationId":"org_1","url":"https://example.com/hook","uid":null,"description":null,
		"enabled":true,"eventTypes":["*"],"loopIds":[],"filter":null,"headers":{},"metadata":{},"paused":false,"rateLimit":null,
		"concurrency":16,"timeoutMs":15000,"retryScheduleMs":null,"ordering":null,"signatures":["v1"],"publicKey":null,"secret":null,
		"disabledReason":null,"disabledAt":null,"version":0,"createdAt":null,"updatedAt":null}`, string(encoded))
}

func TestCreateTakesEveryMember(t *testing.T) {
	secret := "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	create, problem := rules(t).ParseEndpointCreate("org_1", []byte(`{
		"url":"https://example.com/hook?a=1","uid":"shop-1","description":"Orders","enabled":false,"eventTypes":["loop.*","order.allocation_failed"],
		"loopIds":["dcm.returns"],"filter":"data.total > 5","headers":{"X-Shop":"a","Authorization":"Bearer b"},"metadata":{"a":1.50,"n":null},
		"paused":true,"rateLimit":0.5,"concurrency":1,"timeoutMs":1000,"retryScheduleMs":[10,20],"ordering":"/data/loopId","signatures":["v1a","v1"],
		"secret":"`+secret+`","organizationId":"org_1","id":null,"version":null}`))
	require.Nil(t, problem)
	require.Equal(t, secret, create.Secret)
	require.True(t, create.NeedsKeyPair)
	require.Equal(t, map[string]string{"X-Shop": "a", "Authorization": "Bearer b"}, create.Headers)
	require.Equal(t, []string{"Authorization", "X-Shop"}, create.Endpoint.HeaderNames)
	require.NotContains(t, create.Endpoint.String(), "Bearer b", "what goes on the log has no header value")
	require.NotContains(t, create.Endpoint.String(), secret)
	require.Equal(t, resource.DisabledManual, create.Endpoint.DisabledReason)
	require.JSONEq(t, `{"a":1.50,"n":null}`, string(create.Endpoint.MetadataJson))
	require.Contains(t, string(create.Endpoint.MetadataJson), "1.50")

	view := resource.EndpointView(create.Endpoint)
	require.Equal(t, map[string]string{"X-Shop": "***", "Authorization": "***"}, view.Headers)
	require.Equal(t, []uint64{10, 20}, view.RetryScheduleMS)
	require.Equal(t, "/data/loopId", *view.Ordering)
	require.Equal(t, secret, *resource.EndpointViewWithSecret(create.Endpoint, secret).Secret)
}

func TestCreateRefuses(t *testing.T) {
	long := strings.Repeat("a", 5000)
	for _, tc := range []struct {
		name, body      string
		status          int
		code, pointer   string
		furtherPointers []string
	}{
		{"no JSON", `{`, 400, "malformed_body", "", nil},
		{"null", `null`, 400, "malformed_body", "", nil},
		{"array", `[]`, 422, "invalid_request", "", nil},
		{"nothing required", `{}`, 422, "invalid_request", "/url", []string{"/eventTypes"}},
		{"required null", `{"url":null,"eventTypes":null}`, 422, "invalid_request", "/eventTypes", []string{"/url"}},
		{"unknown member", `{` + minimal + `,"colour":"red"}`, 422, "invalid_request", "/colour", nil},
		{"pointer escaped", `{` + minimal + `,"a/b~c":1}`, 422, "invalid_request", "/a~1b~0c", nil},
		{"member in other case", `{` + minimal + `,"Filter":"true"}`, 422, "invalid_request", "/Filter", nil},
		{"read-only", `{` + minimal + `,"version":3}`, 422, "invalid_request", "/version", nil},
		{"another organization", `{` + minimal + `,"organizationId":"org_2"}`, 422, "invalid_request", "/organizationId", nil},
		{"loopback", `{"url":"https://127.0.0.1/","eventTypes":["*"]}`, 422, "url_not_allowed", "/url", nil},
		{"userinfo", `{"url":"https://a:b@example.com/","eventTypes":["*"]}`, 422, "url_not_allowed", "/url", nil},
		{"fragment", `{"url":"https://example.com/#a","eventTypes":["*"]}`, 422, "url_not_allowed", "/url", nil},
		{"url is no string", `{"url":7,"eventTypes":["*"]}`, 422, "invalid_request", "/url", nil},
		{"no event types", `{"url":"https://example.com/","eventTypes":[]}`, 422, "invalid_request", "/eventTypes", nil},
		{"star in the middle", `{"url":"https://example.com/","eventTypes":["a","l*p"]}`, 422, "invalid_request", "/eventTypes/1", nil},
		{"empty pattern", `{"url":"https://example.com/","eventTypes":[""]}`, 422, "invalid_request", "/eventTypes/0", nil},
		{"null pattern", `{"url":"https://example.com/","eventTypes":[null]}`, 422, "invalid_request", "/eventTypes/0", nil},
		{"pattern with a space", `{"url":"https://example.com/","eventTypes":["a b"]}`, 422, "invalid_request", "/eventTypes/0", nil},
		{"filter that does not compile", `{` + minimal + `,"filter":"data.total >"}`, 422, "invalid_request", "/filter", nil},
		{"filter that is no bool", `{` + minimal + `,"filter":"1 + 1"}`, 422, "invalid_request", "/filter", nil},
		{"no order", `{` + minimal + `,"ordering":"some"}`, 422, "invalid_request", "/ordering", nil},
		{"empty order", `{` + minimal + `,"ordering":""}`, 422, "invalid_request", "/ordering", nil},
		{"order by no pointer", `{` + minimal + `,"ordering":"/a~2"}`, 422, "invalid_request", "/ordering", nil},
		{"order by a long pointer", `{` + minimal + `,"ordering":"/` + long + `"}`, 422, "invalid_request", "/ordering", nil},
		{"concurrency 0", `{` + minimal + `,"concurrency":0}`, 422, "invalid_request", "/concurrency", nil},
		{"concurrency no integer", `{` + minimal + `,"concurrency":1.5}`, 422, "invalid_request", "/concurrency", nil},
		{"time-out too short", `{` + minimal + `,"timeoutMs":999}`, 422, "invalid_request", "/timeoutMs", nil},
		{"time-out too long", `{` + minimal + `,"timeoutMs":25001}`, 422, "invalid_request", "/timeoutMs", nil},
		{"rate 0", `{` + minimal + `,"rateLimit":0}`, 422, "invalid_request", "/rateLimit", nil},
		{"delay 0", `{` + minimal + `,"retryScheduleMs":[5,0]}`, 422, "invalid_request", "/retryScheduleMs/1", nil},
		{"signature unknown", `{` + minimal + `,"signatures":["v2"]}`, 422, "invalid_request", "/signatures", nil},
		{"signature twice", `{` + minimal + `,"signatures":["v1","v1"]}`, 422, "invalid_request", "/signatures", nil},
		{"no signature", `{` + minimal + `,"signatures":[]}`, 422, "invalid_request", "/signatures", nil},
		{"short secret", `{` + minimal + `,"secret":"whsec_YWJj"}`, 422, "invalid_request", "/secret", nil},
		{"secret without prefix", `{` + minimal + `,"secret":"YWJj"}`, 422, "invalid_request", "/secret", nil},
		{"uid empty", `{` + minimal + `,"uid":""}`, 422, "invalid_request", "/uid", nil},
		{"description too long", `{` + minimal + `,"description":"` + long + `"}`, 422, "invalid_request", "/description", nil},
		{"metadata no object", `{` + minimal + `,"metadata":[]}`, 422, "invalid_request", "/metadata", nil},
		{"metadata too long", `{` + minimal + `,"metadata":{"a":"` + strings.Repeat(long, 4) + `"}}`, 422, "invalid_request", "/metadata", nil},
		{"mask of nothing", `{` + minimal + `,"headers":{"X-A":"***"}}`, 422, "invalid_request", "/headers/X-A", nil},
		{"duplicate keys: last wins", `{` + minimal + `,"url":"x"}`, 422, "url_not_allowed", "/url", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, problem := rules(t).ParseEndpointCreate("org_1", []byte(tc.body))
			require.NotNil(t, problem)
			require.Equal(t, tc.status, problem.Status, problem.Errors)
			require.Equal(t, tc.code, problem.Code)
			for _, pointer := range append(tc.furtherPointers, tc.pointer) {
				if tc.status == 422 {
					require.Contains(t, pointers(problem), pointer)
				}
			}
		})
	}
}

func TestHeadersThatCannotBeChosen(t *testing.T) {
	for _, name := range []string{"Host", "content-length", "Transfer-Encoding", "Webhook-Id", "x-betterdata-signature", "Connection",
		"Upgrade", "User-Agent", "Content-Type", "", "a b", "a\r\nb", "a:b"} {
		t.Run(name, func(t *testing.T) {
			headers, err := json.Marshal(map[string]string{name: "v"})
			require.NoError(t, err)
			_, problem := rules(t).ParseEndpointCreate("org_1", fmt.Appendf(nil, `{%s,"headers":%s}`, minimal, headers))
			require.NotNil(t, problem)
		})
	}
	_, problem := rules(t).ParseEndpointCreate("org_1", []byte(`{`+minimal+`,"headers":{"X-A":"a\r\nhost: b"}}`))
	require.NotNil(t, problem)
	_, problem = rules(t).ParseEndpointCreate("org_1", []byte(`{`+minimal+`,"headers":{"X-A":"a","x-a":"b"}}`))
	require.NotNil(t, problem)
}

func pointers(p *httpapi.Problem) []string {
	var all []string
	for _, e := range p.Errors {
		all = append(all, e.Pointer)
	}
	return all
}

func endpoint() *webhooksv1.Endpoint {
	return &webhooksv1.Endpoint{
		Id: "ep_1", OrganizationId: "org_1", Url: "https://example.com/hook", Uid: proto.String("shop-1"), Enabled: true,
		EventTypes: []string{"loop.*"}, Filter: proto.String("true"), HeaderNames: []string{"X-A"}, SealedHeaders: []byte("sealed"),
		MetadataJson: []byte(`{"a":{"b":1,"c":2},"d":3}`), Concurrency: 4, TimeoutMs: 2000, Signatures: []string{"v1"}, PublicKey: "whpk_1",
		Version: 7, CreatedUnixMs: 1000, UpdatedUnixMs: 2000,
	}
}

// patched parses and applies a patch as ingest and the processor do.
func patched(t *testing.T, body string) (*webhooksv1.Endpoint, *httpapi.Problem) {
	patch, problem := rules(t).ParseEndpointPatch([]byte(body))
	if problem != nil {
		return nil, problem
	}
	return applying().ApplyEndpointPatch(endpoint(), patch.JSON, 5000)
}

func TestPatchChangesWhatItNames(t *testing.T) {
	for _, tc := range []struct {
		name, patch string
		change      func(*webhooksv1.Endpoint)
	}{
		{"nothing", `{}`, func(*webhooksv1.Endpoint) {}},
		{"url", `{"url":"https://example.org/"}`, func(e *webhooksv1.Endpoint) { e.Url = "https://example.org/" }},
		{"null takes away", `{"uid":null,"filter":null}`, func(e *webhooksv1.Endpoint) { e.Uid, e.Filter = nil, nil }},
		{"null takes back to the default", `{"concurrency":null,"timeoutMs":null}`, func(e *webhooksv1.Endpoint) { e.Concurrency, e.TimeoutMs = 16, 15000 }},
		{"metadata is merged", `{"metadata":{"a":{"b":null,"e":5}}}`, func(e *webhooksv1.Endpoint) { e.MetadataJson = []byte(`{"a":{"c":2,"e":5},"d":3}`) }},
		{"metadata away", `{"metadata":null}`, func(e *webhooksv1.Endpoint) { e.MetadataJson = nil }},
		{"headers away", `{"headers":null}`, func(e *webhooksv1.Endpoint) { e.HeaderNames, e.SealedHeaders = nil, nil }},
		{"headers are merged elsewhere", `{"headers":{"X-B":"v"}}`, func(*webhooksv1.Endpoint) {}},
		{"disable", `{"enabled":false}`, func(e *webhooksv1.Endpoint) { e.Enabled, e.DisabledReason, e.DisabledUnixMs = false, "manual", 5000 }},
		{"read-only as it is", `{"id":"ep_1","version":7,"createdAt":"1970-01-01T00:00:01.000Z","disabledReason":null,"publicKey":null,"secret":null}`,
			func(*webhooksv1.Endpoint) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problem := patched(t, tc.patch)
			require.Nil(t, problem)
			want := endpoint()
			tc.change(want)
			require.True(t, proto.Equal(want, got), "want %v\ngot  %v", want, got)
		})
	}
}

func TestPatchRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ patch, pointer string }{
		"read-only changed":          {`{"version":8}`, "/version"},
		"required taken away":        {`{"url":null}`, "/url"},
		"url not allowed":            {`{"url":"http://10.0.0.1/"}`, "/url"},
		"secret":                     {`{"secret":"whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, "/secret"},
		"metadata too long":          {`{"metadata":{"z":"` + strings.Repeat("a", 16<<10) + `"}}`, "/metadata"},
		"metadata too long together": {`{"metadata":{"z":"` + strings.Repeat("a", 16<<10-20) + `"}}`, "/metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problem := patched(t, tc.patch)
			require.NotNil(t, problem)
			require.Equal(t, 422, problem.Status)
			require.Equal(t, []string{tc.pointer}, pointers(problem))
		})
	}
}

func TestEnableAgainForgetsTheReason(t *testing.T) {
	disabled := endpoint()
	disabled.Enabled, disabled.DisabledReason, disabled.DisabledUnixMs = false, resource.DisabledGone, 4000

	same, problem := applying().ApplyEndpointPatch(disabled, []byte(`{"enabled":false}`), 5000)
	require.Nil(t, problem)
	require.True(t, proto.Equal(disabled, same), "disabling what is disabled keeps its reason")

	enabled, problem := applying().ApplyEndpointPatch(disabled, []byte(`{"enabled":true}`), 5000)
	require.Nil(t, problem)
	require.Empty(t, enabled.DisabledReason)
	require.Zero(t, enabled.DisabledUnixMs)
}

func TestPatchKeepsSecretsApart(t *testing.T) {
	patch, problem := rules(t).ParseEndpointPatch([]byte(`{"headers":{"X-A":"***","X-B":"value-b","X-C":null},"signatures":["v1a"]}`))
	require.Nil(t, problem)
	require.NotContains(t, string(patch.JSON), "value-b")
	require.Equal(t, &resource.HeaderPatch{Set: map[string]string{"X-B": "value-b"}, Keep: []string{"X-A"}, Remove: []string{"X-C"}}, patch.Headers)
	require.Equal(t, []string{"X-A", "X-B"}, patch.Headers.Names())
	require.True(t, patch.NeedsKeyPair)
}

func TestMergeHeaders(t *testing.T) {
	current := map[string]string{"X-A": "a", "X-B": "b", "X-C": "c"}
	merged, problem := resource.MergeHeaders(current, map[string]string{"x-b": "new"}, []string{"X-A", "x-b"}, []string{"x-c", "x-none"})
	require.Nil(t, problem)
	require.Equal(t, map[string]string{"X-A": "a", "x-b": "new"}, merged)

	_, problem = resource.MergeHeaders(nil, nil, []string{"X-A"}, nil)
	require.NotNil(t, problem, "a mask without a value behind it")
	require.Equal(t, []string{"/headers/X-A"}, pointers(problem))
}

func TestGuardFollowsTheOperator(t *testing.T) {
	open := resource.NewRules(resource.Config{Guard: netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})})
	_, problem := open.ParseEndpointCreate("org_1", []byte(`{"url":"http://127.0.0.1:8090/","eventTypes":["*"]}`))
	require.Nil(t, problem)
}

func TestRefusalKeepsTheProblem(t *testing.T) {
	p := httpapi.Invalid(httpapi.FieldError{Pointer: "/url", Detail: "is required"})
	require.Equal(t, p, resource.Problem(resource.Refusal(p)))
}

func FuzzParseEndpoint(f *testing.F) {
	f.Add([]byte(`{` + minimal + `}`))
	f.Add([]byte(`{"headers":{"X-A":"***"},"metadata":{"a":{"b":null}},"enabled":false}`))
	r := rules(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		if create, problem := r.ParseEndpointCreate("org_1", body); problem == nil {
			_, err := json.Marshal(resource.EndpointView(create.Endpoint))
			require.NoError(t, err)
		}
		patch, problem := r.ParseEndpointPatch(body)
		if problem != nil {
			return
		}
		if got, problem := applying().ApplyEndpointPatch(endpoint(), patch.JSON, 1); problem == nil {
			_, err := json.Marshal(resource.EndpointView(got))
			require.NoError(t, err)
		}
	})
}
