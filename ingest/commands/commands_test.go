package commands

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest/produce"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	"github.com/betterdata/webhooks/schemas/eventtypes"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// standIn stands in for Kafka and the owners behind it: what is sent is carried out at once.
type standIn struct {
	c      *Commands
	sent   []produce.Record
	decide func(*webhooksv1.Command) (*webhooksv1.CommandOutcome, error)
}

func (o *standIn) Send(r produce.Record) error {
	o.sent = append(o.sent, r)
	cmd := &webhooksv1.Command{}
	if err := proto.Unmarshal(r.Value, cmd); err != nil {
		return err
	}
	outcome, err := o.decide(cmd)
	if outcome != nil {
		o.c.outcomes.arrived(&webhooksv1.CommandOutcome{CommandId: "cmd_of_another_instance"})
		outcome.CommandId = cmd.Id
		o.c.outcomes.arrived(outcome)
	}
	return err
}

func TestIdempotencyKey(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		ok    bool
	}{
		"none":                 {nil, true},
		"a UUID":               {[]string{"8e03978e-40d5-43e8-bc93-6894a57f9324"}, true},
		"one character":        {[]string{"~"}, true},
		"in quotes":            {[]string{`"order 17"`}, true},
		"as long as it may be": {[]string{strings.Repeat("k", 255)}, true},
		"nothing":              {[]string{""}, false},
		"too long":             {[]string{strings.Repeat("k", 256)}, false},
		"a control character":  {[]string{"a\tb"}, false},
		"DEL":                  {[]string{"a\x7f"}, false},
		"not ASCII":            {[]string{"schlüssel"}, false},
		"two":                  {[]string{"a", "b"}, false},
		"the same twice":       {[]string{"a", "a"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			key, problem := keyOf(t, http.MethodPost, "/v1/orgs/org_1/endpoints", `{}`, c.lines...)
			if !c.ok {
				require.Equal(t, 400, problem.Status)
				require.Equal(t, "malformed_idempotency_key", problem.Code)
				return
			}
			require.Nil(t, problem)
			require.Equal(t, c.lines == nil, key == nil)
		})
	}
}

// keyOf is what goes with the command of a request.
func keyOf(t *testing.T, method, path, body string, keys ...string) (*webhooksv1.IdempotencyKey, *httpapi.Problem) {
	t.Helper()
	var ctx fasthttp.RequestCtx
	ctx.Request.Header.SetMethod(method)
	ctx.Request.SetRequestURI(path)
	ctx.Request.SetBodyString(body)
	for _, key := range keys {
		ctx.Request.Header.Add("Idempotency-Key", key)
	}
	cmd, problem := command(&ctx, httpapi.Principal{})
	return cmd.IdempotencyKey, problem
}

func TestWhatMakesARequestAnother(t *testing.T) {
	const path, body = "/v1/orgs/org_1/endpoints", `{"secret":"whsec_hidden"}`
	first, problem := keyOf(t, http.MethodPost, path, body, "order-17")
	require.Nil(t, problem)
	for name, c := range map[string]struct {
		method, path, body, key string
		sameKey, sameRequest    bool
	}{
		"nothing":          {http.MethodPost, path, body, "order-17", true, true},
		"the query":        {http.MethodPost, path + "?x=1", body, "order-17", true, true},
		"a space":          {http.MethodPost, path, body + " ", "order-17", true, false},
		"the path":         {http.MethodPost, path + "/x", body, "order-17", true, false},
		"where both touch": {http.MethodPost, path + "{", body[1:], "order-17", true, false},
		"the key":          {http.MethodPost, path, body, "order-18", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			key, problem := keyOf(t, c.method, c.path, c.body, c.key)
			require.Nil(t, problem)
			require.Equal(t, c.sameKey, bytes.Equal(first.Hash, key.Hash))
			require.Equal(t, c.sameRequest, bytes.Equal(first.Fingerprint, key.Fingerprint))
		})
	}
	for _, method := range []string{http.MethodPatch, http.MethodDelete} {
		key, problem := keyOf(t, method, path, body, "a", "b")
		require.Nil(t, problem)
		require.Nil(t, key, "only a POST has one")
	}
}

// reads answers the reads of the rooms: the first endpoint and the first delivery are there, and the third cannot be told.
func reads(ctx *fasthttp.RequestCtx) {
	switch path := string(ctx.Path()); {
	case strings.HasSuffix(path, id.Derive(id.Endpoint, "1")):
		httpapi.WriteJSON(ctx, http.StatusOK, resource.Endpoint{ID: id.Derive(id.Endpoint, "1"), Version: 7, TimeoutMS: 1})
	case strings.HasSuffix(path, id.Derive(id.Delivery, "1")):
		httpapi.WriteJSON(ctx, http.StatusOK, resource.Delivery{ID: id.Derive(id.Delivery, "1"), EndpointID: id.Derive(id.Endpoint, "1")})
	case strings.HasSuffix(path, id.Derive(id.Delivery, "3")):
		httpapi.WriteProblem(ctx, httpapi.Unavailable("clickhouse_unavailable", "Later."))
	default:
		httpapi.WriteProblem(ctx, httpapi.NotFound())
	}
}

func TestHowWritesAreAnswered(t *testing.T) {
	const endpoints, connections = "/v1/orgs/org_1/endpoints", "/v1/orgs/org_1/connections"
	const deliveries = "/v1/orgs/org_1/deliveries"
	endpointOne := id.Derive(id.Endpoint, "1")
	one, delivery := endpoints+"/"+endpointOne, deliveries+"/"+id.Derive(id.Delivery, "1")
	type outcome = webhooksv1.CommandOutcome
	silent := func(*webhooksv1.Command) (*outcome, error) { return nil, nil }
	deleted := func(*webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}}, nil
	}
	connected := func(cmd *webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Connection{Connection: cmd.GetCreateConnection().GetConnection()}}, nil
	}
	changed := func(cmd *webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Endpoint{Endpoint: &webhooksv1.Endpoint{Id: cmd.GetUpdateEndpoint().EndpointId}}}, nil
	}
	rotated := func(cmd *webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Endpoint{Endpoint: &webhooksv1.Endpoint{Id: cmd.GetRotateSecret().EndpointId}}}, nil
	}
	refused := func(*webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Refusal{Refusal: &webhooksv1.Refusal{Status: 409, Code: "account_taken"}}}, nil
	}
	retried := func(*webhooksv1.Command) (*outcome, error) {
		return &outcome{Result: &webhooksv1.CommandOutcome_Delivery{Delivery: &webhooksv1.Delivery{Id: id.Derive(id.Delivery, "1")}}}, nil
	}
	lost := func(*webhooksv1.Command) (*outcome, error) { return nil, errors.New("kafka is away") }
	account := `{"source":"stripe","account":"cus_1"}`

	for name, c := range map[string]struct {
		method, path, body string
		decide             func(*webhooksv1.Command) (*outcome, error)
		status             int
		// topic and key of the command; "" where none is sent.
		topic, key string
	}{
		"carried out":                  {http.MethodPost, connections, account, connected, 201, schemas.InboundUnrouted, "stripe/cus_1"},
		"refused by its owner":         {http.MethodPost, connections, account, refused, 409, schemas.InboundUnrouted, "stripe/cus_1"},
		"no outcome in time":           {http.MethodPost, connections, account, silent, 202, schemas.InboundUnrouted, "stripe/cus_1"},
		"not stored":                   {http.MethodPost, connections, account, lost, 503, schemas.InboundUnrouted, "stripe/cus_1"},
		"another outcome than asked":   {http.MethodPost, connections, account, deleted, 500, schemas.InboundUnrouted, "stripe/cus_1"},
		"deleted":                      {http.MethodDelete, one, "", deleted, 204, schemas.Inbound, "org_1"},
		"deletion without an outcome":  {http.MethodDelete, one, "", silent, 202, schemas.Inbound, "org_1"},
		"enabled":                      {http.MethodPost, one + "/enable", "", changed, 200, schemas.Inbound, "org_1"},
		"disabled":                     {http.MethodPost, one + "/disable", "{}", changed, 200, schemas.Inbound, "org_1"},
		"disabling for a reason":       {http.MethodPost, one + "/disable", `{"reason":"x"}`, changed, 422, "", ""},
		"disabling with no JSON":       {http.MethodPost, one + "/disable", `{`, changed, 400, "", ""},
		"disabling refused":            {http.MethodPost, one + "/disable", "", refused, 409, schemas.Inbound, "org_1"},
		"disabling without an outcome": {http.MethodPost, one + "/disable", "", silent, 202, schemas.Inbound, "org_1"},
		"disabling, another outcome":   {http.MethodPost, one + "/disable", "", deleted, 500, schemas.Inbound, "org_1"},
		"rotated":                      {http.MethodPost, one + "/rotate-secret", "", rotated, 200, schemas.Inbound, "org_1"},
		"rotation without an outcome":  {http.MethodPost, one + "/rotate-secret", `{"overlapMs":1}`, silent, 202, schemas.Inbound, "org_1"},
		"rotation, another outcome":    {http.MethodPost, one + "/rotate-secret", "", deleted, 500, schemas.Inbound, "org_1"},
		"an action on no id":           {http.MethodPost, endpoints + "/ep_1/enable", "", changed, 404, "", ""},
		"an action on a connection":    {http.MethodPost, connections + "/" + id.Derive(id.Connection, "1") + "/enable", "", changed, 404, "", ""},
		"an unknown action":            {http.MethodPost, one + "/explode", "", changed, 404, "", ""},
		"an action by GET":             {http.MethodGet, one + "/enable", "", changed, 405, "", ""},
		"retried":                      {http.MethodPost, delivery + "/retry", "", retried, 202, schemas.Deliveries, endpointOne},
		"retry without an outcome":     {http.MethodPost, delivery + "/retry", "{}", silent, 202, schemas.Deliveries, endpointOne},
		"retry refused":                {http.MethodPost, delivery + "/retry", "", refused, 409, schemas.Deliveries, endpointOne},
		"retry, another outcome":       {http.MethodPost, delivery + "/retry", "", deleted, 500, schemas.Deliveries, endpointOne},
		"retry that is not stored":     {http.MethodPost, delivery + "/retry", "", lost, 503, schemas.Deliveries, endpointOne},
		"retry for a reason":           {http.MethodPost, delivery + "/retry", `{"reason":"x"}`, retried, 422, "", ""},
		"retry of no delivery":         {http.MethodPost, deliveries + "/" + id.Derive(id.Delivery, "2") + "/retry", "", retried, 404, "", ""},
		"retry without the record":     {http.MethodPost, deliveries + "/" + id.Derive(id.Delivery, "3") + "/retry", "", retried, 503, "", ""},
		"retry of no id":               {http.MethodPost, deliveries + "/dlv_1/retry", "", retried, 404, "", ""},
		"retry by GET":                 {http.MethodGet, delivery + "/retry", "", retried, 405, "", ""},
		"canceled":                     {http.MethodPost, delivery + "/cancel", "", retried, 200, schemas.Deliveries, endpointOne},
		"cancel refused":               {http.MethodPost, delivery + "/cancel", "", refused, 409, schemas.Deliveries, endpointOne},
		"cancel without an outcome":    {http.MethodPost, delivery + "/cancel", "", silent, 202, schemas.Deliveries, endpointOne},
		"tested":                       {http.MethodPost, one + "/test", "", retried, 200, schemas.Deliveries, endpointOne},
		"tested with a type":           {http.MethodPost, one + "/test", `{"eventType":"loop.started"}`, retried, 200, schemas.Deliveries, endpointOne},
		"tested with no type of ours":  {http.MethodPost, one + "/test", `{"eventType":"loop.*"}`, retried, 422, "", ""},
		"test with more than a type":   {http.MethodPost, one + "/test", `{"data":{}}`, retried, 422, "", ""},
		"test without an outcome":      {http.MethodPost, one + "/test", "", silent, 202, schemas.Deliveries, endpointOne},
		"test refused":                 {http.MethodPost, one + "/test", "", refused, 409, schemas.Deliveries, endpointOne},
		"test of no endpoint":          {http.MethodPost, endpoints + "/" + id.Derive(id.Endpoint, "2") + "/test", "", retried, 404, "", ""},
		"no id":                        {http.MethodDelete, endpoints + "/ep_1", "", deleted, 404, "", ""},
		"no JSON":                      {http.MethodPost, connections, `{`, connected, 400, "", ""},
		"what the rules do not accept": {http.MethodPost, endpoints, `{"url":7}`, connected, 422, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			keyring, err := seal.NewKeyring(seal.NewKey())
			require.NoError(t, err)
			o := &standIn{decide: c.decide}
			o.c, err = New(Config{Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}, Wait: 20 * time.Millisecond}, Deps{
				Sender: o, Auth: httpapi.AdminKey("key"), AdminKey: "key", Keyring: keyring, Rules: resource.NewRules(resource.Config{}),
				Processor: reads, Deliverer: reads, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			})
			require.NoError(t, err)
			defer o.c.outcomes.client.Close()

			answer := func() int {
				var ctx fasthttp.RequestCtx
				ctx.Request.Header.SetMethod(c.method)
				ctx.Request.SetRequestURI(c.path)
				ctx.Request.Header.Set("Authorization", "Bearer key")
				ctx.Request.Header.SetContentType("application/json")
				ctx.Request.SetBodyString(c.body)
				o.c.Handler()(&ctx)
				return ctx.Response.StatusCode()
			}
			if c.topic != "" {
				require.Equal(t, 503, answer(), "an outcome could be missed")
				require.Empty(t, o.sent)
			}
			o.c.outcomes.tailing.Store(true)
			require.Equal(t, c.status, answer())
			require.Empty(t, o.c.outcomes.waiting, "nothing is kept of a command that was answered")
			if c.topic == "" {
				require.Empty(t, o.sent)
				return
			}
			require.Len(t, o.sent, 1)
			require.Equal(t, [2]string{c.topic, c.key}, [2]string{o.sent[0].Topic, o.sent[0].RoutingKey})
			require.Equal(t, schemas.TypeCommand, kafka.ReadHeader(o.sent[0].Headers, schemas.HeaderType))
		})
	}
}

// keys are named after the organization and the one scope that they have.
type keys struct{}

func (keys) Authenticate(bearer string) (httpapi.Principal, bool) {
	org, scope, _ := strings.Cut(bearer, " ")
	return httpapi.Principal{KeyID: "key_1", Organization: org, Scopes: map[string]bool{scope: true}}, true
}

func TestWhoMayWriteNeedNotRead(t *testing.T) {
	const org = "/v1/orgs/org_1"
	endpoint, delivery := org+"/endpoints/"+id.Derive(id.Endpoint, "1"), org+"/deliveries/"+id.Derive(id.Delivery, "1")
	for name, c := range map[string]struct {
		path, key string
		status    int
	}{
		"a retry":                              {delivery + "/retry", "org_1 deliveries:write", 202},
		"a cancel":                             {delivery + "/cancel", "org_1 deliveries:write", 202},
		"a test":                               {endpoint + "/test", "org_1 endpoints:write", 202},
		"a retry by who may only read":         {delivery + "/retry", "org_1 deliveries:read", 403},
		"a test by who may write other things": {endpoint + "/test", "org_1 deliveries:write", 403},
		"a retry by another organization":      {delivery + "/retry", "org_2 deliveries:write", 403},
	} {
		t.Run(name, func(t *testing.T) {
			keyring, err := seal.NewKeyring(seal.NewKey())
			require.NoError(t, err)
			rooms := httpapi.NewRouter(httpapi.AdminKey("admin"), slog.New(slog.DiscardHandler))
			for _, path := range []string{"/endpoints/{id}", "/deliveries/{id}"} {
				rooms.Handle(http.MethodGet, "/v1/orgs/{org}"+path, "things:read", func(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
					reads(ctx)
					return nil
				})
			}
			o := &standIn{decide: func(*webhooksv1.Command) (*webhooksv1.CommandOutcome, error) { return nil, nil }}
			o.c, err = New(Config{Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}, Wait: time.Millisecond}, Deps{
				Sender: o, Auth: keys{}, AdminKey: "admin", Keyring: keyring, Rules: resource.NewRules(resource.Config{}),
				Processor: rooms.Handler(), Deliverer: rooms.Handler(), Log: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			defer o.c.outcomes.client.Close()
			o.c.outcomes.tailing.Store(true)

			var ctx fasthttp.RequestCtx
			ctx.Request.Header.SetMethod(http.MethodPost)
			ctx.Request.SetRequestURI(c.path)
			ctx.Request.Header.Set("Authorization", "Bearer "+c.key)
			o.c.Handler()(&ctx)
			require.Equal(t, c.status, ctx.Response.StatusCode(), "%s", ctx.Response.Body())
			require.Equal(t, c.status == 202, len(o.sent) == 1)
		})
	}
}

func TestWhatATestSends(t *testing.T) {
	endpoint := id.Derive(id.Endpoint, "1")
	types, err := eventtypes.Load()
	require.NoError(t, err)
	started, _ := types.Lookup("loop.started")
	for name, c := range map[string]struct{ body, eventType, data string }{
		"by default":              {``, "endpoint.test", `{"endpointId":"` + endpoint + `"}`},
		"an empty object":         {`{}`, "endpoint.test", `{"endpointId":"` + endpoint + `"}`},
		"the default by its name": {`{"eventType":"endpoint.test"}`, "endpoint.test", `{"endpointId":"` + endpoint + `"}`},
		"an example of its type":  {`{"eventType":"loop.started"}`, "loop.started", string(started.Example)},
	} {
		t.Run(name, func(t *testing.T) {
			eventType, data, err := (&Commands{types: types}).sample([]byte(c.body), endpoint)
			require.NoError(t, err)
			require.Equal(t, c.eventType, eventType)
			require.JSONEq(t, c.data, string(data))
		})
	}
}
