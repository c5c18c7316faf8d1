package ingest

import (
	"log/slog"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// routeShards keeps lookups of different accounts from waiting for each other's lock.
const routeShards = 64

// routes holds the table `routes` in memory: the organization of each live account. An entry takes about 100 bytes.
type routes struct {
	log    *slog.Logger
	shards [routeShards]routeShard
}

type routeShard struct {
	mu   sync.RWMutex
	orgs map[string]string
}

func newRoutes(log *slog.Logger) *routes {
	r := &routes{log: log}
	for i := range r.shards {
		r.shards[i].orgs = map[string]string{}
	}
	return r
}

// changed applies a change of the table; a nil value is a deletion.
func (r *routes) changed(key, value []byte) {
	account := string(key)
	var route webhooksv1.Route
	if err := proto.Unmarshal(value, &route); err != nil {
		// The router forwards what is sent to it: without the route its events take the longer way.
		r.log.Error("unreadable route ignored", "account", account, "error", err)
		route.OrganizationId = ""
	}
	shard := r.shard(account)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if route.OrganizationId == "" {
		delete(shard.orgs, account)
		return
	}
	shard.orgs[account] = strings.Clone(route.OrganizationId)
}

// organization is the org of an account (<source>/<account>), "" while it is not live.
func (r *routes) organization(account string) string {
	shard := r.shard(account)
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	return shard.orgs[account]
}

// shard spreads by FNV-1a.
func (r *routes) shard(account string) *routeShard {
	h := uint32(2166136261)
	for i := range len(account) {
		h = (h ^ uint32(account[i])) * 16777619
	}
	return &r.shards[h%routeShards]
}
