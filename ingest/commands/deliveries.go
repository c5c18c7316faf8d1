package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// retryDelivery asks for an attempt at once. The answer is the delivery as it then waits for it.
func (c *Commands) retryDelivery(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	return c.onDelivery(ctx, p, http.StatusAccepted, func(cmd *webhooksv1.Command, d *resource.Delivery) {
		cmd.Action = &webhooksv1.Command_RetryDelivery{
			RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: d.ID, EndpointId: d.EndpointID},
		}
	})
}

// cancelDelivery ends the waiting of a delivery.
func (c *Commands) cancelDelivery(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	return c.onDelivery(ctx, p, http.StatusOK, func(cmd *webhooksv1.Command, d *resource.Delivery) {
		cmd.Action = &webhooksv1.Command_CancelDelivery{
			CancelDelivery: &webhooksv1.CancelDelivery{DeliveryId: d.ID, EndpointId: d.EndpointID},
		}
	})
}

// onDelivery carries out an action on a delivery. Whether there is one, and whose endpoint's owner has it, the record
// knows: without the record there is no action.
func (c *Commands) onDelivery(ctx *fasthttp.RequestCtx, p httpapi.Principal, status int,
	action func(*webhooksv1.Command, *resource.Delivery),
) error {
	deliveryID, problem := pathID(ctx, id.Delivery)
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
	path := "/v1/orgs/" + cmd.OrganizationId + "/deliveries/" + deliveryID
	var found resource.Delivery
	if err := c.ask(ctx, c.deps.Deliverer, path, &found); err != nil {
		return err
	}
	action(cmd, &found)
	outcome, err := c.carryOut(ctx, ofEndpoint(found.EndpointID), cmd)
	switch {
	case errors.Is(err, errPending):
		// What it is now; the action waits for an attempt that runs, or for the record.
		accepted(ctx, path, &found)
		return nil
	case err != nil:
		return err
	case outcome.GetDelivery() == nil:
		return unexpected(cmd, outcome)
	}
	if status == http.StatusAccepted {
		ctx.Response.Header.Set(fasthttp.HeaderLocation, path)
	}
	httpapi.WriteJSON(ctx, status, resource.DeliveryView(outcome.GetDelivery()))
	return nil
}

// testEndpoint makes up an event, and answers once the one attempt to deliver it has ended.
func (c *Commands) testEndpoint(ctx *fasthttp.RequestCtx, p httpapi.Principal) error {
	endpointID, problem := pathID(ctx, id.Endpoint)
	if problem != nil {
		return problem
	}
	body, err := optionalBody(ctx)
	if err != nil {
		return err
	}
	eventType, data, err := c.sample(body, endpointID)
	if err != nil {
		return err
	}
	cmd, problem := command(ctx, p)
	if problem != nil {
		return problem
	}
	var endpoint struct {
		Version   uint64 `json:"version"`
		TimeoutMS int64  `json:"timeoutMs"`
	}
	if err := c.ask(ctx, c.deps.Processor, "/v1/orgs/"+cmd.OrganizationId+"/endpoints/"+endpointID, &endpoint); err != nil {
		return err
	}
	test := &webhooksv1.TestEndpoint{
		EndpointId: endpointID, EndpointVersion: endpoint.Version, EventType: eventType, Data: data, DeliveryId: id.New(id.Delivery),
	}
	cmd.Action = &webhooksv1.Command_TestEndpoint{TestEndpoint: test}
	wait := c.cfg.Wait + time.Duration(endpoint.TimeoutMS)*time.Millisecond
	outcome, err := c.carryOutWithin(ctx, wait, ofEndpoint(endpointID), cmd)
	switch {
	case errors.Is(err, errPending) && cmd.IdempotencyKey != nil:
		repeatable(ctx)
		return nil
	case errors.Is(err, errPending):
		accepted(ctx, "/v1/orgs/"+cmd.OrganizationId+"/deliveries/"+test.DeliveryId, pending{test.DeliveryId})
		return nil
	case err != nil:
		return err
	case outcome.GetDelivery() == nil:
		return unexpected(cmd, outcome)
	}
	httpapi.WriteJSON(ctx, http.StatusOK, resource.DeliveryView(outcome.GetDelivery()))
	return nil
}

// typeTest is the event type of a test that names none. It is in no catalogue: nothing else has it.
const typeTest = "endpoint.test"

// sample is the type that a test asks for, and an example of its data.
func (c *Commands) sample(body []byte, endpointID string) (eventType string, data []byte, err error) {
	test := struct {
		EventType string `json:"eventType"`
	}{typeTest}
	if len(body) > 0 {
		if err := httpapi.DecodeStrict(body, &test); err != nil {
			return "", nil, err
		}
	}
	if test.EventType == typeTest {
		return typeTest, []byte(`{"endpointId":"` + endpointID + `"}`), nil
	}
	known, ok := c.types.Lookup(test.EventType)
	if !ok {
		return "", nil, httpapi.Invalid(httpapi.FieldError{Pointer: "/eventType", Detail: "is not an event type of the catalogue"})
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, known.Example); err != nil {
		return "", nil, fmt.Errorf("example of %s: %w", known.Name, err)
	}
	return known.Name, compact.Bytes(), nil
}
