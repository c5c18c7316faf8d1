package ingest_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// owner stands in for the tasks that carry commands out.
type owner struct {
	mu       sync.Mutex
	commands []*webhooksv1.Command
	records  []*kgo.Record
}

// startOwner answers every command with what decide makes of it; nil answers nothing.
func startOwner(t testing.TB, cfg kafka.Config, decide func(*webhooksv1.Command) *webhooksv1.CommandOutcome) *owner {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(
		cfg.Topic(schemas.Inbound), cfg.Topic(schemas.InboundUnrouted), cfg.Topic(schemas.Deliveries)))
	require.NoError(t, err)
	o := &owner{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait(); client.Close() })
	running.Go(func() {
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				if kafka.ReadHeader(r.Headers, schemas.HeaderType) != schemas.TypeCommand {
					return
				}
				var cmd webhooksv1.Command
				if proto.Unmarshal(r.Value, &cmd) != nil {
					panic("unreadable command")
				}
				o.mu.Lock()
				o.commands, o.records = append(o.commands, &cmd), append(o.records, r)
				o.mu.Unlock()
				if outcome := decide(&cmd); outcome != nil {
					outcome.CommandId = cmd.Id
					value, _ := proto.Marshal(outcome)
					client.Produce(ctx, &kgo.Record{Topic: cfg.Topic(schemas.CommandOutcomes), Key: r.Key, Value: value}, nil)
				}
			})
		}
	})
	return o
}

func (o *owner) last() (*webhooksv1.Command, *kgo.Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.commands[len(o.commands)-1], o.records[len(o.records)-1]
}

func (o *owner) seen() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.commands)
}

// obliging does what is asked.
func obliging(cmd *webhooksv1.Command) *webhooksv1.CommandOutcome {
	switch a := cmd.Action.(type) {
	case *webhooksv1.Command_CreateEndpoint:
		e := proto.CloneOf(a.CreateEndpoint.Endpoint)
		e.Version = 1
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Endpoint{Endpoint: e}}
	case *webhooksv1.Command_UpdateEndpoint:
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Endpoint{Endpoint: &webhooksv1.Endpoint{
			Id: a.UpdateEndpoint.EndpointId, OrganizationId: cmd.OrganizationId, Version: 2,
		}}}
	case *webhooksv1.Command_RotateSecret:
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Endpoint{Endpoint: &webhooksv1.Endpoint{
			Id: a.RotateSecret.EndpointId, OrganizationId: cmd.OrganizationId, Version: 3,
		}}}
	case *webhooksv1.Command_StartReplay:
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Replay{Replay: a.StartReplay.Replay}}
	case *webhooksv1.Command_ChangeReplay:
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Replay{Replay: &webhooksv1.Replay{
			Id: a.ChangeReplay.ReplayId, EndpointId: a.ChangeReplay.EndpointId, Status: a.ChangeReplay.Status,
		}}}
	case *webhooksv1.Command_CreateConnection:
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Connection{Connection: a.CreateConnection.Connection}}
	}
	return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}}
}

func refusing(status uint32, code string) func(*webhooksv1.Command) *webhooksv1.CommandOutcome {
	return func(*webhooksv1.Command) *webhooksv1.CommandOutcome {
		return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Refusal{Refusal: &webhooksv1.Refusal{
			Status: status, Code: code, Detail: "because", Errors: []*webhooksv1.FieldError{{Pointer: "/a", Detail: "b"}},
		}}}
	}
}

// manage sends a management request as the admin.
func (e *edge) manage(method, path, body string, headers ...string) answer {
	e.t.Helper()
	headers = append([]string{"Authorization", "Bearer " + adminKey, "Content-Type", "application/json"}, headers...)
	return e.do(e.request(method, path, []byte(body), headers...))
}

func object(t testing.TB, a answer) (o map[string]any) {
	require.NoError(t, json.Unmarshal(a.body, &o), "%d %s", a.status, a.body)
	return o
}

const (
	endpointsPath   = "/v1/orgs/org_1/endpoints"
	connectionsPath = "/v1/orgs/org_1/connections"
	newEndpoint     = `{"url":"https://example.com/hook","eventTypes":["*"],"headers":{"X-Key":"header-value"},"signatures":["v1","v1a"]}`
)

func TestCreateEndpoint(t *testing.T) {
	var keyring *seal.Keyring
	e := startReady(t, testenv.FakeKafka(t), func(_ *ingest.Config, d *ingest.Deps) { keyring = d.Keyring })
	o := startOwner(t, e.kafka, obliging)
	a := e.manage(http.MethodPost, endpointsPath, newEndpoint)
	require.Equal(t, 201, a.status, "%s", a.body)
	view := object(t, a)
	endpoint, secret := view["id"].(string), view["secret"].(string)
	require.True(t, id.Valid(id.Endpoint, endpoint))
	require.True(t, strings.HasPrefix(secret, "whsec_"))
	require.True(t, strings.HasPrefix(view["publicKey"].(string), "whpk_"))
	require.Equal(t, endpointsPath+"/"+endpoint, a.header.Get("Location"))
	require.Equal(t, `"1"`, a.header.Get("ETag"))
	require.Equal(t, map[string]any{"X-Key": "***"}, view["headers"])

	cmd, r := o.last()
	require.Equal(t, "org_1", string(r.Key))
	require.Equal(t, e.kafka.Topic(schemas.Inbound), r.Topic)
	require.Equal(t, e.kafka.PartitionOf("org_1"), r.Partition)
	require.Equal(t, "admin", cmd.KeyId)
	require.Equal(t, cmd.Id, kafka.ReadHeader(r.Headers, schemas.HeaderID))
	require.Equal(t, "management", kafka.ReadHeader(r.Headers, schemas.HeaderSource))
	require.NotContains(t, string(r.Value), secret, "secrets are sealed")
	require.NotContains(t, string(r.Value), "header-value")
	stored := cmd.GetCreateEndpoint().Endpoint
	opened, err := keyring.Open(stored.Secrets[0].SealedSecret, seal.EndpointSecret(endpoint))
	require.NoError(t, err)
	require.Equal(t, secret, string(opened))
	opened, err = keyring.Open(stored.Secrets[0].SealedPrivateKey, seal.EndpointPrivateKey(endpoint))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(opened), "whsk_"))
	opened, err = keyring.Open(stored.SealedHeaders, seal.EndpointHeaders(endpoint))
	require.NoError(t, err)
	require.JSONEq(t, `{"X-Key":"header-value"}`, string(opened))
}

func TestPatchAndDeleteEndpoint(t *testing.T) {
	var keyring *seal.Keyring
	e := startReady(t, testenv.FakeKafka(t), func(_ *ingest.Config, d *ingest.Deps) { keyring = d.Keyring })
	o := startOwner(t, e.kafka, obliging)
	path := endpointsPath + "/" + id.New(id.Endpoint)
	a := e.manage(http.MethodPatch, path, `{"description":"x","headers":{"X-New":"hidden","X-Old":null}}`, "Content-Type", "application/merge-patch+json")
	require.Equal(t, 200, a.status, "%s", a.body)
	require.Equal(t, `"2"`, a.header.Get("ETag"))
	require.Nil(t, object(t, a)["secret"])
	cmd, r := o.last()
	require.NotContains(t, string(r.Value), "hidden")
	require.Nil(t, cmd.Precondition)
	update := cmd.GetUpdateEndpoint()
	require.JSONEq(t, `{"description":"x"}`, string(update.PatchJson))
	require.Equal(t, []string{"X-New"}, update.Headers.Names)
	require.Equal(t, []string{"X-Old"}, update.Headers.Removed)
	opened, err := keyring.Open(update.Headers.Sealed, seal.EndpointHeaders(update.EndpointId))
	require.NoError(t, err)
	require.JSONEq(t, `{"X-New":"hidden"}`, string(opened))

	a = e.manage(http.MethodDelete, path, "")
	require.Equal(t, 204, a.status, "%s", a.body)
	require.Empty(t, a.body)
}

func TestEnableAndDisableEndpoint(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	o := startOwner(t, e.kafka, obliging)
	path := endpointsPath + "/" + id.New(id.Endpoint)
	for action, patch := range map[string]string{"/enable": `{"enabled":true}`, "/disable": `{"enabled":false}`} {
		a := e.manage(http.MethodPost, path+action, "")
		require.Equal(t, 200, a.status, "%s", a.body)
		require.Equal(t, `"2"`, a.header.Get("ETag"))
		require.Equal(t, path, endpointsPath+"/"+object(t, a)["id"].(string))
		cmd, r := o.last()
		require.Equal(t, "org_1", string(r.Key))
		require.JSONEq(t, patch, string(cmd.GetUpdateEndpoint().PatchJson))
		require.Nil(t, cmd.Precondition)
		require.Nil(t, cmd.IdempotencyKey)

		a = e.manage(http.MethodPost, path+action, "{}", "If-Match", `"7"`, "Idempotency-Key", "order-17")
		require.Equal(t, 200, a.status, "%s", a.body)
		cmd, _ = o.last()
		require.Equal(t, []uint64{7}, cmd.Precondition.GetVersions())
		require.NotEmpty(t, cmd.IdempotencyKey.GetHash())

		require.Equal(t, 400, e.manage(http.MethodPost, path+action, "", "If-Match", "7").status)
		require.Equal(t, 400, e.manage(http.MethodPost, path+action, "", "Idempotency-Key", "").status)
		require.Equal(t, 401, e.manage(http.MethodPost, path+action, "", "Authorization", "").status)
	}
	require.Equal(t, 4, o.seen())
}

func TestRotateSecret(t *testing.T) {
	var keyring *seal.Keyring
	e := startReady(t, testenv.FakeKafka(t), func(_ *ingest.Config, d *ingest.Deps) { keyring = d.Keyring })
	o := startOwner(t, e.kafka, obliging)
	endpoint := id.New(id.Endpoint)
	path := endpointsPath + "/" + endpoint + "/rotate-secret"
	for body, overlapMS := range map[string]uint64{"": 86_400_000, `{"overlapMs":0}`: 0, `{"overlapMs":3600000}`: 3_600_000} {
		a := e.manage(http.MethodPost, path, body, "If-Match", `"2"`)
		require.Equal(t, 200, a.status, "%s", a.body)
		require.Equal(t, `"3"`, a.header.Get("ETag"))
		secret := object(t, a)["secret"].(string)
		_, err := signing.ParseSecret(secret)
		require.NoError(t, err)

		cmd, r := o.last()
		rotate := cmd.GetRotateSecret()
		require.Equal(t, endpoint, rotate.EndpointId)
		require.Equal(t, overlapMS, rotate.OverlapMs)
		require.Equal(t, []uint64{2}, cmd.Precondition.GetVersions())
		require.NotContains(t, string(r.Value), secret, "in clear text on no topic")
		plain, err := keyring.Open(rotate.Secret.SealedSecret, seal.EndpointSecret(endpoint))
		require.NoError(t, err)
		require.Equal(t, secret, string(plain))
		_, err = keyring.Open(rotate.Secret.SealedPrivateKey, seal.EndpointPrivateKey(endpoint))
		require.NoError(t, err)
		require.NotEmpty(t, rotate.PublicKey)
	}
	seen := o.seen()
	require.Equal(t, 422, e.manage(http.MethodPost, path, `{"overlapMs":-1}`).status)
	require.Equal(t, 415, e.manage(http.MethodPost, path, `{}`, "Content-Type", "text/plain").status)
	require.Equal(t, 401, e.manage(http.MethodPost, path, "", "Authorization", "").status)
	require.Equal(t, seen, o.seen())
}

func TestIfMatchGoesToTheOwner(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	o := startOwner(t, e.kafka, refusing(412, "precondition_failed"))
	path := endpointsPath + "/" + id.New(id.Endpoint)
	for _, method := range []string{http.MethodPatch, http.MethodDelete} {
		for name, c := range map[string]struct {
			ifMatch string
			want    *webhooksv1.Precondition
		}{
			"a version":      {`"7"`, &webhooksv1.Precondition{Versions: []uint64{7}}},
			"several":        {`"7", W/"8", "9"`, &webhooksv1.Precondition{Versions: []uint64{7, 9}}},
			"any":            {"*", &webhooksv1.Precondition{Any: true}},
			"no tag of ours": {`"abc"`, &webhooksv1.Precondition{}},
		} {
			t.Run(method+" "+name, func(t *testing.T) {
				a := e.manage(method, path, `{}`, "If-Match", c.ifMatch)
				require.Equal(t, 412, a.status, "%s", a.body)
				require.Equal(t, "precondition_failed", a.problem(t).Code)
				cmd, _ := o.last()
				require.True(t, proto.Equal(c.want, cmd.Precondition), "%v", cmd.Precondition)
			})
		}
	}
}

func TestConnections(t *testing.T) {
	connection := id.New(id.Connection)
	processor := func(ctx *fasthttp.RequestCtx) {
		if !ctx.IsGet() || string(ctx.Path()) != connectionsPath+"/"+connection || len(ctx.PostBody()) > 0 ||
			string(ctx.Request.Header.Peek("Authorization")) != "Bearer "+adminKey {
			httpapi.WriteProblem(ctx, httpapi.NotFound())
			return
		}
		httpapi.WriteJSON(ctx, 200, map[string]string{"source": "stripe", "account": "cus_7"})
	}
	t.Run("with the processor in this process", func(t *testing.T) { testConnections(t, connection, processor) })
	t.Run("with the processor apart", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- httpapi.Serve(ctx, listener, processor) }()
		t.Cleanup(func() { stop(); <-served })
		proxy, err := httpapi.Proxy("http://" + listener.Addr().String())
		require.NoError(t, err)
		testConnections(t, connection, proxy)
	})
}

func testConnections(t *testing.T, connection string, processor fasthttp.RequestHandler) {
	e := startReady(t, testenv.FakeKafka(t), func(_ *ingest.Config, d *ingest.Deps) { d.Processor = processor })
	o := startOwner(t, e.kafka, obliging)
	a := e.manage(http.MethodPost, connectionsPath, `{"source":"stripe","account":"cus_7","accessToken":"sk_hidden","move":true}`)
	require.Equal(t, 201, a.status, "%s", a.body)
	require.Equal(t, connectionsPath+"/"+object(t, a)["id"].(string), a.header.Get("Location"))
	cmd, r := o.last()
	require.Equal(t, "stripe/cus_7", string(r.Key))
	require.Equal(t, e.kafka.Topic(schemas.InboundUnrouted), r.Topic)
	require.True(t, cmd.GetCreateConnection().Move)
	require.NotContains(t, string(r.Value), "sk_hidden")
	require.NotContains(t, string(a.body), "sk_hidden")

	// Some clients send a body along with DELETE.
	a = e.manage(http.MethodDelete, connectionsPath+"/"+connection+"?x=1", "{}")
	require.Equal(t, 204, a.status, "%s", a.body)
	cmd, r = o.last()
	require.Equal(t, "stripe/cus_7", string(r.Key), "a deletion goes to the account's owner")
	require.Equal(t, connection, cmd.GetDeleteConnection().ConnectionId)
	require.Equal(t, "cus_7", cmd.GetDeleteConnection().Account)

	require.Equal(t, 204, e.manage(http.MethodDelete, connectionsPath+"/"+connection, "", "If-Match", "*").status)
	before := o.seen()
	require.Equal(t, 404, e.manage(http.MethodDelete, connectionsPath+"/"+id.New(id.Connection), "").status)
	require.Equal(t, 404, e.manage(http.MethodDelete, connectionsPath+"/"+id.New(id.Connection), "", "If-Match", `"1"`).status)
	a = e.manage(http.MethodDelete, connectionsPath+"/"+connection, "", "If-Match", `"1"`)
	require.Equal(t, 412, a.status, "a connection has no version")
	require.Equal(t, "precondition_failed", a.problem(t).Code)
	require.Equal(t, before, o.seen())
}

func TestACommandWithAKeyGoesToItsOrganizationsOwner(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	o := startOwner(t, e.kafka, obliging)
	for path, body := range map[string]string{
		endpointsPath: newEndpoint, connectionsPath: `{"source":"stripe","account":"cus_7","accessToken":"sk_hidden"}`,
	} {
		a := e.manage(http.MethodPost, path, body, "Idempotency-Key", "order-17")
		require.Equal(t, 201, a.status, "%s", a.body)
		require.Empty(t, a.header.Get("idempotent-replayed"))
		cmd, r := o.last()
		require.Equal(t, e.kafka.Topic(schemas.Inbound), r.Topic)
		require.Equal(t, "org_1", string(r.Key))
		require.Len(t, cmd.IdempotencyKey.GetHash(), 32)
		require.Len(t, cmd.IdempotencyKey.GetFingerprint(), 32)
		require.NotContains(t, string(r.Value), "order-17")
	}
	// Without a key the account's owner is asked at once.
	require.Equal(t, 201, e.manage(http.MethodPost, connectionsPath, `{"source":"stripe","account":"cus_7"}`).status)
	_, r := o.last()
	require.Equal(t, e.kafka.Topic(schemas.InboundUnrouted), r.Topic)
}

func TestAnEarlierCommandsOutcomeIsTheAnswer(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	first := &webhooksv1.Endpoint{Id: id.New(id.Endpoint), OrganizationId: "org_1", Url: "https://example.com/first", Version: 1}
	connection := &webhooksv1.Connection{Id: id.New(id.Connection), OrganizationId: "org_1", Source: "stripe", Account: "cus_7"}
	startOwner(t, e.kafka, func(cmd *webhooksv1.Command) *webhooksv1.CommandOutcome {
		outcome := refusing(409, "uid_taken")(cmd)
		switch cmd.Action.(type) {
		case *webhooksv1.Command_CreateConnection:
			outcome.Result = &webhooksv1.CommandOutcome_Connection{Connection: connection}
		case *webhooksv1.Command_CreateEndpoint:
			if cmd.GetCreateEndpoint().Endpoint.Uid == nil {
				outcome.Result = &webhooksv1.CommandOutcome_Endpoint{Endpoint: first}
			}
		}
		outcome.Replayed = true
		return outcome
	})
	a := e.manage(http.MethodPost, endpointsPath, newEndpoint, "Idempotency-Key", "k")
	require.Equal(t, 201, a.status, "%s", a.body)
	require.Equal(t, "true", a.header.Get("idempotent-replayed"))
	require.Equal(t, endpointsPath+"/"+first.Id, a.header.Get("Location"))
	require.Equal(t, `"1"`, a.header.Get("ETag"))
	view := object(t, a)
	require.Equal(t, first.Url, view["url"])
	require.Contains(t, view, "secret")
	require.Nil(t, view["secret"], "the one made for this request is nobody's")

	a = e.manage(http.MethodPost, connectionsPath, `{"source":"stripe","account":"cus_7"}`, "Idempotency-Key", "k")
	require.Equal(t, 201, a.status, "%s", a.body)
	require.Equal(t, "true", a.header.Get("idempotent-replayed"))
	require.Equal(t, connectionsPath+"/"+connection.Id, a.header.Get("Location"))

	a = e.manage(http.MethodPost, endpointsPath, `{"url":"https://e.com","eventTypes":["*"],"uid":"u"}`, "Idempotency-Key", "k2")
	require.Equal(t, 409, a.status, "%s", a.body)
	require.Equal(t, "uid_taken", a.problem(t).Code)
	require.Equal(t, "true", a.header.Get("idempotent-replayed"))
}

func TestManagementRefusals(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	o := startOwner(t, e.kafka, obliging)
	path := endpointsPath + "/" + id.New(id.Endpoint)
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
	}{
		"no key":                  {"POST", endpointsPath, newEndpoint, []string{"Authorization", ""}, 401},
		"an unknown key":          {"POST", endpointsPath, newEndpoint, []string{"Authorization", "Bearer nope"}, 401},
		"an org that is none":     {"POST", "/v1/orgs/a.b/endpoints", newEndpoint, nil, 404},
		"an id that is none":      {"PATCH", endpointsPath + "/ep_1", `{}`, nil, 404},
		"an id of another kind":   {"DELETE", endpointsPath + "/" + id.New(id.Connection), ``, nil, 404},
		"a wrong method":          {"PUT", endpointsPath, newEndpoint, nil, 405},
		"no JSON":                 {"POST", endpointsPath, `{`, nil, 400},
		"another content type":    {"POST", endpointsPath, newEndpoint, []string{"Content-Type", "text/plain"}, 415},
		"an unknown member":       {"POST", endpointsPath, `{"url":"https://e.com","eventTypes":["*"],"nope":1}`, nil, 422},
		"a blocked URL":           {"PATCH", path, `{"url":7}`, nil, 422},
		"a wrong source":          {"POST", connectionsPath, `{"source":"ebay","account":"1"}`, nil, 422},
		"If-Match without quotes": {"PATCH", path, `{}`, []string{"If-Match", "7"}, 400},
		"a deletion likewise":     {"DELETE", path, ``, []string{"If-Match", ""}, 400},
		"a connection's likewise": {"DELETE", connectionsPath + "/" + id.New(id.Connection), ``, []string{"If-Match", "7"}, 400},
		"an empty key":            {"POST", endpointsPath, newEndpoint, []string{"Idempotency-Key", ""}, 400},
		"a key that is too long":  {"POST", connectionsPath, `{"source":"stripe","account":"cus_7"}`, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400},
		"too large":               {"POST", endpointsPath, strings.Repeat(" ", 1<<20+1), nil, 413},
	} {
		t.Run(name, func(t *testing.T) {
			a := e.manage(c.method, c.path, c.body, c.headers...)
			require.Equal(t, c.status, a.status, "%s", a.body)
			require.Equal(t, a.header.Get("X-Request-Id"), a.problem(t).RequestID)
			if c.status == 405 {
				require.Contains(t, a.header.Get("Allow"), "GET")
				require.Contains(t, a.header.Get("Allow"), "POST")
			}
		})
	}
	require.Zero(t, o.seen(), "nothing of it reached an owner")
	require.Positive(t, e.metric("webhooks_ingest_requests_total", "source", "management", "code", "422"))
}

func TestAnOwnersRefusalIsTheAnswer(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	startOwner(t, e.kafka, refusing(409, "connection_held"))
	a := e.manage(http.MethodPost, connectionsPath, `{"source":"stripe","account":"cus_7"}`)
	require.Equal(t, 409, a.status)
	p := a.problem(t)
	require.Equal(t, "connection_held", p.Code)
	require.Equal(t, "because", p.Detail)
	require.Len(t, p.Errors, 1)
}

func TestAWriteWithoutOutcomeIsAccepted(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.OutcomeTimeout = 50 * time.Millisecond })
	startOwner(t, e.kafka, func(*webhooksv1.Command) *webhooksv1.CommandOutcome { return nil })
	a := e.manage(http.MethodPost, endpointsPath, newEndpoint)
	require.Equal(t, 202, a.status)
	require.True(t, strings.HasPrefix(object(t, a)["secret"].(string), "whsec_"), "given out here or never")
	require.NotEmpty(t, a.header.Get("Location"))
	// A request that may be a repeat shows nothing that might be another's.
	for path, body := range map[string]string{endpointsPath: newEndpoint, connectionsPath: `{"source":"stripe","account":"cus_7"}`} {
		a := e.manage(http.MethodPost, path, body, "Idempotency-Key", "k")
		require.Equal(t, 202, a.status)
		require.JSONEq(t, `{"id":null}`, string(a.body))
		require.Equal(t, path, a.header.Get("Location"))
	}
	path := endpointsPath + "/" + id.New(id.Endpoint)
	require.Equal(t, 202, e.manage(http.MethodPatch, path, `{}`).status)
	require.Equal(t, 202, e.manage(http.MethodDelete, path, ``).status)
	require.Equal(t, 202, e.manage(http.MethodPost, connectionsPath, `{"source":"stripe","account":"cus_7"}`).status)
}

// The endpoint hangs, and a test of it may take longer than the edge has to stop.
func TestATestThatIsOpenDoesNotHoldUpTheEnd(t *testing.T) {
	endpoint := endpointsPath + "/" + id.New(id.Endpoint)
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, d *ingest.Deps) {
		c.OutcomeTimeout, c.DrainTimeout = time.Minute, 3*time.Second
		d.Processor = func(ctx *fasthttp.RequestCtx) {
			httpapi.WriteJSON(ctx, http.StatusOK, resource.Endpoint{Version: 1, TimeoutMS: 25_000})
		}
	})
	o := startOwner(t, e.kafka, func(*webhooksv1.Command) *webhooksv1.CommandOutcome { return nil })
	answered := make(chan answer, 1)
	go func() { answered <- e.manage(http.MethodPost, endpoint+"/test", "") }()
	testenv.Eventually(t, 10*time.Second, func() bool { return o.seen() == 1 }, "the test is under way")
	require.NoError(t, e.stop())
	a := <-answered
	require.Equal(t, 202, a.status)
	require.Contains(t, a.header.Get("Location"), "/deliveries/dlv_")
}

// An edge that stops still waits for what takes a moment.
func TestAWriteThatIsOpenAtTheEndIsAnswered(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	begun, stopping := make(chan struct{}), make(chan struct{})
	startOwner(t, e.kafka, func(cmd *webhooksv1.Command) *webhooksv1.CommandOutcome {
		close(begun)
		<-stopping
		time.Sleep(300 * time.Millisecond)
		return obliging(cmd)
	})
	answered := make(chan answer, 1)
	go func() { answered <- e.manage(http.MethodPost, endpointsPath, newEndpoint) }()
	<-begun
	close(stopping)
	require.NoError(t, e.stop())
	require.Equal(t, 201, (<-answered).status)
}

// An outcome counts once its transaction is committed: what was aborted did not happen.
func TestAnAbortedOutcomeIsNotSeen(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.OutcomeTimeout = 500 * time.Millisecond })
	transactional, err := kgo.NewClient(kgo.SeedBrokers(e.kafka.Brokers...), kgo.TransactionalID(t.Name()))
	require.NoError(t, err)
	defer transactional.Close()
	startOwner(t, e.kafka, func(cmd *webhooksv1.Command) *webhooksv1.CommandOutcome {
		outcome := obliging(cmd)
		outcome.CommandId = cmd.Id
		value, _ := proto.Marshal(outcome)
		_ = transactional.BeginTransaction()
		transactional.ProduceSync(t.Context(), &kgo.Record{Topic: e.kafka.Topic(schemas.CommandOutcomes), Value: value})
		_ = transactional.EndTransaction(t.Context(), kgo.TryAbort)
		return nil
	})
	require.Equal(t, 202, e.manage(http.MethodDelete, endpointsPath+"/"+id.New(id.Endpoint), ``).status)
}
