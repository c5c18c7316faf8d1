package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest/rejections"
	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/internal/httpapi"
)

const (
	readTimeout = 10 * time.Second
	// writeTimeout bounds an answer's departure.
	writeTimeout = 30 * time.Second
	// idleTimeout is above that of the usual load balancers, which must be the first to close.
	idleTimeout = 75 * time.Second
	// headerBytes bounds request line and headers.
	headerBytes = 8 << 10
	// connections bounds those served at a time, and their buffers with about 200 MB; more are answered 503.
	connections = 16 << 10
)

// NewServer makes the edge's HTTP server around a handler, with its limits.
func NewServer(handler fasthttp.RequestHandler, log *slog.Logger) *fasthttp.Server {
	s := httpapi.NewServer(handler)
	s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = readTimeout, writeTimeout, idleTimeout
	s.ReadBufferSize, s.Concurrency = headerBytes, connections
	// The handler reads the body; see body.go.
	s.StreamRequestBody, s.MaxRequestBodySize = true, prefetch
	s.DisablePreParseMultipartForm = true
	s.SecureErrorLogMessage = true
	s.Logger = serverLog{log}
	return s
}

// newServer is NewServer for this edge.
func (e *Edge) newServer(metrics *metrics) *fasthttp.Server {
	s := NewServer(e.handler(metrics), e.log)
	if e.cfg.ReadTimeout > 0 {
		s.ReadTimeout = e.cfg.ReadTimeout
	}
	s.ExpectHandler = e.expected
	answerUnreadable := s.ErrorHandler
	s.ErrorHandler = func(ctx *fasthttp.RequestCtx, err error) {
		answerUnreadable(ctx, err)
		reason := unreadable(ctx.Response.StatusCode())
		// What the request was is not known, and the little that was read of it may be anything.
		e.webhooks.refused(rejections.Unknown, reason, rejections.Request{RemoteIP: remoteIP(ctx)}, time.Now())
		metrics.answered(rejections.Unknown, ctx.Response.StatusCode())
	}
	return s
}

// unreadable is why a request that reached no handler was answered so.
func unreadable(status int) source.Reason {
	switch status {
	case http.StatusRequestTimeout:
		return source.RequestTimeout
	case http.StatusRequestHeaderFieldsTooLarge:
		return source.HeadersTooLarge
	}
	return source.Unreadable
}

// handler is everything the edge answers.
func (e *Edge) handler(metrics *metrics) fasthttp.RequestHandler {
	api := e.bounded(forwarding(e.commands.Handler(), e.deps.Processor, e.deps.Deliverer))
	return func(ctx *fasthttp.RequestCtx) {
		defer e.recovered(ctx)
		if name, ok := webhookSource(ctx); ok {
			e.webhooks.serve(ctx, name)
			return
		}
		api(ctx)
		metrics.answered(management, ctx.Response.StatusCode())
	}
}

// serverLog takes fasthttp's notices, which are about single connections that broke.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Printf(format string, args ...any) {
	l.log.Debug("http server", "error", fmt.Sprintf(format, args...))
}

// recovered answers a request whose handling panicked: one request must not take the others along.
func (e *Edge) recovered(ctx *fasthttp.RequestCtx) {
	cause := recover()
	if cause == nil {
		return
	}
	e.log.Error("request panicked", "request_id", httpapi.RequestID(ctx), "error", cause, "stack", string(debug.Stack()))
	httpapi.WriteProblem(ctx, httpapi.NewProblem(http.StatusInternalServerError, "internal",
		"Something failed on our side; requestId finds it in our logs."))
}

// webhookSource is the last part of /webhooks/{source}. Only a path that is written like that names a source: what
// becomes one by unescaping or by following its dots and slashes has no name, which no source has. What stands before
// the edge judges a path as it is written, and so does the edge.
func webhookSource(ctx *fasthttp.RequestCtx) (name []byte, ok bool) {
	prefix, path, written := []byte("/webhooks/"), ctx.Path(), ctx.URI().PathOriginal()
	if bytes.Equal(path, written) {
		return bytes.CutPrefix(path, prefix)
	}
	return nil, bytes.HasPrefix(path, prefix) || bytes.HasPrefix(written, prefix)
}

// bounded reads a management request's body, within the webhooks' bounds, before next sees it.
func (e *Edge) bounded(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	w := e.webhooks
	return func(ctx *fasthttp.RequestCtx) {
		httpapi.RequestID(ctx)
		body, reserved, err := readBody(ctx, w.maxBody, w.producer.Budget, nil)
		defer w.producer.Budget.Give(reserved)
		if err == nil {
			if ctx.RequestBodyStream() != nil {
				ctx.Request.SetBodyRaw(body)
			}
			next(ctx)
			return
		}
		leave(ctx, err)
		refusal := w.unread(err)
		problem := httpapi.NewProblem(refusal.Reason.Status(), string(refusal.Reason), "%s", refusal.Detail)
		if problem.Status == http.StatusServiceUnavailable {
			problem.RetryAfter = retryAfter
		}
		httpapi.WriteProblem(ctx, problem)
	}
}

// expected judges a request with Expect: 100-continue before its body is asked for. One that its headers condemn is
// answered at once, and its connection closed, because the client may send the body all the same.
func (e *Edge) expected(ctx *fasthttp.RequestCtx) (status int) {
	condemned := ctx.Request.Header.ContentLength() > e.webhooks.maxBody
	if name, ok := webhookSource(ctx); ok {
		condemned = e.webhooks.admit(ctx, e.webhooks.sources[string(name)]) != nil
	}
	if !condemned {
		return http.StatusContinue
	}
	closeGently(ctx, time.Now().Add(drainTime))
	e.server.Handler(ctx)
	return ctx.Response.StatusCode()
}

// readiness is whether the edge has begun its work; once it has it goes on, whatever becomes slow later.
type readiness struct{ yes atomic.Bool }

func (r *readiness) opened() bool { return r.yes.Load() }

// open waits for the checks to pass once.
func (r *readiness) open(ctx context.Context, checks ...func(context.Context) error) {
	tick := time.NewTicker(openEvery)
	defer tick.Stop()
	for {
		var errs []error
		for _, check := range checks {
			errs = append(errs, check(ctx))
		}
		if errors.Join(errs...) == nil {
			r.yes.Store(true)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func orHostname(worker string) string {
	if worker != "" {
		return worker
	}
	name, err := os.Hostname()
	if err != nil {
		return "ingest"
	}
	return name
}
