package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// replayTable stands in for the copy of `replays`.
type replayTable struct {
	rows   map[string]*webhooksv1.Replay
	cutOff bool
}

func (r *replayTable) WaitAllCurrent(context.Context) error {
	if r.cutOff {
		return errors.New("cut off")
	}
	return nil
}

func (r *replayTable) Get(key []byte) ([]byte, bool, error) {
	row, ok := r.rows[string(key)]
	value, err := proto.Marshal(row)
	return value, ok, err
}

func (r *replayTable) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	keys := []string{}
	for key := range r.rows {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		value, err := proto.Marshal(r.rows[key])
		if err != nil || strings.HasPrefix(key, string(prefix)) && !fn([]byte(key), value) {
			return err
		}
	}
	return nil
}

// replay puts a replay, and returns its id. Those made later have a higher one.
func (w *world) replay(org, endpoint, status string) string {
	replayID := id.New(id.Replay)
	time.Sleep(2 * time.Millisecond) // ids sort by the millisecond
	w.replays.rows[string(schemas.ReplayKey(org, replayID))] = &webhooksv1.Replay{
		Id: replayID, OrganizationId: org, EndpointId: endpoint, Status: status, Only: "undelivered", Done: 3,
		SinceUnixMs: start.UnixMilli(), UntilUnixMs: start.Add(time.Hour).UnixMilli(), CreatedUnixMs: start.Add(2 * time.Hour).UnixMilli(),
	}
	return replayID
}

func TestReplayIsShown(t *testing.T) {
	w := serve(nil)
	running, done := w.replay("org_1", w.endpoint, "running"), w.replay("org_1", w.endpoint, "done")
	ended := w.replays.rows["org_1/"+done]
	ended.Total, ended.EndedUnixMs, ended.EventTypes = proto.Uint64(3), start.Add(3*time.Hour).UnixMilli(), []string{"loop.*"}

	require.Equal(t, object(`{"id":%q,"endpointId":%q,"since":%q,"until":%q,"eventTypes":[],"only":"undelivered",
		"status":"running","total":null,"done":3,"createdAt":%q,"endedAt":null}`, running, w.endpoint, at(0), at(time.Hour), at(2*time.Hour)),
		w.get(t, 200, "/v1/orgs/org_1/replays/"+running))
	got := w.get(t, 200, "/v1/orgs/org_1/replays/"+done)
	require.Equal(t, 3.0, got["total"])
	require.Equal(t, at(3*time.Hour), got["endedAt"])
	require.Equal(t, []any{"loop.*"}, got["eventTypes"])

	w.get(t, 404, "/v1/orgs/org_2/replays/"+running)
	w.get(t, 404, "/v1/orgs/org_1/replays/"+id.New(id.Replay))
	w.get(t, 404, "/v1/orgs/org_1/replays/"+w.endpoint)
	w.replays.cutOff = true
	w.get(t, 503, "/v1/orgs/org_1/replays/"+running)
	w.get(t, 503, "/v1/orgs/org_1/replays")
}

func TestReplaysAreListedNewestFirst(t *testing.T) {
	w := serve(nil)
	other := w.id(id.Endpoint, 2)
	var all []string
	for i := range 7 {
		all = append(all, w.replay("org_1", []string{w.endpoint, other}[i%2], []string{"done", "running", "paused"}[i%3]))
	}
	w.replay("org_12", w.endpoint, "done")
	slices.Reverse(all)
	for query, want := range map[string][]string{
		"":                                all,
		"endpointId=" + other:             {all[1], all[3], all[5]},
		"status=done":                     {all[0], all[3], all[6]},
		"status=done&status=paused":       {all[0], all[1], all[3], all[4], all[6]},
		"status=done&endpointId=" + other: {all[3]},
	} {
		t.Run(query, func(t *testing.T) {
			require.Equal(t, want, field(w.get(t, 200, "/v1/orgs/org_1/replays?"+query)["data"], "id"))
		})
	}
	var paged []string
	for cursor, more := "", true; more; {
		body := w.get(t, 200, fmt.Sprintf("/v1/orgs/org_1/replays?limit=3%s", cursor))
		paged = append(paged, field(body["data"], "id")...)
		next, _ := body["nextCursor"].(string)
		cursor, more = "&cursor="+url.QueryEscape(next), next != ""
	}
	require.Equal(t, all, paged)
	w.get(t, 400, "/v1/orgs/org_1/replays?status=waiting")
	w.get(t, 400, "/v1/orgs/org_1/replays?endpointId=x")
	w.get(t, 400, "/v1/orgs/org_1/replays?since="+at(0))
}
