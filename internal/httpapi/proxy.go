package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// proxyTimeout bounds a forwarded read; it is above the 10 s that a read may wait for its copy to be current.
const proxyTimeout = 20 * time.Second

// hopByHop are the headers that end at this connection (RFC 9110 §7.6.1).
var hopByHop = [...]string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate",
	"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// Proxy forwards requests, with their path, query and Authorization, to the service at base (http://host:port) and hands
// back its answer. A service that cannot be reached is a 503 problem.
func Proxy(base string) (fasthttp.RequestHandler, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("upstream %q is not a URL like http://host:port", base)
	}
	addr := u.Host
	if u.Port() == "" {
		addr = fasthttp.AddMissingPort(addr, u.Scheme == "https")
	}
	client := &fasthttp.HostClient{
		Addr: addr, IsTLS: u.Scheme == "https", MaxConns: 1024, NoDefaultUserAgentHeader: true,
		DisablePathNormalizing: true,
		MaxIdleConnDuration:    30 * time.Second,
		// One repeat on a stale connection only: what is forwarded are reads.
		RetryIfErr: func(r *fasthttp.Request, attempts int, err error) (bool, bool) { return false, attempts < 2 },
	}
	return func(ctx *fasthttp.RequestCtx) { forward(ctx, client, u) }, nil
}

func forward(ctx *fasthttp.RequestCtx, client *fasthttp.HostClient, base *url.URL) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	requestID := RequestID(ctx)
	ctx.Request.CopyTo(req)
	for _, name := range hopByHop {
		req.Header.Del(name)
	}
	req.URI().SetScheme(base.Scheme)
	req.SetHost(base.Host)
	req.Header.Set(requestIDHeader, requestID)
	req.Header.Set("X-Forwarded-For", ctx.RemoteIP().String())
	if err := client.DoTimeout(req, res, proxyTimeout); err != nil {
		problem := Unavailable("upstream_unavailable", "The service that answers this cannot be reached now.")
		if errors.Is(err, fasthttp.ErrTimeout) {
			problem = Unavailable("upstream_timeout", "The service that answers this took too long.")
		}
		WriteProblem(ctx, problem)
		return
	}
	res.CopyTo(&ctx.Response)
	for _, name := range hopByHop {
		ctx.Response.Header.Del(name)
	}
	if len(ctx.Response.Header.Peek(requestIDHeader)) == 0 {
		ctx.Response.Header.Set(requestIDHeader, requestID)
	}
	if res.StatusCode() == http.StatusNoContent || ctx.IsHead() {
		ctx.Response.SkipBody = true
	}
}
