package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Replays is the local copy of the table `replays`; *table.Copy is one.
type Replays interface {
	Get(key []byte) (value []byte, ok bool, err error)
	Scan(prefix []byte, fn func(key, value []byte) bool) error
	WaitAllCurrent(ctx context.Context) error
}

// barrierTimeout bounds the wait of a read for its barrier.
const barrierTimeout = 5 * time.Second

// current waits until the copy has every change that was answered before the read. A replay is in its endpoint's partition,
// which its id does not tell.
func (a *API) current(req *fasthttp.RequestCtx) error {
	ctx, cancel := context.WithTimeout(context.Background(), barrierTimeout)
	defer cancel()
	if err := a.tables.Replays.WaitAllCurrent(ctx); err != nil {
		a.log.Warn("read barrier failed", "org", httpapi.Org(req), "request_id", httpapi.RequestID(req), "error", err)
		return httpapi.Unavailable("table_behind", "This instance cannot tell whether it is up to date; try again.")
	}
	return nil
}

// listReplays answers GET …/replays. Ids sort by the time they were made.
func (a *API) listReplays(req *fasthttp.RequestCtx, _ httpapi.Principal) error {
	params, err := httpapi.ParseList(req, []string{"endpointId", "status"})
	if err != nil {
		return err
	}
	endpoints, statuses := params.Filters["endpointId"], params.Filters["status"]
	if err := oneOf("endpointId", endpoints, func(s string) bool { return id.Valid(id.Endpoint, s) }); err != nil {
		return err
	}
	if err := oneOf("status", statuses, resource.IsReplayStatus); err != nil {
		return err
	}
	if err := a.current(req); err != nil {
		return err
	}
	found, err := a.replaysOf(httpapi.Org(req), func(r *webhooksv1.Replay) bool {
		return (len(endpoints) == 0 || slices.Contains(endpoints, r.GetEndpointId())) &&
			(len(statuses) == 0 || slices.Contains(statuses, r.GetStatus())) &&
			(params.Cursor == nil || r.GetId() < string(params.Cursor))
	})
	if err != nil {
		return err
	}
	slices.Reverse(found)
	var next *string
	if len(found) > params.Limit {
		found = found[:params.Limit]
		next = httpapi.NextCursor(params, []byte(found[params.Limit-1].ID))
	}
	httpapi.WriteJSON(req, http.StatusOK, httpapi.NewPage(found, next))
	return nil
}

// replaysOf shows an organization's replays that are wanted, in the order of their ids.
func (a *API) replaysOf(org string, wanted func(*webhooksv1.Replay) bool) (found []resource.Replay, err error) {
	var failed error
	err = a.tables.Replays.Scan([]byte(org+"/"), func(key, value []byte) bool {
		var r webhooksv1.Replay
		if failed = proto.Unmarshal(value, &r); failed != nil {
			failed = fmt.Errorf("decode replay %s: %w", key, failed)
			return false
		}
		if wanted(&r) {
			found = append(found, resource.ReplayView(&r))
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read replays of %s: %w", org, err)
	}
	return found, failed
}

// getReplay answers GET …/replays/{id}.
func (a *API) getReplay(req *fasthttp.RequestCtx, _ httpapi.Principal) error {
	replayID, err := objectID(req, id.Replay)
	if err != nil {
		return err
	}
	if err := a.current(req); err != nil {
		return err
	}
	value, ok, err := a.tables.Replays.Get(schemas.ReplayKey(httpapi.Org(req), replayID))
	switch {
	case err != nil:
		return fmt.Errorf("read replay %s: %w", replayID, err)
	case !ok:
		return httpapi.NotFound()
	}
	var r webhooksv1.Replay
	if err := proto.Unmarshal(value, &r); err != nil {
		return fmt.Errorf("decode replay %s: %w", replayID, err)
	}
	httpapi.WriteJSON(req, http.StatusOK, resource.ReplayView(&r))
	return nil
}
