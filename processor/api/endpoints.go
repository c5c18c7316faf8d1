package api

import (
	"fmt"
	"net/http"

	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (r *Reads) getEndpoint(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	org, endpointID := httpapi.Org(ctx), httpapi.Param(ctx, "id")
	if !id.Valid(id.Endpoint, endpointID) {
		return httpapi.NotFound()
	}
	if err := r.current(ctx, r.tables.Endpoints, org); err != nil {
		return err
	}
	endpoint := &webhooksv1.Endpoint{}
	found, err := get(r.tables.Endpoints, org+"/"+endpointID, endpoint)
	if err != nil {
		return err
	}
	if !found {
		return httpapi.NotFound()
	}
	httpapi.SetETag(ctx, endpoint.Version)
	httpapi.WriteJSON(ctx, http.StatusOK, resource.EndpointView(endpoint))
	return nil
}

func (r *Reads) listEndpoints(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	params, err := httpapi.ParseList(ctx, nil)
	if err != nil {
		return err
	}
	org := httpapi.Org(ctx)
	if err := r.current(ctx, r.tables.Endpoints, org); err != nil {
		return err
	}
	endpoints, err := r.endpointsOf(org)
	if err != nil {
		return err
	}
	page, next := newestFirst(endpoints, params)
	views := make([]resource.Endpoint, 0, len(page))
	for _, e := range page {
		views = append(views, resource.EndpointView(e))
	}
	httpapi.WriteJSON(ctx, http.StatusOK, httpapi.NewPage(views, next))
	return nil
}

// endpointsOf reads all endpoints of an organization: their number is bounded (ENDPOINTS_PER_ORG).
func (r *Reads) endpointsOf(org string) (list []*webhooksv1.Endpoint, err error) {
	var broken error
	err = r.tables.Endpoints.Scan([]byte(org+"/"), func(key, value []byte) bool {
		endpoint := &webhooksv1.Endpoint{}
		if broken = proto.Unmarshal(value, endpoint); broken != nil {
			broken = fmt.Errorf("decode endpoint %s: %w", key, broken)
			return false
		}
		list = append(list, endpoint)
		return true
	})
	if err == nil {
		err = broken
	}
	return list, err
}
