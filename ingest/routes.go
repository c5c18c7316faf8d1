package ingest

import (
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// routeShards keeps lookups of different accounts from waiting for each other's lock.
const routeShards = 64

// route is where a live account's events go.
type route struct {
	organization string
	// learned, not made by API: an event that names another organization does not follow it.
	learned bool
}

// takes reports whether an event that names this organization, or none (""), follows the route.
func (r route) takes(named string) bool {
	return r.organization != "" && (!r.learned || named == "" || named == r.organization)
}

// routes holds the table `routes` in memory: the route of each live account. An entry takes about 100 bytes.
type routes struct {
	log *slog.Logger
	// age is for how long changes may have been missed.
	age    func() time.Duration
	shards [routeShards]routeShard
}

type routeShard struct {
	mu   sync.RWMutex
	live map[string]route
}

// maxRoutesAge is how old the table may be to be followed. An organization that an account was moved away from sends on
// what still comes, for a minute after the move (processor/inbound, moveWindow): events that follow a route must have
// left by then.
const maxRoutesAge = 30 * time.Second

func newRoutes(log *slog.Logger, age func() time.Duration) *routes {
	r := &routes{log: log, age: age}
	for i := range r.shards {
		r.shards[i].live = map[string]route{}
	}
	return r
}

// changed applies a change of the table; a nil value is a deletion.
func (r *routes) changed(key, value []byte) {
	account := string(key)
	var changed webhooksv1.Route
	if err := proto.Unmarshal(value, &changed); err != nil {
		// The router forwards what is sent to it: without the route its events take the longer way.
		r.log.Error("unreadable route ignored", "account", account, "error", err)
		changed.OrganizationId = ""
	}
	shard := r.shard(account)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if changed.OrganizationId == "" {
		delete(shard.live, account)
		return
	}
	shard.live[account] = route{strings.Clone(changed.OrganizationId), changed.Learned}
}

// of is the route of an account (<source>/<account>); the zero one, which takes nothing, while it is not live or the table
// is too old. The router then does what the edge would have done.
func (r *routes) of(account string) route {
	if r.age() > maxRoutesAge {
		return route{}
	}
	shard := r.shard(account)
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	return shard.live[account]
}

// shard spreads by FNV-1a.
func (r *routes) shard(account string) *routeShard {
	h := uint32(2166136261)
	for i := range len(account) {
		h = (h ^ uint32(account[i])) * 16777619
	}
	return &r.shards[h%routeShards]
}
