package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/ingest/stripe"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	secret   = "whsec_test"
	adminKey = "admin-key"
)

// table stands in for the copy of `routes`.
type table struct{ fn func(key, value []byte) }

func (t *table) OnChange(fn func(key, value []byte)) { t.fn = fn }
func (t *table) Check(context.Context) error         { return nil }
func (t *table) Age() time.Duration                  { return 0 }

// route makes an account live.
func (t *table) route(account, org string) {
	value, err := proto.Marshal(&webhooksv1.Route{OrganizationId: org})
	if err != nil {
		panic(err)
	}
	t.fn([]byte(account), value)
}

// edge is a running edge with what stands around it.
type edge struct {
	*ingest.Edge
	t      testing.TB
	kafka  kafka.Config
	routes *table
	reg    *prometheus.Registry
	url    string
	// stop ends Run and returns what it returned.
	stop func() error
}

// start runs an edge until the test ends; change may alter its configuration.
func start(t testing.TB, cluster kafka.Config, change ...func(*ingest.Config, *ingest.Deps)) *edge {
	keyring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	e := &edge{t: t, kafka: cluster, routes: &table{}, reg: prometheus.NewRegistry()}
	cfg := ingest.Config{
		HTTPAddr: "127.0.0.1:0", Kafka: cluster, Stripe: stripe.Config{Secrets: []string{secret}}, Worker: "w1",
	}
	deps := ingest.Deps{
		Routes: e.routes, Auth: httpapi.AdminKey(adminKey), AdminKey: adminKey, Keyring: keyring, Rules: resource.NewRules(resource.Config{}),
		Processor: room("processor"), Deliverer: room("deliverer"),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Registerer: e.reg,
	}
	for _, fn := range change {
		fn(&cfg, &deps)
	}
	e.Edge, err = ingest.New(cfg, deps)
	require.NoError(t, err)
	addr, err := e.Listen()
	require.NoError(t, err)
	e.url = "http://" + addr.String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	e.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = e.stop() })
	return e
}

// startReady is start, and waits until the edge is ready.
func startReady(t testing.TB, cluster kafka.Config, change ...func(*ingest.Config, *ingest.Deps)) *edge {
	e := start(t, cluster, change...)
	testenv.Eventually(t, 20*time.Second, func() bool { return e.Check(t.Context()) == nil }, "the edge is ready")
	// The edge opens a moment after the first check passes.
	testenv.Eventually(t, 5*time.Second, func() bool {
		a := e.post([]byte(`{}`), "")
		return a.status != http.StatusServiceUnavailable
	}, "the edge is open")
	return e
}

// room answers with its name and what it was asked.
func room(name string) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		httpapi.WriteJSON(ctx, http.StatusOK, map[string]string{
			"room": name, "method": string(ctx.Method()), "path": string(ctx.Path()), "body": string(ctx.PostBody()),
		})
	}
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t testing.TB) (p struct {
	Type, Title, Detail, Code, RequestID string
	Status                               int
	Errors                               []any
}) {
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), "%d %s", a.status, a.body)
	require.NoError(t, json.Unmarshal(a.body, &p), "%s", a.body)
	return p
}

func (e *edge) do(req *http.Request) answer {
	e.t.Helper()
	res, err := http.DefaultClient.Do(req)
	require.NoError(e.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(e.t, err)
	return answer{res.StatusCode, res.Header, body}
}

func (e *edge) request(method, path string, body []byte, headers ...string) *http.Request {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.url+path, bytes.NewReader(body))
	require.NoError(e.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

// post sends a Stripe event; an empty signature sends none.
func (e *edge) post(body []byte, signature string, headers ...string) answer {
	e.t.Helper()
	if signature != "" {
		headers = append(headers, "Stripe-Signature", signature)
	}
	return e.do(e.request(http.MethodPost, "/webhooks/stripe", body, headers...))
}

func sign(body []byte) string { return signAt(body, secret, time.Now()) }

func signAt(body []byte, secret string, at time.Time) string {
	return fmt.Sprintf("t=%d,v1=%x", at.Unix(), webhook.ComputeSignature(at, body, secret))
}

// records reads a topic until n records are there.
func records(t testing.TB, cfg kafka.Config, topic string, n int) []*kgo.Record {
	t.Helper()
	return recordsUntil(t, cfg, topic, func(got []*kgo.Record) bool { return len(got) >= n })
}

func recordsUntil(t testing.TB, cfg kafka.Config, topic string, enough func([]*kgo.Record) bool) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(cfg.Topic(topic)))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var got []*kgo.Record
	for !enough(got) {
		fetches := client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%d records on %s", len(got), topic)
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, r) })
	}
	return got
}

// metric is the value of a counter, 0 where it is not there.
func (e *edge) metric(name string, labels ...string) float64 {
	e.t.Helper()
	families, err := e.reg.Gather()
	require.NoError(e.t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metrics:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				ok := false
				for _, l := range m.GetLabel() {
					ok = ok || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !ok {
					continue metrics
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}
