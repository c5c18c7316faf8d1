package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
)

const (
	adminKey     = "test-admin-key"
	stripeSecret = "whsec_test_of_stripe"
	// soon is how long the tests wait for what takes a second or two on an idle machine.
	soon = 30 * time.Second
)

// apart is the three services, each a process of its own, on a real Kafka and a real ClickHouse.
type apart struct {
	client
	kafka                        kafka.Config
	rows                         driver.Conn
	ingest, processor, deliverer *testenv.Server
}

// startApart starts the services with settings beside the ones that they need.
func startApart(t *testing.T, settings map[string]string) *apart {
	t.Helper()
	log, clickHouseURL := testenv.Kafka(t), testenv.ClickHouse(t)
	common := map[string]string{
		"KAFKA_BROKERS": log.Brokers[0], "KAFKA_TOPIC_PREFIX": log.TopicPrefix,
		"KAFKA_PARTITIONS": fmt.Sprint(log.Partitions), "KAFKA_REPLICATION_FACTOR": "1",
		"CLICKHOUSE_URL": clickHouseURL, "CLICKHOUSE_FLUSH_INTERVAL": "100ms",
		"ADMIN_API_KEY": adminKey, "SECRETS_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "STRIPE_WEBHOOK_SECRET": stripeSecret,
		"DELIVERY_ALLOW_CIDRS": "127.0.0.0/8", "LOG_FORMAT": "text",
	}
	for name, value := range settings {
		common[name] = value
	}
	addr := map[string]string{}
	for _, service := range []string{"ingest", "processor", "deliverer"} {
		addr[service] = testenv.FreeAddr(t)
	}
	common["PROCESSOR_URL"], common["DELIVERER_URL"] = "http://"+addr["processor"], "http://"+addr["deliverer"]
	service := func(name string) *testenv.Server {
		admin := testenv.FreeAddr(t)
		own := map[string]string{"HTTP_ADDR": addr[name], "ADMIN_ADDR": admin, "DATA_DIR": filepath.Join(t.TempDir(), name)}
		for name, value := range common {
			own[name] = value
		}
		return testenv.Service(t, own, testenv.ReadyAt(func() (string, error) { return admin, nil }), name)
	}
	s := &apart{
		client: client{url: "http://" + addr["ingest"], key: adminKey},
		kafka:  log, rows: openClickHouse(t, clickHouseURL),
		processor: service("processor"), deliverer: service("deliverer"), ingest: service("ingest"),
	}
	for _, server := range []*testenv.Server{s.processor, s.deliverer, s.ingest} {
		require.NoError(t, server.Start(t.Context()))
	}
	return s
}

// end stops the services as an operator would; each must drain and exit with 0.
func (s *apart) end(t *testing.T) {
	t.Helper()
	for _, server := range []*testenv.Server{s.ingest, s.processor, s.deliverer} {
		require.NoError(t, server.End(), server.Output())
	}
}

func openClickHouse(t *testing.T, url string) driver.Conn {
	t.Helper()
	options, err := clickhouse.ParseDSN(url)
	require.NoError(t, err)
	conn, err := clickhouse.Open(options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// count is the number that a query answers.
func count(t *testing.T, rows driver.Conn, query string, args ...any) int {
	t.Helper()
	var n uint64
	require.NoError(t, rows.QueryRow(t.Context(), "SELECT toUInt64("+query+")", args...).Scan(&n))
	return int(n)
}

// client speaks to the public address.
type client struct{ url, key string }

// do sends a request and decodes the JSON answer into out, when there is one.
func (c client) do(ctx context.Context, method, path string, header http.Header, body []byte, out any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if len(answer) > 0 && out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			return 0, fmt.Errorf("%s %s answered %q: %w", method, path, answer, err)
		}
	}
	return resp.StatusCode, nil
}

// call is a management request: its status and what it answered.
func (c client) call(t *testing.T, method, path string, body any) (status int, answer map[string]any) {
	t.Helper()
	var payload []byte
	if body != nil {
		var err error
		payload, err = json.Marshal(body)
		require.NoError(t, err)
	}
	header := http.Header{"Authorization": {"Bearer " + c.key}, "Content-Type": {"application/json"}}
	status, err := c.do(t.Context(), method, path, header, payload, &answer)
	require.NoError(t, err)
	return status, answer
}

// get is the object at a path, which must be there.
func (c client) get(t *testing.T, path string) map[string]any {
	t.Helper()
	status, answer := c.call(t, http.MethodGet, path, nil)
	require.Equal(t, http.StatusOK, status, "%s: %v", path, answer)
	return answer
}

// list is the data of a list.
func (c client) list(t *testing.T, path string) []any {
	t.Helper()
	data, ok := c.get(t, path)["data"].([]any)
	require.True(t, ok, "%s answers a list", path)
	return data
}

// endpoint creates an endpoint of org and returns its id and secret.
func (c client) endpoint(t *testing.T, org, url string, eventTypes ...string) (id, secret string) {
	t.Helper()
	status, answer := c.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", map[string]any{"url": url, "eventTypes": eventTypes})
	require.Equal(t, http.StatusCreated, status, "%v", answer)
	return at(answer, "id").(string), at(answer, "secret").(string)
}

// stripe posts a body with a signature and returns the status and our event id.
func (c client) stripe(t *testing.T, body []byte, signature string) (status int, id string) {
	t.Helper()
	var answer struct{ ID string }
	status, err := c.do(t.Context(), http.MethodPost, "/webhooks/stripe", http.Header{"Stripe-Signature": {signature}}, body, &answer)
	require.NoError(t, err)
	return status, answer.ID
}

// at is the value at a path like "subscriptions.0.items"; nil where there is none.
func at(v any, path string) any {
	for step := range strings.SplitSeq(path, ".") {
		switch parent := v.(type) {
		case map[string]any:
			v = parent[step]
		case []any:
			var i int
			if _, err := fmt.Sscan(step, &i); err != nil || i >= len(parent) {
				return nil
			}
			v = parent[i]
		default:
			return nil
		}
	}
	return v
}

// event is a Stripe event made from a fixture.
type event map[string]any

// stripeEvent reads a fixture (a whole event, its data, or a bare object) as a new event of a type: its own id, the customer and
// the subscription given, and org in the metadata unless it is empty.
func stripeEvent(t *testing.T, fixture, eventType, org, customer, subscription string, created time.Time) event {
	t.Helper()
	var e event
	decoder := json.NewDecoder(bytes.NewReader(testenv.Fixture(t, "stripe/"+fixture)))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&e))
	if e["object"] != "event" {
		data := map[string]any(e) // what stands at "data" of an event, or the object itself
		if _, bare := e["object"].(string); bare {
			data = map[string]any{"object": map[string]any(e)}
		}
		e = event{"object": "event", "api_version": "2025-04-30.basil", "livemode": false, "data": data}
	}
	e["id"] = fmt.Sprintf("evt_%x", time.Now().UnixNano())
	e["type"] = eventType
	e["created"] = created.Unix()
	object := e.object()
	object["customer"] = customer
	object["metadata"] = map[string]any{}
	if org != "" {
		object["metadata"] = map[string]any{"organizationId": org}
	}
	switch {
	case object["object"] == "subscription":
		object["id"] = subscription
	case at(object, "parent.subscription_details") != nil:
		at(object, "parent.subscription_details").(map[string]any)["subscription"] = subscription
	default:
		object["subscription"] = subscription
	}
	return e
}

func (e event) object() map[string]any {
	return e["data"].(map[string]any)["object"].(map[string]any)
}

func (e event) body(t *testing.T) []byte {
	t.Helper()
	body, err := json.Marshal(e)
	require.NoError(t, err)
	return body
}

// writePlans writes a PLANS_FILE that maps the fixtures' prices.
func writePlans(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plans.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`version: test-1
defaultPlan: FREE
graceDays: 7
plans:
  FREE: {tier: 0, capabilities: [], limits: {locations: 1}}
  SCM_PRO:
    tier: 2
    match: [price_000000000000000000000000, price_1IDQm5JDPojXS6LNM31hxKzp, FFBEGINNER_00000000000000]
    capabilities: [FORECASTING, PLANNING]
    limits: {locations: 20}
`), 0o600))
	return path
}

// signBytes signs what is no text.
func signBytes(payload []byte) string {
	return webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: payload, Secret: stripeSecret}).Header
}
