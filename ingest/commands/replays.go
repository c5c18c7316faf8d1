package commands

import (
	"errors"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// startReplay begins to deliver a range of events to an endpoint again.
func (c *Commands) startReplay(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	endpointID, problem := pathID(ctx, id.Endpoint)
	if problem != nil {
		return problem
	}
	body, err := httpapi.JSONBody(ctx)
	if err != nil {
		return err
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	replay, problem := resource.ParseReplay(cmd.OrganizationId, endpointID, body, cmd.IssuedUnixMs)
	if problem != nil {
		return problem
	}
	var endpoint struct {
		Enabled bool   `json:"enabled"`
		Version uint64 `json:"version"`
	}
	if err := c.ask(ctx, c.deps.Processor, "/v1/orgs/"+cmd.OrganizationId+"/endpoints/"+endpointID, &endpoint); err != nil {
		return err
	}
	if !endpoint.Enabled {
		return httpapi.NewProblem(http.StatusConflict, "endpoint_disabled", "The endpoint is disabled: nothing is delivered to it.")
	}
	replay.Id, replay.EndpointVersion = id.New(id.Replay), endpoint.Version
	cmd.Action = &webhooksv1.Command_StartReplay{StartReplay: &webhooksv1.StartReplay{Replay: replay}}
	location := "/v1/orgs/" + cmd.OrganizationId + "/replays/"
	outcome, err := c.carryOut(ctx, ofEndpoint(endpointID), cmd)
	switch {
	case errors.Is(err, errPending) && cmd.IdempotencyKey != nil:
		repeatable(ctx)
		return nil
	case errors.Is(err, errPending):
		accepted(ctx, location+replay.Id, resource.ReplayView(replay))
		return nil
	case err != nil:
		return err
	case outcome.GetReplay() == nil:
		return unexpected(cmd, outcome)
	}
	accepted(ctx, location+outcome.GetReplay().Id, resource.ReplayView(outcome.GetReplay()))
	return nil
}

// changeReplay is the action that gives a replay this status.
func (c *Commands) changeReplay(status string) httpapi.Handler {
	return func(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
		replayID, problem := pathID(ctx, id.Replay)
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
		path := "/v1/orgs/" + cmd.OrganizationId + "/replays/" + replayID
		var found resource.Replay
		if err := c.ask(ctx, c.deps.Deliverer, path, &found); err != nil {
			return err
		}
		cmd.Action = &webhooksv1.Command_ChangeReplay{ChangeReplay: &webhooksv1.ChangeReplay{
			ReplayId: replayID, EndpointId: found.EndpointID, Status: status,
		}}
		outcome, err := c.carryOut(ctx, ofEndpoint(found.EndpointID), cmd)
		switch {
		case errors.Is(err, errPending):
			accepted(ctx, path, pending{replayID})
			return nil
		case err != nil:
			return err
		case outcome.GetReplay() == nil:
			return unexpected(cmd, outcome)
		}
		httpapi.WriteJSON(ctx, http.StatusOK, resource.ReplayView(outcome.GetReplay()))
		return nil
	}
}
