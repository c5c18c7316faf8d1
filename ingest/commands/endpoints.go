package commands

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (c *Commands) createEndpoint(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	body, err := httpapi.JSONBody(ctx)
	if err != nil {
		return err
	}
	create, problem := c.deps.Rules.ParseEndpointCreate(httpapi.Org(ctx), body)
	if problem != nil {
		return problem
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	endpoint, secret, err := c.sealedEndpoint(create, cmd.IssuedUnixMs)
	if err != nil {
		return err
	}
	cmd.Action = &webhooksv1.Command_CreateEndpoint{CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: endpoint}}
	location := "/v1/orgs/" + cmd.OrganizationId + "/endpoints/"
	outcome, err := c.carryOut(ctx, ofOrganization(cmd.OrganizationId), cmd)
	switch {
	case errors.Is(err, errPending) && cmd.IdempotencyKey != nil:
		repeatable(ctx)
		return nil
	case errors.Is(err, errPending):
		// The secret is given out here or never.
		accepted(ctx, location+endpoint.Id, resource.EndpointViewWithSecret(endpoint, secret))
		return nil
	case err != nil:
		return err
	}
	created := outcome.GetEndpoint()
	if created == nil {
		return unexpected(cmd, outcome)
	}
	if outcome.Replayed {
		// The one made for this request is nobody's.
		secret = ""
	}
	ctx.Response.Header.Set(fasthttp.HeaderLocation, location+created.Id)
	httpapi.SetETag(ctx, created.Version)
	httpapi.WriteJSON(ctx, http.StatusCreated, resource.EndpointViewWithSecret(created, secret))
	return nil
}

// sealedEndpoint completes a requested endpoint with its id and keys. secret is the clear text to be answered.
func (c *Commands) sealedEndpoint(create *resource.EndpointCreate, nowUnixMS int64) (e *webhooksv1.Endpoint, secret string, err error) {
	e, secret = create.Endpoint, create.Secret
	e.Id, e.CreatedUnixMs, e.UpdatedUnixMs = id.New(id.Endpoint), nowUnixMS, nowUnixMS
	if secret == "" {
		secret = signing.NewSecret()
	}
	keys := &webhooksv1.SigningSecret{}
	if keys.SealedSecret, err = c.seal(secret, seal.EndpointSecret(e.Id)); err != nil {
		return nil, "", err
	}
	if create.NeedsKeyPair {
		if keys.SealedPrivateKey, e.PublicKey, err = c.keyPair(e.Id); err != nil {
			return nil, "", err
		}
	}
	e.Secrets = []*webhooksv1.SigningSecret{keys}
	if len(create.Headers) > 0 {
		e.SealedHeaders, err = c.seal(string(resource.HeadersJSON(create.Headers)), seal.EndpointHeaders(e.Id))
	}
	return e, secret, err
}

func (c *Commands) patchEndpoint(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	endpointID, problem := pathID(ctx, id.Endpoint)
	if problem != nil {
		return problem
	}
	body, err := httpapi.JSONBody(ctx)
	if err != nil {
		return err
	}
	patch, problem := c.deps.Rules.ParseEndpointPatch(body)
	if problem != nil {
		return problem
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	update, err := c.sealedPatch(endpointID, patch)
	if err != nil {
		return err
	}
	return c.update(ctx, cmd, update)
}

// setEnabled is the action that does what this patch does. Unlike other POSTs it changes what is there, so it takes
// If-Match too. It needs no body; one that it has must be an empty object.
func (c *Commands) setEnabled(patch string) httpapi.Handler {
	return func(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
		endpointID, problem := pathID(ctx, id.Endpoint)
		if problem != nil {
			return problem
		}
		if err := emptyBody(ctx); err != nil {
			return err
		}
		cmd, problem := command(ctx, p)
		if problem != nil {
			return problem
		}
		if cmd.Precondition, problem = ifMatch(ctx); problem != nil {
			return problem
		}
		return c.update(ctx, cmd, &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: []byte(patch)})
	}
}

// rotateSecret gives an endpoint a new secret, and the answer has it. Like the other actions it takes If-Match.
func (c *Commands) rotateSecret(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	endpointID, problem := pathID(ctx, id.Endpoint)
	if problem != nil {
		return problem
	}
	body, err := optionalBody(ctx)
	if err != nil {
		return err
	}
	overlap, err := resource.ParseRotation(body)
	if err != nil {
		return err
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	if cmd.Precondition, problem = ifMatch(ctx); problem != nil {
		return problem
	}
	rotate, secret, err := c.sealedRotation(endpointID, overlap)
	if err != nil {
		return err
	}
	cmd.Action = &webhooksv1.Command_RotateSecret{RotateSecret: rotate}
	outcome, err := c.carryOut(ctx, ofOrganization(cmd.OrganizationId), cmd)
	location := "/v1/orgs/" + cmd.OrganizationId + "/endpoints/" + endpointID
	switch {
	case errors.Is(err, errPending) && cmd.IdempotencyKey != nil:
		repeatable(ctx)
		return nil
	case errors.Is(err, errPending):
		// The secret is given out here or never.
		accepted(ctx, location, struct {
			ID     string `json:"id"`
			Secret string `json:"secret"`
		}{endpointID, secret})
		return nil
	case err != nil:
		return err
	case outcome.GetEndpoint() == nil:
		return unexpected(cmd, outcome)
	}
	if outcome.Replayed {
		secret = "" // this one is nobody's
	}
	httpapi.SetETag(ctx, outcome.GetEndpoint().Version)
	httpapi.WriteJSON(ctx, http.StatusOK, resource.EndpointViewWithSecret(outcome.GetEndpoint(), secret))
	return nil
}

// sealedRotation is a rotation as it goes on the log. secret is the clear text to be answered.
func (c *Commands) sealedRotation(endpointID string, overlap time.Duration) (r *webhooksv1.RotateSecret, secret string, err error) {
	r = &webhooksv1.RotateSecret{EndpointId: endpointID, Secret: &webhooksv1.SigningSecret{}, OverlapMs: uint64(overlap.Milliseconds())}
	secret = signing.NewSecret()
	if r.Secret.SealedSecret, err = c.seal(secret, seal.EndpointSecret(endpointID)); err != nil {
		return nil, "", err
	}
	// Whether the endpoint signs with v1a is known to its owner only, who takes this then.
	if r.Secret.SealedPrivateKey, r.PublicKey, err = c.keyPair(endpointID); err != nil {
		return nil, "", err
	}
	return r, secret, nil
}

// optionalBody is the body of an action that may be sent without one.
func optionalBody(ctx *fasthttp.RequestCtx) ([]byte, error) {
	if len(ctx.Request.Body()) == 0 {
		return nil, nil
	}
	return httpapi.JSONBody(ctx)
}

// emptyBody refuses a body of an action that asks for nothing more: it may be left out, or be an empty object.
func emptyBody(ctx *fasthttp.RequestCtx) error {
	body, err := optionalBody(ctx)
	if err != nil || len(body) == 0 {
		return err
	}
	return httpapi.DecodeStrict(body, &struct{}{})
}

// update carries out a change to an endpoint and answers the endpoint.
func (c *Commands) update(ctx *fasthttp.RequestCtx, cmd *webhooksv1.Command, update *webhooksv1.UpdateEndpoint) error {
	cmd.Action = &webhooksv1.Command_UpdateEndpoint{UpdateEndpoint: update}
	outcome, err := c.carryOut(ctx, ofOrganization(cmd.OrganizationId), cmd)
	if errors.Is(err, errPending) {
		accepted(ctx, "/v1/orgs/"+cmd.OrganizationId+"/endpoints/"+update.EndpointId, pending{update.EndpointId})
		return nil
	}
	if err != nil {
		return err
	}
	updated := outcome.GetEndpoint()
	if updated == nil {
		return unexpected(cmd, outcome)
	}
	httpapi.SetETag(ctx, updated.Version)
	httpapi.WriteJSON(ctx, http.StatusOK, resource.EndpointView(updated))
	return nil
}

// sealedPatch is a patch as it goes on the log.
func (c *Commands) sealedPatch(endpointID string, patch *resource.EndpointPatch) (*webhooksv1.UpdateEndpoint, error) {
	update := &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: patch.JSON}
	if patch.Headers != nil {
		sealed, err := c.seal(string(resource.HeadersJSON(patch.Headers.Set)), seal.EndpointHeaders(endpointID))
		if err != nil {
			return nil, err
		}
		update.Headers = &webhooksv1.SealedHeaders{Names: patch.Headers.Names(), Sealed: sealed, Removed: patch.Headers.Remove}
	}
	if patch.NeedsKeyPair {
		private, public, err := c.keyPair(endpointID)
		if err != nil {
			return nil, err
		}
		update.PrivateKey, update.PublicKey = &webhooksv1.SigningSecret{SealedPrivateKey: private}, public
	}
	return update, nil
}

func (c *Commands) deleteEndpoint(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	endpointID, problem := pathID(ctx, id.Endpoint)
	if problem != nil {
		return problem
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	cmd.Action = &webhooksv1.Command_DeleteEndpoint{DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: endpointID}}
	return c.delete(ctx, ofOrganization(cmd.OrganizationId), cmd, endpointID)
}

// delete carries out a deletion and answers 204.
func (c *Commands) delete(ctx *fasthttp.RequestCtx, to owner, cmd *webhooksv1.Command, what string) error {
	outcome, err := c.carryOut(ctx, to, cmd)
	switch {
	case errors.Is(err, errPending):
		accepted(ctx, string(ctx.Path()), pending{what})
		return nil
	case err != nil:
		return err
	case outcome.GetDeleted() == nil:
		return unexpected(cmd, outcome)
	}
	ctx.SetStatusCode(http.StatusNoContent)
	return nil
}

func (c *Commands) seal(plain, context string) ([]byte, error) {
	sealed, err := c.deps.Keyring.Seal([]byte(plain), context)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", context, err)
	}
	return sealed, nil
}

// keyPair makes an ed25519 key for an endpoint: its sealed private half and its public one.
func (c *Commands) keyPair(endpointID string) (sealed []byte, public string, err error) {
	private, public := signing.NewKeyPair()
	sealed, err = c.seal(private, seal.EndpointPrivateKey(endpointID))
	return sealed, public, err
}

// pending is the body of a 202 that has nothing else to show.
type pending struct {
	ID string `json:"id"`
}

// pathID is the id in the path; one that is none names nothing.
func pathID(ctx *fasthttp.RequestCtx, prefix string) (string, *httpapi.Problem) {
	s := httpapi.Param(ctx, "id")
	if !id.Valid(prefix, s) {
		return "", httpapi.NotFound()
	}
	return s, nil
}

func unexpected(cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome) error {
	return fmt.Errorf("command %s, issued at %s, has the outcome %T", cmd.Id, time.UnixMilli(cmd.IssuedUnixMs), outcome.Result)
}
