package httpapi

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/id"
)

// ScopeAdmin is held by no organization's key: only the admin passes.
const ScopeAdmin = "admin"

// Handler serves a request whose key, organization and scope were checked. What it returns is answered: nil means that
// it wrote the answer.
type Handler func(ctx *fasthttp.RequestCtx, p Principal) error

// Router finds the handler of a request and answers everything that has none. Routes are added before Handler is used.
type Router struct {
	routes *router.Router
	auth   Authenticator
	log    *slog.Logger
}

// NewRouter makes a router without routes.
func NewRouter(auth Authenticator, log *slog.Logger) *Router {
	routes := router.New()
	// A redirect would have clients resend a signed body elsewhere; one resource has one path.
	routes.RedirectTrailingSlash = false
	routes.RedirectFixedPath = false
	routes.NotFound = func(ctx *fasthttp.RequestCtx) { WriteProblem(ctx, NotFound()) }
	routes.MethodNotAllowed = func(ctx *fasthttp.RequestCtx) {
		WriteProblem(ctx, NewProblem(http.StatusMethodNotAllowed, "method_not_allowed",
			"%s is not possible here; see the Allow header.", ctx.Method()))
	}
	return &Router{routes: routes, auth: auth, log: log}
}

// Handle adds a route for holders of a key with the scope; an empty scope asks for any valid key. A path with a part
// `{org}` is open to that organization's keys and the admin's. GET routes answer HEAD too.
func (r *Router) Handle(method, path, scope string, h Handler) {
	r.HandleRaw(method, path, func(ctx *fasthttp.RequestCtx) {
		p, problem := r.admit(ctx, scope)
		if problem != nil {
			WriteProblem(ctx, problem)
			return
		}
		r.finish(ctx, h(ctx, p))
	})
}

// HandlePublic adds a route that needs no key.
func (r *Router) HandlePublic(method, path string, h func(ctx *fasthttp.RequestCtx) error) {
	r.HandleRaw(method, path, func(ctx *fasthttp.RequestCtx) { r.finish(ctx, h(ctx)) })
}

// HandleRaw adds a route whose handler checks who asks, and writes every answer, itself.
func (r *Router) HandleRaw(method, path string, h fasthttp.RequestHandler) {
	r.routes.Handle(method, path, h)
	if method == fasthttp.MethodGet {
		// fasthttp sends no body in answer to HEAD.
		r.routes.Handle(fasthttp.MethodHead, path, h)
	}
}

// Handler is the whole API as one function.
func (r *Router) Handler() fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		RequestID(ctx)
		defer r.recover(ctx)
		r.routes.Handler(ctx)
	}
}

// admit checks the key, then the organization in the path, then the scope.
func (r *Router) admit(ctx *fasthttp.RequestCtx, scope string) (Principal, *Problem) {
	token, given := bearerToken(string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)))
	p, known := r.auth.Authenticate(token)
	switch {
	case !given:
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, `Bearer realm="webhooks"`)
		return p, NewProblem(http.StatusUnauthorized, "key_missing", "Send Authorization: Bearer KEY.")
	case !known:
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, `Bearer realm="webhooks", error="invalid_token"`)
		return p, NewProblem(http.StatusUnauthorized, "key_unknown", "This key is not known or no longer valid.")
	}
	if raw := ctx.UserValue("org"); raw != nil {
		org := Org(ctx)
		if !id.ValidOrg(org) {
			return p, NotFound()
		}
		if !p.Owns(org) {
			return p, NewProblem(http.StatusForbidden, "organization_forbidden", "This key belongs to another organization.")
		}
	}
	if !p.Can(scope) {
		return p, NewProblem(http.StatusForbidden, "scope_missing", "This key lacks the scope %s.", scope)
	}
	return p, nil
}

func (r *Router) finish(ctx *fasthttp.RequestCtx, err error) {
	if err == nil {
		return
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		WriteProblem(ctx, p)
		return
	}
	r.log.Error("request failed", "request_id", RequestID(ctx), "method", string(ctx.Method()),
		"path", string(ctx.Path()), "error", err)
	WriteProblem(ctx, internalProblem())
}

func (r *Router) recover(ctx *fasthttp.RequestCtx) {
	cause := recover()
	if cause == nil {
		return
	}
	r.log.Error("request panicked", "request_id", RequestID(ctx), "method", string(ctx.Method()),
		"path", string(ctx.Path()), "error", cause, "stack", string(debug.Stack()))
	WriteProblem(ctx, internalProblem())
}

func internalProblem() *Problem {
	return NewProblem(http.StatusInternalServerError, "internal", "Something failed on our side; requestId finds it in our logs.")
}

// Org is the organization in the path, "" where the route has none.
func Org(ctx *fasthttp.RequestCtx) string { return Param(ctx, "org") }

// Param is a part of the path by its name in the route, percent-decoded; "" where there is none or it does not decode.
func Param(ctx *fasthttp.RequestCtx, name string) string {
	raw, ok := ctx.UserValue(name).(string)
	if !ok {
		return ""
	}
	s, err := url.PathUnescape(raw)
	if err != nil {
		return ""
	}
	return s
}
