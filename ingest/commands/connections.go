package commands

import (
	"errors"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func (c *Commands) createConnection(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	body, err := httpapi.JSONBody(ctx)
	if err != nil {
		return err
	}
	create, problem := c.deps.Rules.ParseConnectionCreate(httpapi.Org(ctx), body)
	if problem != nil {
		return problem
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	connection := create.Connection
	connection.Id, connection.CreatedUnixMs = id.New(id.Connection), cmd.IssuedUnixMs
	if create.AccessToken != "" {
		context := seal.ConnectionToken(connection.Source, connection.Account)
		if connection.SealedAccessToken, err = c.seal(create.AccessToken, context); err != nil {
			return err
		}
	}
	cmd.Action = &webhooksv1.Command_CreateConnection{
		CreateConnection: &webhooksv1.CreateConnection{Connection: connection, Move: create.Move},
	}
	outcome, err := c.carryOut(ctx, ofAccount(connection.Source, connection.Account), cmd)
	location := "/v1/orgs/" + cmd.OrganizationId + "/connections/"
	switch {
	case errors.Is(err, errPending) && cmd.IdempotencyKey != nil:
		repeatable(ctx)
		return nil
	case errors.Is(err, errPending):
		accepted(ctx, location+connection.Id, resource.ConnectionView(connection))
		return nil
	case err != nil:
		return err
	}
	created := outcome.GetConnection()
	if created == nil {
		return unexpected(cmd, outcome)
	}
	// The owner may have kept the id of a connection that was there before.
	ctx.Response.Header.Set(fasthttp.HeaderLocation, location+created.Id)
	httpapi.WriteJSON(ctx, http.StatusCreated, resource.ConnectionView(created))
	return nil
}

func (c *Commands) deleteConnection(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	connectionID, problem := pathID(ctx, id.Connection)
	if problem != nil {
		return problem
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	source, account, err := c.accountOf(ctx, "/v1/orgs/"+cmd.OrganizationId+"/connections/"+connectionID)
	if err != nil {
		return err
	}
	if cmd.Precondition != nil && !cmd.Precondition.Any {
		return httpapi.NewProblem(http.StatusPreconditionFailed, "precondition_failed",
			"A connection has no version, so no ETag in If-Match is its. Leave If-Match out.")
	}
	cmd.Action = &webhooksv1.Command_DeleteConnection{
		DeleteConnection: &webhooksv1.DeleteConnection{ConnectionId: connectionID, Source: source, Account: account},
	}
	return c.delete(ctx, ofAccount(source, account), cmd, connectionID)
}

// accountOf asks the processor which account the connection at a path is of, since that decides who owns it.
func (c *Commands) accountOf(ctx *fasthttp.RequestCtx, path string) (source, account string, err error) {
	var found struct{ Source, Account string }
	if err := c.ask(ctx, c.deps.Processor, path, &found); err != nil {
		return "", "", err
	}
	if found.Source == "" || found.Account == "" {
		return "", "", errors.New("a connection before its deletion has no account")
	}
	return found.Source, found.Account, nil
}
