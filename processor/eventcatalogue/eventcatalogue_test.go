package eventcatalogue_test

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/eventcatalogue"
	"github.com/betterdata/webhooks/schemas/eventtypes"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const key = "admin-key"

func get(t *testing.T, path string, into any) int {
	types, err := eventtypes.Load()
	require.NoError(t, err)
	router := httpapi.NewRouter(httpapi.AdminKey(key), slog.New(slog.DiscardHandler))
	eventcatalogue.Routes(router, types)
	var ctx fasthttp.RequestCtx
	ctx.Request.SetRequestURI(path)
	ctx.Request.Header.Set("Authorization", "Bearer "+key)
	router.Handler()(&ctx)
	if into != nil {
		require.NoError(t, json.Unmarshal(ctx.Response.Body(), into))
	}
	return ctx.Response.StatusCode()
}

func TestList(t *testing.T) {
	var page httpapi.Page[eventtypes.Type]
	require.Equal(t, 200, get(t, "/v1/event-types", &page))
	require.Nil(t, page.NextCursor)
	require.Len(t, page.Data, 31)
	require.Equal(t, "delivery.exhausted", page.Data[0].Name)

	var names []string
	for path := "/v1/event-types?limit=7"; path != ""; {
		var part httpapi.Page[eventtypes.Type]
		require.Equal(t, 200, get(t, path, &part))
		for _, typ := range part.Data {
			names = append(names, typ.Name)
		}
		if path = ""; part.NextCursor != nil {
			path = "/v1/event-types?limit=7&cursor=" + *part.NextCursor
		}
	}
	require.Len(t, names, 31)
	require.IsIncreasing(t, names)
	require.Equal(t, 400, get(t, "/v1/event-types?colour=red", nil))
}

func TestGet(t *testing.T) {
	var members map[string]json.RawMessage
	require.Equal(t, 200, get(t, "/v1/event-types/endpoint.disabled", &members))
	for _, name := range []string{"name", "category", "description", "schemaVersion", "schema", "example", "deprecated"} {
		require.Contains(t, members, name)
	}
	require.Equal(t, 404, get(t, "/v1/event-types/none", nil))
}

// TestMadeEventsFitTheirSchemas holds what the processor itself makes to the catalogue.
func TestMadeEventsFitTheirSchemas(t *testing.T) {
	types, err := eventtypes.Load()
	require.NoError(t, err)
	valid := func(name string, data []byte) {
		t.Helper()
		violations, err := types.Validate(name, data)
		require.NoError(t, err)
		require.Empty(t, violations, "%s: %s", name, data)
	}
	for name, update := range map[string]billing.Update{
		"first": {Change: "created", PreviousPlan: "FREE", Snapshot: &webhooksv1.TenantCapabilitySnapshot{
			OrganizationId: "org_1", Version: 1, Plan: "SCM_PRO", PlanVersion: "1", Tier: 2, Status: "active", ComputedUnixMs: 1,
			Cause: &webhooksv1.Cause{Source: "stripe", EventId: "evt_1", Type: "customer.subscription.created"},
		}},
		"nothing known": {Change: "deleted", PreviousPlan: "FREE", Snapshot: &webhooksv1.TenantCapabilitySnapshot{
			OrganizationId: "org_1", Plan: "FREE", Status: "none",
		}},
	} {
		t.Run(name, func(*testing.T) { valid("subscription.updated", update.AppendData(nil)) })
	}

	state := state{}
	endpoint := &webhooksv1.Endpoint{Id: id.New(id.Endpoint), OrganizationId: "org_1", Enabled: true, Version: 1}
	value, err := proto.Marshal(endpoint)
	require.NoError(t, err)
	state.Put([]byte("org_1/"+endpoint.Id), value)
	applier, err := commands.New(commands.Config{EndpointsPerOrg: 1}, nil)
	require.NoError(t, err)
	result, err := applier.Apply(state, &webhooksv1.Command{OrganizationId: "org_1", Action: &webhooksv1.Command_DisableEndpoint{
		DisableEndpoint: &webhooksv1.DisableEndpoint{EndpointId: endpoint.Id, JudgedVersion: 1, Reason: "gone"},
	}}, time.UnixMilli(1))
	require.NoError(t, err)
	valid(result.Event.Type, result.Event.Data)
}

// state is a commands.State.
type state map[string][]byte

func (s state) Get(key []byte) ([]byte, bool, error) {
	value, ok := s[string(key)]
	return value, ok, nil
}
func (s state) Put(key, value []byte) { s[string(key)] = value }
func (s state) Delete(key []byte)     { delete(s, string(key)) }

func (s state) Scan([]byte, func(key, value []byte) bool) error { return nil }
