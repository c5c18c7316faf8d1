// Package eventcatalogue answers which event types there are: GET /v1/event-types and one of them by its name. What it
// shows is the catalogue of schemas/eventtypes, as it was built in.
package eventcatalogue

import (
	"net/http"
	"sort"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/schemas/eventtypes"
)

// Routes adds the routes to a router. They are open to every valid key.
func Routes(to *httpapi.Router, types *eventtypes.Catalogue) {
	c := catalogue{types}
	to.Handle(http.MethodGet, "/v1/event-types", "", c.list)
	to.Handle(http.MethodGet, "/v1/event-types/{name}", "", c.get)
}

type catalogue struct {
	types *eventtypes.Catalogue
}

// list answers in the order of the names; a cursor is the last name of a page.
func (c catalogue) list(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	params, err := httpapi.ParseList(ctx, nil)
	if err != nil {
		return err
	}
	all := c.types.All()
	after := string(params.Cursor)
	from := sort.Search(len(all), func(i int) bool { return all[i].Name > after })
	page := all[from:min(from+params.Limit, len(all))]
	var next *string
	if from+len(page) < len(all) {
		next = httpapi.NextCursor(params, []byte(page[len(page)-1].Name))
	}
	httpapi.WriteJSON(ctx, http.StatusOK, httpapi.NewPage(page, next))
	return nil
}

func (c catalogue) get(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	found, ok := c.types.Lookup(httpapi.Param(ctx, "name"))
	if !ok {
		return httpapi.NotFound()
	}
	httpapi.WriteJSON(ctx, http.StatusOK, found)
	return nil
}
