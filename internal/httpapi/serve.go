package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// readTimeout bounds a request's arrival, idleTimeout a connection's rest, writeTimeout an answer's departure: a
	// slow or silent client must not hold a connection for ever. fasthttp does not close idle connections when it
	// stops, it waits for these.
	readTimeout  = 30 * time.Second
	idleTimeout  = 60 * time.Second
	writeTimeout = 60 * time.Second
	// drainTimeout bounds the wait for open requests when the server stops.
	drainTimeout = 15 * time.Second
	// maxBodyBytes bounds the bodies of management requests.
	maxBodyBytes = 1 << 20
	// maxHeaderBytes bounds a request's line and headers together.
	maxHeaderBytes = 16 << 10
)

// NewServer makes a server with the limits that every API of ours has. Callers may change them before it serves.
func NewServer(handler fasthttp.RequestHandler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:               handler,
		ErrorHandler:          answerUnreadable,
		ReadTimeout:           readTimeout,
		WriteTimeout:          writeTimeout,
		IdleTimeout:           idleTimeout,
		MaxRequestBodySize:    maxBodyBytes,
		ReadBufferSize:        maxHeaderBytes,
		CloseOnShutdown:       true,
		NoDefaultServerHeader: true,
		NoDefaultContentType:  true,
		Logger:                silent{},
	}
}

// silent drops what fasthttp would print: broken connections and unreadable requests, which any client can cause.
type silent struct{}

func (silent) Printf(string, ...any) {}

// Serve answers requests on ln until ctx ends, then stops accepting, waits for open requests and returns nil. It closes
// ln in every case.
func Serve(ctx context.Context, ln net.Listener, handler fasthttp.RequestHandler) error {
	server := NewServer(handler)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.ShutdownWithContext(drain); err != nil {
		return fmt.Errorf("finish the open requests on %s: %w", ln.Addr(), err)
	}
	return <-served
}

// answerUnreadable answers a request that never reached a handler.
func answerUnreadable(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		WriteProblem(ctx, NewProblem(http.StatusRequestEntityTooLarge, "body_too_large", "The body is larger than this API takes."))
	case errors.As(err, &small):
		WriteProblem(ctx, NewProblem(http.StatusRequestHeaderFieldsTooLarge, "headers_too_large", "The headers are larger than this API takes."))
	case errors.As(err, &netErr) && netErr.Timeout():
		WriteProblem(ctx, NewProblem(http.StatusRequestTimeout, "request_timeout", "The request did not arrive in time."))
	default:
		WriteProblem(ctx, NewProblem(http.StatusBadRequest, "malformed_request", "This is not an HTTP request that can be read."))
	}
}
