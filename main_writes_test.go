package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

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
	// owners are registered here; they are made anew with each start.
	reg       *prometheus.Registry
	stopTasks func()
}

func startWrites(t *testing.T) *writes {
	keyring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	w := &writes{t: t, kafka: testenv.FakeKafka(t), keyring: keyring, state: filepath.Join(t.TempDir(), "state")}
	w.startOwners()
	return w
}

func (w *writes) startOwners() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.reg = prometheus.NewRegistry()
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 100}, w.keyring)
	require.NoError(w.t, err)
	organizations, err := inbound.New(inbound.Config{Plans: plans.Builtin(), DedupeRetention: soon}, applier, log, w.reg)
	require.NoError(w.t, err)
	accounts, err := routing.New(routing.Config{Handles: func(string, string) bool { return true }}, log, w.reg)
	require.NoError(w.t, err)
	var runs []func(context.Context) error
	var groups []*stream.Group
	for _, spec := range []stream.Spec{accounts.Spec(), organizations.Spec()} {
		group, err := stream.New(spec, stream.Config{Kafka: w.kafka, StateDir: w.state}, log, w.reg)
		require.NoError(w.t, err)
		groups, runs = append(groups, group), append(runs, group.Run)
	}
	w.stopTasks = running(w.t, runs...)
	for _, group := range groups {
		testenv.Eventually(w.t, soon, func() bool { return group.Check(w.t.Context()) == nil }, "the owners are ready")
	}
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

// edge is the public address of one more instance.
func (w *writes) edge(change ...func(*ingest.Config)) *writer {
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
	cfg := ingest.Config{HTTPAddr: "127.0.0.1:0", Kafka: w.kafka, Stripe: stripe.Config{Secrets: []string{stripeSecret}}}
	for _, c := range change {
		c(&cfg)
	}
	edge, err := ingest.New(cfg, ingest.Deps{
		Routes: routes, Auth: httpapi.AdminKey(adminKey), Keyring: w.keyring, Rules: resource.NewRules(resource.Config{}),
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
	endpointsOf  = "/v1/orgs/org_1/endpoints"
	someEndpoint = `{"url":"https://example.com/hook","eventTypes":["*"],"headers":{"X-Key":"hidden"},"signatures":["v1","v1a"]}`
)

// TestOfChangesToOneVersionOneWins: whoever changes what he has read learns that another was faster, at whichever edge.
func TestOfChangesToOneVersionOneWins(t *testing.T) {
	w := startWrites(t)
	edges := []*writer{w.edge(), w.edge()}
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
