package main

import (
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
)

func readsOf(room any) fasthttp.RequestHandler {
	if h, ok := room.(interface{ Handler() fasthttp.RequestHandler }); ok {
		return h.Handler()
	}
	return func(ctx *fasthttp.RequestCtx) { httpapi.WriteProblem(ctx, httpapi.NotFound()) }
}
