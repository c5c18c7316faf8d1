package ingest_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestReplays(t *testing.T) {
	cluster := testenv.FakeKafka(t)
	owner := startOwner(t, cluster, obliging)
	endpoint, replay, off := id.New(id.Endpoint), id.New(id.Replay), id.New(id.Endpoint)
	// knows answers reads of what it knows, by the end of their path.
	knows := func(objects map[string]map[string]any) fasthttp.RequestHandler {
		return func(ctx *fasthttp.RequestCtx) {
			path := string(ctx.Path())
			if object := objects[path[strings.LastIndexByte(path, '/')+1:]]; object != nil && strings.HasPrefix(path, "/v1/orgs/org_1/") {
				httpapi.WriteJSON(ctx, http.StatusOK, object)
				return
			}
			httpapi.WriteProblem(ctx, httpapi.NotFound())
		}
	}
	e := startReady(t, cluster, func(_ *ingest.Config, d *ingest.Deps) {
		d.Processor = knows(map[string]map[string]any{endpoint: {"enabled": true, "version": 7}, off: {"enabled": false, "version": 2}})
		d.Deliverer = knows(map[string]map[string]any{replay: {"id": replay, "endpointId": endpoint, "status": "running"}})
	})
	start := func(endpoint, body string) answer {
		return e.manage(http.MethodPost, "/v1/orgs/org_1/endpoints/"+endpoint+"/replay", body)
	}
	body := `{"since":"2026-01-01T00:00:00Z","eventTypes":["loop.*"]}`

	t.Run("is started", func(t *testing.T) {
		a := start(endpoint, body)
		require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
		got := object(t, a)
		require.Equal(t, "/v1/orgs/org_1/replays/"+got["id"].(string), a.header.Get("Location"))
		require.True(t, id.Valid(id.Replay, got["id"].(string)))
		require.Equal(t, []any{"running", "undelivered", endpoint, []any{"loop.*"}, nil, 0.0},
			[]any{got["status"], got["only"], got["endpointId"], got["eventTypes"], got["total"], got["done"]})
		cmd, record := owner.last()
		require.Equal(t, cluster.PartitionOf(endpoint), record.Partition, "to the endpoint's owner")
		asked := cmd.GetStartReplay().GetReplay()
		require.Equal(t, "org_1", asked.OrganizationId)
		require.EqualValues(t, 7, asked.EndpointVersion)
		require.WithinDuration(t, time.Now(), time.UnixMilli(asked.UntilUnixMs), time.Minute)
	})
	for action, status := range map[string]string{"pause": "paused", "resume": "running", "cancel": "canceled"} {
		t.Run(action, func(t *testing.T) {
			a := e.manage(http.MethodPost, "/v1/orgs/org_1/replays/"+replay+"/"+action, "")
			require.Equal(t, http.StatusOK, a.status, "%s", a.body)
			require.Equal(t, status, object(t, a)["status"])
			cmd, record := owner.last()
			require.Equal(t, cluster.PartitionOf(endpoint), record.Partition)
			require.Equal(t, []string{replay, endpoint, status},
				[]string{cmd.GetChangeReplay().ReplayId, cmd.GetChangeReplay().EndpointId, cmd.GetChangeReplay().Status})
		})
	}
	seen := owner.seen()
	for name, tc := range map[string]struct {
		answer answer
		status int
	}{
		"unknown endpoint":                 {start(id.New(id.Endpoint), body), 404},
		"another organization's":           {e.manage(http.MethodPost, "/v1/orgs/org_2/endpoints/"+endpoint+"/replay", body), 404},
		"disabled":                         {start(off, body), 409},
		"no range":                         {start(endpoint, `{}`), 422},
		"no endpoint":                      {start("x", body), 404},
		"unknown replay":                   {e.manage(http.MethodPost, "/v1/orgs/org_1/replays/"+id.New(id.Replay)+"/pause", ""), 404},
		"another organization's replay":    {e.manage(http.MethodPost, "/v1/orgs/org_2/replays/"+replay+"/pause", ""), 404},
		"an action that asks for too much": {e.manage(http.MethodPost, "/v1/orgs/org_1/replays/"+replay+"/pause", `{"for":1}`), 422},
		"an unknown action":                {e.manage(http.MethodPost, "/v1/orgs/org_1/replays/"+replay+"/stop", ""), 404},
	} {
		t.Run("refused: "+name, func(t *testing.T) { require.Equal(t, tc.status, tc.answer.status, "%s", tc.answer.body) })
	}
	require.Equal(t, seen, owner.seen(), "nothing of it reached an owner")
}

func TestAReplayWithoutOutcomeIsAccepted(t *testing.T) {
	cluster := testenv.FakeKafka(t)
	startOwner(t, cluster, func(*webhooksv1.Command) *webhooksv1.CommandOutcome { return nil })
	e := startReady(t, cluster, func(c *ingest.Config, d *ingest.Deps) {
		c.OutcomeTimeout = 100 * time.Millisecond
		d.Processor = func(ctx *fasthttp.RequestCtx) { ctx.SetBodyString(`{"enabled":true,"version":1}`) }
	})
	a := e.manage(http.MethodPost, "/v1/orgs/org_1/endpoints/"+id.New(id.Endpoint)+"/replay", `{"since":"2026-01-01T00:00:00Z"}`)
	require.Equal(t, http.StatusAccepted, a.status)
	var got map[string]any
	require.NoError(t, json.Unmarshal(a.body, &got))
	require.Equal(t, "/v1/orgs/org_1/replays/"+got["id"].(string), a.header.Get("Location"))
}
