package commands

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// ask has a room answer a read of what a command is about, and decodes the answer. The path is of the organization that the
// caller was admitted for, and only that is asked of: a key that may write need not have the scope of the read. What the
// room says of it is answered.
func (c *Commands) ask(ctx *fasthttp.RequestCtx, room fasthttp.RequestHandler, path string, into any) error {
	var request fasthttp.Request
	ctx.Request.Header.CopyTo(&request.Header)
	request.Header.SetMethod(http.MethodGet)
	request.Header.Set("x-request-id", httpapi.RequestID(ctx))
	request.Header.Set(fasthttp.HeaderAuthorization, "Bearer "+c.deps.AdminKey)
	for _, name := range []string{fasthttp.HeaderIfMatch, fasthttp.HeaderContentType, fasthttp.HeaderContentLength} {
		request.Header.Del(name)
	}
	request.SetRequestURI(path)
	request.Header.SetHostBytes(ctx.Host())
	var answer fasthttp.RequestCtx
	answer.Init(&request, ctx.RemoteAddr(), nil)
	room(&answer)
	body := answer.Response.Body()
	switch status := answer.Response.StatusCode(); status {
	case http.StatusOK:
	case http.StatusForbidden, http.StatusNotFound, http.StatusServiceUnavailable:
		return relayed(status, body)
	default:
		return fmt.Errorf("look up what a command is about: %s was answered %d", path, status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("look up what a command is about: unreadable answer to %s: %w", path, err)
	}
	return nil
}

// relayed is a room's problem as our own.
func relayed(status int, body []byte) error {
	if status == http.StatusNotFound {
		return httpapi.NotFound()
	}
	var said struct{ Code, Detail string }
	if err := json.Unmarshal(body, &said); err != nil || said.Code == "" {
		said.Code, said.Detail = "unavailable", "What this is about cannot be looked up at the moment. Send the request again."
	}
	if status == http.StatusServiceUnavailable {
		return httpapi.Unavailable(said.Code, "%s", said.Detail)
	}
	return httpapi.NewProblem(status, said.Code, "%s", said.Detail)
}
