package ingest

import (
	"slices"
	"strings"

	"github.com/valyala/fasthttp"
)

// room is who answers a request of the API.
type room int

const (
	processor room = iota
	deliverer
	own
)

// roomOf says who answers a path. Reads of deliveries, events, ledger and replays and the page are the deliverer's; the
// resources whose writes are commands are the edge's own; everything else is the processor's.
func roomOf(path string) room {
	if rest, ok := strings.CutPrefix(path, "/settings/"); ok && rest != "" {
		return deliverer
	}
	rest, ok := strings.CutPrefix(path, "/v1/orgs/")
	if !ok {
		return processor
	}
	parts := strings.Split(rest, "/")
	if len(parts) < 2 {
		return processor
	}
	action := ""
	if len(parts) == 4 {
		action = parts[3]
	}
	switch resource := parts[1]; {
	case resource == "deliveries" && (action == "retry" || action == "cancel"):
		return own
	case resource == "replays" && (action == "pause" || action == "resume" || action == "cancel"):
		return own
	case resource == "deliveries", resource == "events", resource == "ledger", resource == "replays":
		return deliverer
	case resource == "endpoints" && slices.Contains([]string{"enable", "disable", "rotate-secret", "test", "replay"}, action):
		return own
	case (resource == "endpoints" || resource == "connections") && len(parts) <= 3:
		return own
	}
	return processor
}

// forwarding hands requests to the rooms.
func forwarding(toCommands, toProcessor, toDeliverer fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		switch roomOf(string(ctx.Path())) {
		case deliverer:
			toDeliverer(ctx)
		case own:
			toCommands(ctx)
		default:
			toProcessor(ctx)
		}
	}
}
