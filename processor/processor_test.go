package processor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org      = "org_1"
	adminKey = "admin-key"
	patience = 30 * time.Second
)

// rig is a running processor with its tables, as main puts them together.
type rig struct {
	t        *testing.T
	cfg      kafka.Config
	handler  fasthttp.RequestHandler
	producer *kgo.Client
	stop     func()
}

func start(t *testing.T, cfg kafka.Config, clickhouseURL, stateDir string, change ...func(*Config)) *rig {
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	copyOf := func(topic string) *table.Copy {
		c, err := table.New(table.Config{Kafka: cfg, StateDir: stateDir, Topic: topic}, log, reg)
		require.NoError(t, err)
		return c
	}
	tables := Tables{copyOf(schemas.Billing), copyOf(schemas.Entitlements), copyOf(schemas.Endpoints), copyOf(schemas.Connections)}
	conn, err := clickhouse.Open(t.Context(), clickhouseURL)
	require.NoError(t, err)
	keys, err := seal.NewKeyring(base64.StdEncoding.EncodeToString(make([]byte, 32)))
	require.NoError(t, err)
	config := Config{
		Kafka: cfg, StateDir: stateDir, Plans: plans.Builtin(), DedupeRetention: time.Hour, EndpointsPerOrg: 10,
		FlushInterval: 10 * time.Millisecond,
	}
	for _, c := range change {
		c(&config)
	}
	p, err := New(config, Deps{
		Tables: tables, Auth: httpapi.AdminKey(adminKey), Keys: keys, ClickHouse: conn,
		Migrate: func(ctx context.Context) error { return clickhouse.Migrate(ctx, clickhouseURL, log) },
		Log:     log, Registerer: reg,
	})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	tablesCtx, stopTables := context.WithCancel(context.Background())
	var group errgroup.Group
	copies := []*table.Copy{tables.Billing, tables.Entitlements, tables.Endpoints, tables.Connections}
	for _, c := range copies {
		group.Go(func() error { return c.Run(tablesCtx) })
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	r := &rig{t: t, cfg: cfg, handler: p.Handler(), producer: producer(t, cfg)}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(t, <-done)
		stopTables()
		require.NoError(t, group.Wait())
		for _, c := range copies {
			require.NoError(t, c.Close())
		}
		require.NoError(t, conn.Close())
	}
	t.Cleanup(r.stop)
	testenv.Eventually(t, patience, func() bool {
		return p.Check(t.Context()) == nil && p.CheckSinks(t.Context()) == nil
	}, "the processor is ready")
	return r
}

func producer(t *testing.T, cfg kafka.Config) *kgo.Client {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func (r *rig) produce(topic, routingKey string, value []byte, headers ...string) {
	record := &kgo.Record{Topic: r.cfg.Topic(topic), Partition: r.cfg.PartitionOf(routingKey), Key: []byte(routingKey), Value: value}
	for i := 0; i < len(headers); i += 2 {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
	}
	require.NoError(r.t, r.producer.ProduceSync(r.t.Context(), record).FirstErr())
}

// subscription sends an event as the edge does: to the organization's topic, or to its account's when unrouted.
func (r *rig) subscription(topic, routingKey, eventID, eventType, status string, created int64) {
	body := fmt.Appendf(nil, `{"id":%q,"created":%d,"livemode":false,"data":{"object":{"id":"sub_1","object":"subscription","customer":"cus_1",
		"status":%q,"metadata":{"organizationId":"org_1"},"items":{"data":[{"id":"si_1","price":{"id":"price_1","lookup_key":"scm_pro"}}]}}}}`,
		eventID, created, status)
	headers := stripeHeaders(eventID, eventType)
	if topic == schemas.Inbound {
		headers = append(headers, schemas.HeaderOrganization, org)
	} else {
		headers = append(headers, schemas.HeaderNamedOrganization, org)
	}
	r.produce(topic, routingKey, body, headers...)
}

func stripeHeaders(eventID, eventType string) []string {
	return []string{
		schemas.HeaderID, eventID, schemas.HeaderSource, schemas.SourceStripe, schemas.HeaderType, eventType,
		schemas.HeaderEventID, id.Derive(id.Event, schemas.SourceStripe, eventID), schemas.HeaderAccount, "cus_1",
		schemas.HeaderAcceptedAt, time.Now().UTC().Format(time.RFC3339Nano),
	}
}

func (r *rig) command(topic, routingKey string, cmd *webhooksv1.Command) {
	value, err := proto.Marshal(cmd)
	require.NoError(r.t, err)
	r.produce(topic, routingKey, value, schemas.HeaderID, cmd.Id, schemas.HeaderType, schemas.TypeCommand,
		schemas.HeaderSource, schemas.SourceManagement, schemas.HeaderOrganization, cmd.OrganizationId)
}

func (r *rig) get(path string) (status int, body map[string]any) {
	ctx := &fasthttp.RequestCtx{}
	ctx.Init(&fasthttp.Request{}, nil, nil)
	ctx.Request.SetRequestURI(path)
	ctx.Request.Header.Set("Authorization", "Bearer "+adminKey)
	r.handler(ctx)
	_ = json.Unmarshal(ctx.Response.Body(), &body)
	return ctx.Response.StatusCode(), body
}

// await reads a path until its answer is as wanted.
func (r *rig) await(path string, want func(body map[string]any) bool) map[string]any {
	r.t.Helper()
	var body map[string]any
	testenv.Eventually(r.t, patience, func() bool {
		status, got := r.get(path)
		body = got
		return status == http.StatusOK && want(got)
	}, path)
	return body
}

func (r *rig) awaitVersion(version float64) map[string]any {
	r.t.Helper()
	return r.await("/v1/orgs/org_1/entitlements", func(body map[string]any) bool { return body["version"] == version })
}

// TestEventsTakeEffect follows events from the log to the tables, the rows and the API, over a stop and a start.
func TestEventsTakeEffect(t *testing.T) {
	cfg, clickhouseURL, stateDir := testenv.FakeKafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state")
	r := start(t, cfg, clickhouseURL, stateDir)

	endpoint := &webhooksv1.Endpoint{
		Id: id.New(id.Endpoint), OrganizationId: org, Url: "https://example.com/hook", EventTypes: []string{"*"}, Enabled: true,
	}
	r.command(schemas.Inbound, org, &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_CreateEndpoint{
		CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: endpoint},
	}})
	r.await("/v1/orgs/org_1/endpoints", func(body map[string]any) bool { return len(body["data"].([]any)) == 1 })

	// An account nobody has connected, whose events name their organization.
	now := time.Now().Unix()
	r.subscription(schemas.InboundUnrouted, "stripe/cus_1", "evt_1", billing.SubscriptionCreated, "active", now)
	require.Equal(t, "SCM_PRO", r.awaitVersion(1)["plan"])
	r.await("/v1/orgs/org_1/connections", func(body map[string]any) bool { return len(body["data"].([]any)) == 1 })
	r.subscription(schemas.Inbound, org, "evt_1", billing.SubscriptionCreated, "active", now)
	r.subscription(schemas.Inbound, org, "evt_2", billing.SubscriptionUpdated, "past_due", now+1)
	require.Equal(t, "grace", r.awaitVersion(2)["status"])

	r.stop()
	r = start(t, cfg, clickhouseURL, stateDir)
	r.subscription(schemas.Inbound, org, "evt_2", billing.SubscriptionUpdated, "past_due", now+1)
	r.subscription(schemas.Inbound, org, "evt_3", billing.SubscriptionDeleted, "canceled", now+2)
	require.Equal(t, "FREE", r.awaitVersion(3)["plan"])
	_, record := r.get("/v1/orgs/org_1/billing")
	require.Equal(t, "canceled", record["status"])

	body := r.await("/v1/orgs/org_1/billing/audit", func(body map[string]any) bool { return len(body["data"].([]any)) == 3 })
	var actions []any
	for _, entry := range body["data"].([]any) {
		actions = append(actions, entry.(map[string]any)["action"])
	}
	require.ElementsMatch(t, []any{billing.SubscriptionCreated, billing.SubscriptionUpdated, billing.SubscriptionDeleted}, actions)
	require.Len(t, deliveries(t, cfg, 3), 3)
}

// TestAMovedConnectionTakesThePlanAlong follows a move through the owners of the account and of both organizations.
func TestAMovedConnectionTakesThePlanAlong(t *testing.T) {
	r := start(t, testenv.FakeKafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state"))
	r.subscription(schemas.InboundUnrouted, "stripe/cus_1", "evt_1", billing.SubscriptionCreated, "active", time.Now().Unix())
	require.Equal(t, "SCM_PRO", r.awaitVersion(1)["plan"])

	r.command(schemas.InboundUnrouted, "stripe/cus_1", &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: "org_2", Action: &webhooksv1.Command_CreateConnection{
			CreateConnection: &webhooksv1.CreateConnection{Move: true, Connection: &webhooksv1.Connection{
				Id: id.New(id.Connection), OrganizationId: "org_2", Source: schemas.SourceStripe, Account: "cus_1",
			}},
		},
	})
	require.Equal(t, "FREE", r.awaitVersion(2)["plan"])
	moved := r.await("/v1/orgs/org_2/entitlements", func(body map[string]any) bool { return body["version"] == float64(1) })
	require.Equal(t, "SCM_PRO", moved["plan"])
	r.await("/v1/orgs/org_2/billing", func(body map[string]any) bool { return len(body["subscriptions"].([]any)) == 1 })
}

// deliveries reads the topic `deliveries` until it holds n events, and a little longer: none may come twice.
func deliveries(t *testing.T, cfg kafka.Config, n int) (list []*webhooksv1.Deliveries) {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(cfg.Topic(schemas.Deliveries)),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	require.NoError(t, err)
	defer client.Close()
	for quiet := patience; ; {
		ctx, cancel := context.WithTimeout(t.Context(), quiet)
		fetches := client.PollFetches(ctx)
		cancel()
		if fetches.NumRecords() == 0 {
			return list
		}
		for it := fetches.RecordIter(); !it.Done(); {
			d := &webhooksv1.Deliveries{}
			require.NoError(t, proto.Unmarshal(it.Next().Value, d))
			list = append(list, d)
		}
		if len(list) >= n {
			quiet = time.Second
		}
	}
}
