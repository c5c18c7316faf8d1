package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/api"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/inbound"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/processor/routing"
	"github.com/betterdata/webhooks/schemas"
)

// writes is what a management write passes: edges, and the owners of organizations and accounts behind the log. The
// owners can be away, and start again without what they had on disk.
type writes struct {
	t       *testing.T
	kafka   kafka.Config
	keyring *seal.Keyring
	state   string
	// What stops the owners of organizations and of accounts.
	stopOrganizations, stopAccounts func()
}

func startWrites(t *testing.T) *writes {
	keyring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	w := &writes{t: t, kafka: testenv.FakeKafka(t), keyring: keyring, state: filepath.Join(t.TempDir(), "state")}
	w.startOrganizations()
	w.startAccounts()
	return w
}

func (w *writes) startOrganizations() {
	w.t.Helper()
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 100}, w.keyring)
	require.NoError(w.t, err)
	organizations, err := inbound.New(inbound.Config{Plans: plans.Builtin(), DedupeRetention: soon}, applier,
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(w.t, err)
	w.stopOrganizations = w.own(organizations.Spec())
}

func (w *writes) startAccounts() {
	w.t.Helper()
	accounts, err := routing.New(routing.Config{
		Handles: func(string, string) bool { return true }, Subscription: billing.SubscriptionOf, Settled: billing.SettledBy,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(w.t, err)
	w.stopAccounts = w.own(accounts.Spec())
}

func (w *writes) own(spec stream.Spec) (stop func()) {
	w.t.Helper()
	group, err := stream.New(spec, stream.Config{Kafka: w.kafka, StateDir: w.state}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(w.t, err)
	stop = running(w.t, group.Run)
	testenv.Eventually(w.t, soon, func() bool { return group.Check(w.t.Context()) == nil }, "the owners are ready")
	return stop
}

// running runs until the test ends or what it returns is called.
func running(t *testing.T, runs ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error, len(runs))
	for _, run := range runs {
		go func() { errs <- run(ctx) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for range runs {
			require.NoError(t, <-errs)
		}
	})
	t.Cleanup(stop)
	return stop
}

// edge is the public address of one more instance, which waits for an outcome as long as given; 0 is its default.
func (w *writes) edge(outcome time.Duration) *writer {
	w.t.Helper()
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	copyOf := func(topic string) *table.Copy {
		c, err := table.New(table.Config{Kafka: w.kafka, StateDir: w.t.TempDir(), Topic: topic}, log, reg)
		require.NoError(w.t, err)
		w.t.Cleanup(func() { require.NoError(w.t, c.Close()) })
		return c
	}
	endpoints, connections, routes := copyOf(schemas.Endpoints), copyOf(schemas.Connections), copyOf(schemas.Routes)
	reads := httpapi.NewRouter(httpapi.AdminKey(adminKey), log)
	api.New(api.Config{Plans: plans.Builtin()}, api.Tables{Endpoints: endpoints, Connections: connections}, nil, log).Routes(reads)
	edge, err := ingest.New(ingest.Config{
		HTTPAddr: "127.0.0.1:0", Kafka: w.kafka, Stripe: stripe.Config{Secrets: []string{stripeSecret}}, OutcomeTimeout: outcome,
	}, ingest.Deps{
		Routes: routes, Auth: httpapi.AdminKey(adminKey), AdminKey: adminKey, Keyring: w.keyring, Rules: resource.NewRules(resource.Config{}),
		Processor: reads.Handler(), Deliverer: reads.Handler(), Log: log, Registerer: reg,
	})
	require.NoError(w.t, err)
	addr, err := edge.Listen()
	require.NoError(w.t, err)
	running(w.t, endpoints.Run, connections.Run, routes.Run, edge.Run)
	testenv.Eventually(w.t, soon, func() bool { return edge.Check(w.t.Context()) == nil }, "the edge is ready")
	return &writer{w.t, "http://" + addr.String()}
}

// writer sends management requests to one edge.
type writer struct {
	t   *testing.T
	url string
}

type written struct {
	status int
	header http.Header
	body   map[string]any
}

func (w *writer) send(method, path, body string, header ...string) written {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, bytes.NewReader([]byte(body)))
	require.NoError(w.t, err)
	header = append([]string{"Authorization", "Bearer " + adminKey, "Content-Type", "application/json"}, header...)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(w.t, err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	require.NoError(w.t, err)
	got := written{status: res.StatusCode, header: res.Header}
	if len(answer) > 0 {
		require.NoError(w.t, json.Unmarshal(answer, &got.body), "%d %s", got.status, answer)
	}
	return got
}

// atOnce sends n requests at the same time; the edges take turns.
func atOnce(n int, edges []*writer, send func(i int, edge *writer) written) []written {
	answers := make([]written, n)
	var group sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		group.Go(func() {
			<-begin
			answers[i] = send(i, edges[i%len(edges)])
		})
	}
	close(begin)
	group.Wait()
	return answers
}

const (
	endpointsOf   = "/v1/orgs/org_1/endpoints"
	connectionsOf = "/v1/orgs/org_1/connections"

	someEndpoint   = `{"url":"https://example.com/hook","eventTypes":["*"],"headers":{"X-Key":"hidden"},"signatures":["v1","v1a"]}`
	someConnection = `{"source":"stripe","account":"cus_1","accessToken":"hidden"}`
)

// TestOfChangesToOneVersionOneWins: whoever changes what he has read learns that another was faster, at whichever edge.
func TestOfChangesToOneVersionOneWins(t *testing.T) {
	w := startWrites(t)
	edges := []*writer{w.edge(0), w.edge(0)}
	created := edges[0].send(http.MethodPost, endpointsOf, someEndpoint)
	require.Equal(t, 201, created.status, "%v", created.body)
	path := created.header.Get("Location")
	etag := edges[1].send(http.MethodGet, path, "").header.Get("ETag")
	require.Equal(t, created.header.Get("ETag"), etag)
	for round := range 3 {
		answers := atOnce(8, edges, func(i int, edge *writer) written {
			return edge.send(http.MethodPatch, path, fmt.Sprintf(`{"description":"round %d, writer %d"}`, round, i), "If-Match", etag)
		})
		var won []written
		for _, a := range answers {
			if a.status == 200 {
				won = append(won, a)
				continue
			}
			require.Equal(t, 412, a.status, "%v", a.body)
			require.Equal(t, "precondition_failed", a.body["code"])
			require.Contains(t, a.body["detail"], fmt.Sprint("version ", round+2))
		}
		require.Len(t, won, 1)
		now := edges[1].send(http.MethodGet, path, "")
		require.Equal(t, won[0].body, now.body, "nobody else changed it")
		require.Equal(t, won[0].header.Get("ETag"), now.header.Get("ETag"))
		etag = now.header.Get("ETag")
	}
	require.Equal(t, 412, edges[0].send(http.MethodDelete, path, "", "If-Match", created.header.Get("ETag")).status)
	require.Equal(t, 412, edges[0].send(http.MethodDelete, path, "", "If-Match", "W/"+etag).status)
	require.Equal(t, 204, edges[0].send(http.MethodDelete, path, "", "If-Match", `"0", `+etag).status)
	require.Equal(t, 404, edges[0].send(http.MethodDelete, path, "", "If-Match", "*").status)
}

// list is the ids at a path.
func (w *writer) list(path string) (ids []string) {
	w.t.Helper()
	got := w.send(http.MethodGet, path, "")
	require.Equal(w.t, 200, got.status, "%v", got.body)
	for _, object := range got.body["data"].([]any) {
		ids = append(ids, object.(map[string]any)["id"].(string))
	}
	return ids
}

func TestAnEndpointIsDisabledAndEnabled(t *testing.T) {
	w := startWrites(t)
	edge, another := w.edge(0), w.edge(0)
	created := edge.send(http.MethodPost, endpointsOf, someEndpoint)
	require.Equal(t, 201, created.status, "%v", created.body)
	path, key := created.header.Get("Location"), []string{"Idempotency-Key", "order-17"}

	off := edge.send(http.MethodPost, path+"/disable", "", key...)
	require.Equal(t, 200, off.status, "%v", off.body)
	require.Equal(t, []any{false, "manual", float64(2)}, []any{off.body["enabled"], off.body["disabledReason"], off.body["version"]})
	require.NotEmpty(t, off.body["disabledAt"])
	require.Equal(t, off.body, another.send(http.MethodGet, path, "").body)
	again := edge.send(http.MethodPost, path+"/disable", "")
	require.Equal(t, 200, again.status)
	require.Equal(t, off.body, again.body, "it is off already")

	require.Equal(t, 412, edge.send(http.MethodPost, path+"/enable", "", "If-Match", created.header.Get("ETag")).status)
	on := edge.send(http.MethodPost, path+"/enable", "", "If-Match", off.header.Get("ETag"))
	require.Equal(t, 200, on.status, "%v", on.body)
	require.Equal(t, []any{true, nil, nil, float64(3)},
		[]any{on.body["enabled"], on.body["disabledReason"], on.body["disabledAt"], on.body["version"]})
	require.Equal(t, on.body, another.send(http.MethodGet, path, "").body)

	requireReplay(t, off, another.send(http.MethodPost, path+"/disable", "", key...))
	require.Equal(t, on.body, edge.send(http.MethodGet, path, "").body, "a repeat changes nothing")
	require.Equal(t, 422, another.send(http.MethodPost, path+"/enable", "", key...).status, "another request with its key")
	require.Equal(t, 204, edge.send(http.MethodDelete, path, "").status)
	require.Equal(t, 404, edge.send(http.MethodPost, path+"/enable", "").status)
}

func TestASecretIsRotatedOnce(t *testing.T) {
	w := startWrites(t)
	edge, another := w.edge(0), w.edge(0)
	created := edge.send(http.MethodPost, endpointsOf, someEndpoint)
	require.Equal(t, 201, created.status, "%v", created.body)
	path, key := created.header.Get("Location"), []string{"Idempotency-Key", "order-17"}

	rotated := edge.send(http.MethodPost, path+"/rotate-secret", `{"overlapMs":60000}`, key...)
	require.Equal(t, 200, rotated.status, "%v", rotated.body)
	require.NotEmpty(t, rotated.body["secret"])
	require.NotEqual(t, created.body["secret"], rotated.body["secret"])
	requireReplay(t, rotated, another.send(http.MethodPost, path+"/rotate-secret", `{"overlapMs":60000}`, key...))

	shown := another.send(http.MethodGet, path, "")
	require.Equal(t, float64(2), shown.body["version"])
	require.Nil(t, shown.body["secret"], "it is given out once")
	require.Equal(t, 412, edge.send(http.MethodPost, path+"/rotate-secret", "", "If-Match", created.header.Get("ETag")).status)
	require.Equal(t, 200, edge.send(http.MethodPost, path+"/rotate-secret", "", "If-Match", rotated.header.Get("ETag")).status)
}

const replayed = "Idempotent-Replayed"

// requireReplay checks that an answer repeats the first, its secret aside.
func requireReplay(t *testing.T, first, again written) {
	t.Helper()
	require.Equal(t, first.status, again.status, "%v", again.body)
	require.Equal(t, "true", again.header.Get(replayed))
	for _, name := range []string{"Location", "ETag", "Content-Type"} {
		require.Equal(t, first.header.Get(name), again.header.Get(name), name)
	}
	want := maps.Clone(first.body)
	if _, has := want["secret"]; has {
		require.Contains(t, again.body, "secret")
		want["secret"] = nil
	}
	if _, has := want["requestId"]; has {
		want["requestId"] = again.header.Get("x-request-id")
	}
	require.Equal(t, want, again.body)
}

func TestARequestWithAKeyIsCarriedOutOnce(t *testing.T) {
	w := startWrites(t)
	edge, another := w.edge(0), w.edge(0)
	key := []string{"Idempotency-Key", "order-17"}
	first := edge.send(http.MethodPost, endpointsOf, someEndpoint, key...)
	require.Equal(t, 201, first.status, "%v", first.body)
	require.NotEmpty(t, first.body["secret"])
	require.Empty(t, first.header.Get(replayed))
	requireReplay(t, first, another.send(http.MethodPost, endpointsOf, someEndpoint, key...))

	other := another.send(http.MethodPost, endpointsOf, someEndpoint+" ", key...)
	require.Equal(t, 422, other.status)
	require.Equal(t, "idempotency_key_reused", other.body["code"])
	require.Empty(t, other.header.Get(replayed))
	require.Equal(t, 422, another.send(http.MethodPost, connectionsOf, someConnection, key...).status, "the key is the organization's")
	elsewhere := another.send(http.MethodPost, "/v1/orgs/org_2/endpoints", someEndpoint, key...)
	require.Equal(t, 201, elsewhere.status, "%v", elsewhere.body)
	require.Empty(t, elsewhere.header.Get(replayed), "and nobody else's")
	require.Equal(t, []string{first.body["id"].(string)}, another.list(endpointsOf))
	require.Empty(t, another.list(connectionsOf))

	// What is refused before anybody decided uses no key up.
	require.Equal(t, 422, edge.send(http.MethodPost, endpointsOf, `{"url":7}`, "Idempotency-Key", "order-18").status)
	require.Equal(t, 201, edge.send(http.MethodPost, endpointsOf, someEndpoint, "Idempotency-Key", "order-18").status)

	// The answer is that of then, whatever became of the endpoint, and of the machine that gave it.
	require.Equal(t, 200, edge.send(http.MethodPatch, first.header.Get("Location"), `{"paused":true}`).status)
	requireReplay(t, first, another.send(http.MethodPost, endpointsOf, someEndpoint, key...))
	w.stopOrganizations()
	require.NoError(t, os.RemoveAll(w.state+"/"+schemas.GroupInbound))
	w.startOrganizations()
	requireReplay(t, first, another.send(http.MethodPost, endpointsOf, someEndpoint, key...))
	require.Equal(t, 204, edge.send(http.MethodDelete, first.header.Get("Location"), "").status)
	requireReplay(t, first, edge.send(http.MethodPost, endpointsOf, someEndpoint, key...))
	require.NotContains(t, edge.list(endpointsOf), first.body["id"])
}

func TestManyRequestsAtOnceWithOneKeyMakeOneEndpoint(t *testing.T) {
	w := startWrites(t)
	edges := []*writer{w.edge(0), w.edge(0)}
	for _, key := range []string{"a", "b", "c"} {
		answers := atOnce(12, edges, func(_ int, edge *writer) written {
			return edge.send(http.MethodPost, endpointsOf, someEndpoint, "Idempotency-Key", key)
		})
		var first []written
		for _, a := range answers {
			require.Equal(t, 201, a.status, "%v", a.body)
			if a.header.Get(replayed) == "" {
				first = append(first, a)
			}
		}
		require.Len(t, first, 1)
		for _, a := range answers {
			if a.header.Get(replayed) != "" {
				requireReplay(t, first[0], a)
			}
		}
	}
	require.Len(t, edges[0].list(endpointsOf), 3)
}

func TestAConnectionWithAKeyIsMadeOnce(t *testing.T) {
	w := startWrites(t)
	edges := []*writer{w.edge(0), w.edge(0)}
	key := []string{"Idempotency-Key", "order-17"}
	answers := atOnce(12, edges, func(_ int, edge *writer) written {
		return edge.send(http.MethodPost, connectionsOf, someConnection, key...)
	})
	var first []written
	for _, a := range answers {
		switch {
		case a.status == 409:
			require.Equal(t, "idempotency_in_progress", a.body["code"])
		case a.header.Get(replayed) == "":
			require.Equal(t, 201, a.status, "%v", a.body)
			first = append(first, a)
		}
	}
	require.Len(t, first, 1)
	// Who has the answer finds it remembered, at once.
	for i := range 5 {
		body, key := fmt.Sprintf(`{"source":"stripe","account":"cus_1%d"}`, i), fmt.Sprint("connection ", i)
		made := edges[0].send(http.MethodPost, connectionsOf, body, "Idempotency-Key", key)
		require.Equal(t, 201, made.status, "%v", made.body)
		requireReplay(t, made, edges[1].send(http.MethodPost, connectionsOf, body, "Idempotency-Key", key))
	}
	requireReplay(t, first[0], edges[1].send(http.MethodPost, connectionsOf, someConnection, key...))
	require.Len(t, edges[0].list(connectionsOf), 6)

	taken := edges[0].send(http.MethodPost, "/v1/orgs/org_2/connections", someConnection, key...)
	require.Equal(t, 409, taken.status)
	require.Equal(t, "account_taken", taken.body["code"])
	require.Equal(t, 204, edges[0].send(http.MethodDelete, first[0].header.Get("Location"), "").status)
	requireReplay(t, taken, edges[1].send(http.MethodPost, "/v1/orgs/org_2/connections", someConnection, key...))
}

// TestWhoDidNotHearTheAnswerAsksAgain: an edge gave up waiting, the owner was away; the request sent again, to another
// edge, finds what became of it.
func TestWhoDidNotHearTheAnswerAsksAgain(t *testing.T) {
	w := startWrites(t)
	hasty, patient := w.edge(100*time.Millisecond), w.edge(0)
	key := []string{"Idempotency-Key", "order-17"}
	for name, c := range map[string]struct {
		path, body  string
		stop, start func()
		// reserved: the key is, so another request hears that the first one runs.
		reserved bool
	}{
		"an endpoint, its owner away": {
			endpointsOf, someEndpoint, func() { w.stopOrganizations() }, w.startOrganizations, false,
		},
		"a connection, the account's owner away": {
			"/v1/orgs/org_2/connections", `{"source":"stripe","account":"cus_2"}`, func() { w.stopAccounts() }, w.startAccounts, true,
		},
		"a connection, the organization's owner away": {
			"/v1/orgs/org_3/connections", `{"source":"stripe","account":"cus_3"}`, func() { w.stopOrganizations() }, w.startOrganizations, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.stop()
			a := hasty.send(http.MethodPost, c.path, c.body, key...)
			require.Equal(t, 202, a.status, "%v", a.body)
			require.Equal(t, map[string]any{"id": nil}, a.body)
			if c.reserved {
				running := patient.send(http.MethodPost, c.path, c.body, key...)
				require.Equal(t, 409, running.status, "%v", running.body)
				require.Equal(t, "idempotency_in_progress", running.body["code"])
			}
			c.start()
			var again written
			testenv.Eventually(t, soon, func() bool {
				again = patient.send(http.MethodPost, c.path, c.body, key...)
				return again.status != 409
			}, "the first request is concluded")
			require.Equal(t, 201, again.status, "%v", again.body)
			require.Equal(t, "true", again.header.Get(replayed))
			require.Equal(t, []string{again.body["id"].(string)}, patient.list(c.path))
		})
	}
}
