package api

import (
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (r *Reads) listConnections(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	params, err := httpapi.ParseList(ctx, nil)
	if err != nil {
		return err
	}
	connections, err := r.connectionsOf(ctx)
	if err != nil {
		return err
	}
	page, next := newestFirst(connections, params)
	views := make([]resource.Connection, 0, len(page))
	for _, c := range page {
		views = append(views, resource.ConnectionView(c))
	}
	httpapi.WriteJSON(ctx, http.StatusOK, httpapi.NewPage(views, next))
	return nil
}

func (r *Reads) getConnection(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	wanted := httpapi.Param(ctx, "id")
	if !id.Valid(id.Connection, wanted) {
		return httpapi.NotFound()
	}
	connections, err := r.connectionsOf(ctx)
	if err != nil {
		return err
	}
	for _, c := range connections {
		if c.Id == wanted {
			httpapi.WriteJSON(ctx, http.StatusOK, resource.ConnectionView(c))
			return nil
		}
	}
	return httpapi.NotFound()
}

// connectionsOf reads the connections of the organization in the path. They stand in the partitions of their accounts,
// so the copy must be current in all of them.
func (r *Reads) connectionsOf(ctx *fasthttp.RequestCtx) (list []*webhooksv1.Connection, err error) {
	if err := r.barrier(ctx, r.tables.Connections.WaitAllCurrent); err != nil {
		return nil, err
	}
	org := httpapi.Org(ctx)
	for _, key := range r.connections.of(org) {
		connection := &webhooksv1.Connection{}
		found, err := get(r.tables.Connections, key, connection)
		if err != nil {
			return nil, err
		}
		// It may have moved since.
		if found && connection.OrganizationId == org {
			list = append(list, connection)
		}
	}
	return list, nil
}

// connectionIndex finds an organization's connections, whose keys begin with the source. It is kept in memory: about
// 200 bytes a connection.
type connectionIndex struct {
	mu sync.RWMutex
	// keys of each organization, and the organization of each key.
	keys map[string]map[string]struct{}
	orgs map[string]string
}

func newConnectionIndex() *connectionIndex {
	return &connectionIndex{keys: map[string]map[string]struct{}{}, orgs: map[string]string{}}
}

// change follows the table. A record that does not decode is treated as deleted here; whoever reads it is told.
func (x *connectionIndex) change(key, value []byte) {
	connection := &webhooksv1.Connection{}
	if value != nil && proto.Unmarshal(value, connection) != nil {
		connection.Reset()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if before, had := x.orgs[string(key)]; had {
		delete(x.keys[before], string(key))
		delete(x.orgs, string(key))
		if len(x.keys[before]) == 0 {
			delete(x.keys, before)
		}
	}
	org := connection.OrganizationId
	if org == "" {
		return
	}
	if x.keys[org] == nil {
		x.keys[org] = map[string]struct{}{}
	}
	x.keys[org][string(key)] = struct{}{}
	x.orgs[string(key)] = org
}

func (x *connectionIndex) of(org string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.keys[org]))
}
