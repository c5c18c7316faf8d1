package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/id"
)

// keys is an Authenticator of fixed keys.
type keys map[string]Principal

func (k keys) Authenticate(bearer string) (Principal, bool) {
	p, ok := k[bearer]
	return p, ok
}

// api serves a router of every kind of route and returns its address.
func api(t *testing.T) string {
	t.Helper()
	r := NewRouter(keys{
		"root": {KeyID: "admin", Admin: true},
		"acme": {KeyID: "key_1", Organization: "acme", Scopes: map[string]bool{"things:read": true}},
	}, slog.New(slog.DiscardHandler))
	r.Handle("GET", "/v1/orgs/{org}/things/{id}", "things:read", func(ctx *fasthttp.RequestCtx, p Principal) error {
		WriteJSON(ctx, 200, map[string]string{"org": Org(ctx), "id": Param(ctx, "id"), "key": p.KeyID})
		return nil
	})
	r.Handle("DELETE", "/v1/orgs/{org}/things/{id}", "things:write", func(ctx *fasthttp.RequestCtx, _ Principal) error {
		ctx.SetStatusCode(204)
		return nil
	})
	r.Handle("GET", "/v1/orgs/{org}/things", "", func(ctx *fasthttp.RequestCtx, _ Principal) error {
		p, err := ParseList(ctx, []string{"status", "since", "until"})
		if err != nil {
			return err
		}
		WriteJSON(ctx, 200, NewPage([]int(nil), NextCursor(p, append(p.Cursor, 'x'))))
		return nil
	})
	r.Handle("GET", "/v1/admin", ScopeAdmin, func(ctx *fasthttp.RequestCtx, _ Principal) error { return nil })
	r.Handle("GET", "/v1/broken", "", func(*fasthttp.RequestCtx, Principal) error { return errors.New("dsn=secret") })
	r.Handle("GET", "/v1/panics", "", func(*fasthttp.RequestCtx, Principal) error { panic("secret") })
	r.HandlePublic("GET", "/v1/open", func(ctx *fasthttp.RequestCtx) error {
		return Unavailable("resting", "Come again.")
	})
	return serve(t, r.Handler())
}

func serve(t *testing.T, h fasthttp.RequestHandler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, h) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		require.NoError(t, <-done)
	})
	return "http://" + ln.Addr().String()
}

// answer is what a client sees.
type answer struct {
	status  int
	header  http.Header
	body    string
	problem problemBody
}

func call(t *testing.T, method, url, key string) answer {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	require.NoError(t, err)
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(body)}
	if res.Header.Get("Content-Type") == "application/problem+json" && method != "HEAD" {
		require.NoError(t, json.Unmarshal(body, &a.problem))
	}
	return a
}

func TestRouterChecksPathMethodKeyOrganizationScope(t *testing.T) {
	base := api(t)
	for name, c := range map[string]struct {
		method, path, key string
		status            int
		code              string
	}{
		"organization's key":       {"GET", "/v1/orgs/acme/things/7", "acme", 200, ""},
		"admin":                    {"GET", "/v1/orgs/acme/things/7", "root", 200, ""},
		"head":                     {"HEAD", "/v1/orgs/acme/things/7", "root", 200, ""},
		"unknown path":             {"GET", "/v1/nothing", "", 404, "not_found"},
		"trailing slash":           {"GET", "/v1/orgs/acme/things/", "acme", 404, "not_found"},
		"other case":               {"GET", "/V1/orgs/acme/things", "acme", 404, "not_found"},
		"wrong method":             {"PUT", "/v1/orgs/acme/things/7", "", 405, "method_not_allowed"},
		"unknown method":           {"BREW", "/v1/orgs/acme/things/7", "", 405, "method_not_allowed"},
		"no key":                   {"GET", "/v1/orgs/acme/things/7", "", 401, "key_missing"},
		"unknown key":              {"GET", "/v1/orgs/acme/things/7", "nope", 401, "key_unknown"},
		"another's organization":   {"GET", "/v1/orgs/other/things/7", "acme", 403, "organization_forbidden"},
		"no organization":          {"GET", "/v1/orgs/a.b/things/7", "root", 404, "not_found"},
		"encoded no organization":  {"GET", "/v1/orgs/a%20b/things/7", "root", 404, "not_found"},
		"missing scope":            {"DELETE", "/v1/orgs/acme/things/7", "acme", 403, "scope_missing"},
		"admin has every scope":    {"DELETE", "/v1/orgs/acme/things/7", "root", 204, ""},
		"admin only":               {"GET", "/v1/admin", "acme", 403, "scope_missing"},
		"handler fails":            {"GET", "/v1/broken", "root", 500, "internal"},
		"handler panics":           {"GET", "/v1/panics", "root", 500, "internal"},
		"public, answers problem":  {"GET", "/v1/open", "", 503, "resting"},
		"encoded organization":     {"GET", "/v1/orgs/%61cme/things/7", "acme", 200, ""},
		"slash inside a path part": {"GET", "/v1/orgs/acme/things/a%2Fb", "acme", 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := call(t, c.method, base+c.path, c.key)
			require.Equal(t, c.status, a.status, a.body)
			require.True(t, id.Valid(id.Request, a.header.Get("x-request-id")))
			require.NotContains(t, a.body, "secret")
			if c.code == "" {
				return
			}
			require.Equal(t, c.code, a.problem.Code)
			require.Equal(t, "/problems/"+c.code, a.problem.Type)
			require.Equal(t, c.status, a.problem.Status)
			require.NotEmpty(t, a.problem.Title)
			require.NotEmpty(t, a.problem.Detail)
			require.Equal(t, a.header.Get("x-request-id"), a.problem.RequestID)
			require.Contains(t, a.body, `"errors":[]`)
			require.Equal(t, c.status == 401, a.header.Get("WWW-Authenticate") != "")
			require.Equal(t, c.status == 405, a.header.Get("Allow") != "")
			require.Equal(t, c.status == 503, a.header.Get("Retry-After") == "1")
		})
	}
}

func TestAllowNamesTheMethods(t *testing.T) {
	a := call(t, "PUT", api(t)+"/v1/orgs/acme/things/7", "acme")
	require.Equal(t, "DELETE, GET, HEAD, OPTIONS", a.header.Get("Allow"))
}

func TestAdminKey(t *testing.T) {
	auth := AdminKey("k")
	p, ok := auth.Authenticate("k")
	require.True(t, ok)
	require.True(t, p.Admin && p.Can("any") && p.Owns("any"))
	for _, wrong := range []string{"", "K", "kk", "k "} {
		_, ok = auth.Authenticate(wrong)
		require.False(t, ok, "%q", wrong)
	}
}

func TestBearerToken(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer k": "k", "bearer k": "k", "BEARER  k ": "k",
		"": "", "Bearer": "", "Bearer ": "", "Basic k": "", "k": "",
	} {
		got, ok := bearerToken(header)
		require.Equal(t, want, got, "%q", header)
		require.Equal(t, want != "", ok, "%q", header)
	}
}

// A client that goes on sending may see a reset before it sees the answer, so these send no more than is read.
func TestServerAnswersWhatItCannotRead(t *testing.T) {
	base := api(t)
	for name, c := range map[string]struct {
		head   string
		status int
	}{
		"body too large":    {fmt.Sprintf("POST /v1/open HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", maxBodyBytes+1), 413},
		"headers too large": {"GET /v1/open HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", maxHeaderBytes), 431},
		"not HTTP":          {"hello\r\n\r\n", 400},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, c.head)
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			require.Equal(t, c.status, res.StatusCode)
			require.Equal(t, "application/problem+json", res.Header.Get("Content-Type"))
		})
	}
}

func TestServeFinishesOpenRequests(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	entered, release := make(chan struct{}), make(chan struct{})
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, ln, func(ctx *fasthttp.RequestCtx) {
			close(entered)
			<-release
			ctx.SetStatusCode(202)
		})
	}()
	status := make(chan int, 1)
	go func() {
		res, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			status <- 0
			return
		}
		res.Body.Close()
		status <- res.StatusCode
	}()
	<-entered
	cancel()
	select {
	case err := <-served:
		t.Fatalf("stopped with a request open: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	require.Equal(t, 202, <-status)
	require.NoError(t, <-served)
	_, err = net.Dial("tcp", ln.Addr().String())
	require.Error(t, err)
}

func TestServeDoesNotWaitForIdleConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(204) }) }()
	used := &http.Client{Transport: &http.Transport{}}
	res, err := used.Get("http://" + ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())

	began := time.Now()
	cancel()
	require.NoError(t, <-served)
	require.Less(t, time.Since(began), 4*time.Second)
	used.CloseIdleConnections()
}

func TestProxyForwardsReads(t *testing.T) {
	upstream := api(t)
	forward, err := Proxy(upstream)
	require.NoError(t, err)
	edge := NewRouter(keys{}, slog.New(slog.DiscardHandler))
	edge.HandleRaw("GET", "/v1/{rest:*}", forward)
	base := serve(t, edge.Handler())

	a := call(t, "GET", base+"/v1/orgs/acme/things/a%2Fb", "acme")
	require.Equal(t, 200, a.status)
	require.JSONEq(t, `{"org":"acme","id":"a/b","key":"key_1"}`, a.body)

	a = call(t, "GET", base+"/v1/orgs/acme/things?status=x&bad=1", "acme")
	require.Equal(t, 400, a.status)
	require.Equal(t, a.header.Get("x-request-id"), a.problem.RequestID, "one id on both sides")

	require.Equal(t, 401, call(t, "GET", base+"/v1/orgs/acme/things", "").status)
	require.Equal(t, 200, call(t, "HEAD", base+"/v1/orgs/acme/things", "acme").status)
	require.Equal(t, "1", call(t, "GET", base+"/v1/open", "").header.Get("Retry-After"))
}

func TestProxySaysWhenTheServiceIsAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	forward, err := Proxy("http://" + ln.Addr().String())
	require.NoError(t, err)
	a := call(t, "GET", serve(t, forward)+"/v1/orgs/acme/things", "acme")
	require.Equal(t, 503, a.status)
	require.Equal(t, "upstream_unavailable", a.problem.Code)
}

func TestProxyRefusesWhatIsNoBaseURL(t *testing.T) {
	for _, bad := range []string{"", "host:80", "ftp://host", "http://", "http://host/path"} {
		_, err := Proxy(bad)
		require.Error(t, err, bad)
	}
}
