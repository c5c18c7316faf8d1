// Package resource is the public form of what merchants manage: endpoints and connections, and of their deliveries. It has
// the JSON views that every answer shows and the rules that every request is held to, so that ingest, which refuses a
// request, and the processor, which applies it, cannot disagree.
//
// A write goes through it twice. Ingest parses the body (ParseEndpointCreate, ParseEndpointPatch,
// ParseConnectionCreate): what is wrong becomes a problem at once, and what is secret (a signing secret, header values,
// an access token) comes back apart from the record, to be sealed before anything reaches the log. The owner of the
// organization then applies the patch to the endpoint as it is by then (ApplyEndpointPatch), in its place in the
// organization's order.
//
// Everything here is pure: no clock, no state, no ids made.
package resource

import (
	"encoding/json"
	"net/http"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/netguard"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Mask stands for a value that is set and never shown.
const Mask = "***"

// Defaults are an endpoint's values where the merchant gave none.
type Defaults struct {
	// Concurrency is ENDPOINT_CONCURRENCY; 0 is 16.
	Concurrency uint32
	// TimeoutMS is DELIVERY_TIMEOUT; 0 is 15,000.
	TimeoutMS uint32
	// RateLimit is ENDPOINT_RATE_LIMIT, requests a second; 0 is none.
	RateLimit float64
}

// Config is what the operator decides about endpoints.
type Config struct {
	Defaults Defaults
	// Guard judges URLs. Nil skips it: whoever applies a patch that ingest let through does not judge anew, so that a
	// policy that changed in between cannot undo an accepted write.
	Guard *netguard.Guard
	// Filters compiles filters. Nil skips it, for the same reason.
	Filters *eventfilter.Compiler
}

// Rules hold requests to the contract. They are safe for concurrent use.
type Rules struct {
	defaults Defaults
	guard    *netguard.Guard
	filters  *eventfilter.Compiler
}

// NewRules makes Rules.
func NewRules(cfg Config) *Rules {
	if cfg.Defaults.Concurrency == 0 {
		cfg.Defaults.Concurrency = 16
	}
	if cfg.Defaults.TimeoutMS == 0 {
		cfg.Defaults.TimeoutMS = 15_000
	}
	return &Rules{defaults: cfg.Defaults, guard: cfg.Guard, filters: cfg.Filters}
}

// Refusal is a problem as it rides in a CommandOutcome.
func Refusal(p *httpapi.Problem) *webhooksv1.Refusal {
	refusal := &webhooksv1.Refusal{Status: uint32(p.Status), Code: p.Code, Detail: p.Detail}
	for _, e := range p.Errors {
		refusal.Errors = append(refusal.Errors, &webhooksv1.FieldError{Pointer: e.Pointer, Detail: e.Detail})
	}
	return refusal
}

// Problem is a refusal as it is answered.
func Problem(r *webhooksv1.Refusal) *httpapi.Problem {
	p := &httpapi.Problem{Status: int(r.Status), Code: r.Code, Detail: r.Detail}
	for _, e := range r.Errors {
		p.Errors = append(p.Errors, httpapi.FieldError{Pointer: e.Pointer, Detail: e.Detail})
	}
	return p
}

// decodeObject reads a body that must be a JSON object.
func decodeObject(body []byte) (map[string]json.RawMessage, *httpapi.Problem) {
	var members map[string]json.RawMessage
	if err := httpapi.DecodeStrict(body, &members); err != nil {
		return nil, asProblem(err)
	}
	if members == nil {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "malformed_body", "The body is not a JSON object.")
	}
	return members, nil
}

func asProblem(err error) *httpapi.Problem {
	if p, ok := err.(*httpapi.Problem); ok {
		return p
	}
	return httpapi.NewProblem(http.StatusBadRequest, "malformed_body", "The body is not JSON in UTF-8.")
}
