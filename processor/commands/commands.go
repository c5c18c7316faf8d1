// Package commands applies management commands to an organization's endpoints: create, update, delete, disable, rotate the
// secret. It is pure: a function of the state, the command and the time that changes the state and says what follows from it.
//
// The state is the table `endpoints` of the organization's partition: one record an endpoint under <org>/<id>, and
// under the bare <org> the EndpointSet, whose version grows by one with every change and which is written after it.
// Whoever sees version n of the set has seen every change up to n.
//
// Of two commands that name the same version (If-Match) the second meets another and is refused with 412.
//
// A command that cannot be applied is refused, and the refusal is its outcome. An error is returned only when the state
// itself cannot be read.
package commands

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// State is the store `endpoints` as the open transaction sees it.
type State interface {
	// Get returns a value that is neither kept nor changed.
	Get(key []byte) (value []byte, ok bool, err error)
	Put(key, value []byte)
	Delete(key []byte)
	// Scan calls fn for the records whose key starts with prefix, in order, until it returns false.
	Scan(prefix []byte, fn func(key, value []byte) bool) error
}

// Sealer opens and seals the values of request headers, which a merge patch changes one by one.
type Sealer interface {
	Seal(plain []byte, context string) ([]byte, error)
	Open(sealed []byte, context string) ([]byte, error)
}

// Config is what the operator decides.
type Config struct {
	// EndpointsPerOrg bounds the endpoints of an organization (ENDPOINTS_PER_ORG).
	EndpointsPerOrg int
	// Defaults are those of the rules by which ingest judged the request.
	Defaults resource.Defaults
}

// Applier applies commands. It keeps nothing between calls.
type Applier struct {
	limit int
	rules *resource.Rules
	keys  Sealer
}

// New makes an Applier.
func New(cfg Config, keys Sealer) (*Applier, error) {
	if cfg.EndpointsPerOrg < 1 {
		return nil, fmt.Errorf("endpoints per organization must be at least 1, not %d", cfg.EndpointsPerOrg)
	}
	return &Applier{limit: cfg.EndpointsPerOrg, rules: resource.NewRules(resource.Config{Defaults: cfg.Defaults}), keys: keys}, nil
}

// Result is what follows from a command.
type Result struct {
	// Outcome is for `command-outcomes`. It is never nil.
	Outcome *webhooksv1.CommandOutcome
	// Event is to be sent out, or nil.
	Event *Event
}

// Event is a public event caused by a command.
type Event struct {
	// ID depends only on the command.
	ID      string
	Type    string
	Subject string
	Data    []byte
}

// Applies reports whether the command is about endpoints, so that Apply takes it.
func Applies(cmd *webhooksv1.Command) bool {
	switch cmd.Action.(type) {
	case *webhooksv1.Command_CreateEndpoint, *webhooksv1.Command_UpdateEndpoint,
		*webhooksv1.Command_DeleteEndpoint, *webhooksv1.Command_DisableEndpoint, *webhooksv1.Command_RotateSecret:
		return true
	}
	return false
}

// Apply applies the command to the state of its organization.
func (a *Applier) Apply(state State, cmd *webhooksv1.Command, now time.Time) (Result, error) {
	org := &organization{state: state, id: cmd.OrganizationId, nowMS: now.UnixMilli()}
	outcome := &webhooksv1.CommandOutcome{CommandId: cmd.Id}
	result := Result{Outcome: outcome}
	var endpoint *webhooksv1.Endpoint
	var problem *httpapi.Problem
	var err error
	switch action := cmd.Action.(type) {
	case *webhooksv1.Command_CreateEndpoint:
		endpoint, problem, err = a.create(org, action.CreateEndpoint)
	case *webhooksv1.Command_UpdateEndpoint:
		endpoint, problem, err = a.update(org, cmd.Precondition, action.UpdateEndpoint)
	case *webhooksv1.Command_DeleteEndpoint:
		problem, err = remove(org, cmd.Precondition, action.DeleteEndpoint)
	case *webhooksv1.Command_DisableEndpoint:
		endpoint, result.Event, problem, err = disable(org, cmd.Id, action.DisableEndpoint)
	case *webhooksv1.Command_RotateSecret:
		endpoint, problem, err = rotate(org, cmd.Precondition, action.RotateSecret)
	default:
		problem = httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "This version does not know the command.")
	}
	switch {
	case err != nil:
		return Result{}, fmt.Errorf("apply command %s: %w", cmd.Id, err)
	case problem != nil:
		outcome.Result = &webhooksv1.CommandOutcome_Refusal{Refusal: resource.Refusal(problem)}
	case endpoint != nil:
		outcome.Result = &webhooksv1.CommandOutcome_Endpoint{Endpoint: endpoint}
	default:
		outcome.Result = &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}
	}
	return result, nil
}

// SetVersion is the version of an organization's endpoint set, 0 before its first endpoint. Events made in the
// organization's partition carry it.
func SetVersion(state State, org string) (uint64, error) {
	set, err := (&organization{state: state, id: org}).set()
	return set.GetVersion(), err
}

func (a *Applier) create(org *organization, cmd *webhooksv1.CreateEndpoint) (*webhooksv1.Endpoint, *httpapi.Problem, error) {
	wanted := cmd.GetEndpoint()
	if wanted.GetId() == "" {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "The command has no endpoint."), nil
	}
	// The same command again, after an answer that was lost on its way.
	if existing, err := org.endpoint(wanted.Id); err != nil || existing != nil {
		return existing, nil, err
	}
	set, err := org.set()
	if err != nil {
		return nil, nil, err
	}
	if int(set.Endpoints) >= a.limit {
		return nil, httpapi.NewProblem(http.StatusUnprocessableEntity, "endpoint_limit_reached",
			"The organization has %d endpoints, which is all it may have.", set.Endpoints), nil
	}
	if problem, err := org.checkUID(wanted); problem != nil || err != nil {
		return nil, problem, err
	}
	endpoint := proto.CloneOf(wanted)
	endpoint.OrganizationId = org.id
	endpoint.Version, endpoint.CreatedUnixMs, endpoint.UpdatedUnixMs = 1, org.nowMS, org.nowMS
	resource.SetEnabled(endpoint, true, org.nowMS) // an endpoint that is created disabled is so since now
	set.Endpoints++
	return endpoint, nil, org.put(endpoint, set)
}

func (a *Applier) update(org *organization, ifMatch *webhooksv1.Precondition, cmd *webhooksv1.UpdateEndpoint) (*webhooksv1.Endpoint, *httpapi.Problem, error) {
	current, problem, err := org.matching(cmd.EndpointId, ifMatch)
	if problem != nil || err != nil {
		return nil, problem, err
	}
	next, problem := a.rules.ApplyEndpointPatch(current, cmd.PatchJson, org.nowMS)
	if problem == nil {
		problem = a.mergeHeaders(next, cmd.Headers)
	}
	if problem == nil {
		problem = takeKeyPair(next, cmd)
	}
	if problem != nil {
		return nil, problem, nil
	}
	if next.GetUid() != current.GetUid() {
		if problem, err := org.checkUID(next); problem != nil || err != nil {
			return nil, problem, err
		}
	}
	if proto.Equal(current, next) {
		return current, nil, nil
	}
	return next, nil, org.change(next)
}

// mergeHeaders applies what the patch did to headers. Their values are opened for it and sealed again.
func (a *Applier) mergeHeaders(e *webhooksv1.Endpoint, patch *webhooksv1.SealedHeaders) *httpapi.Problem {
	if patch == nil {
		return nil
	}
	current, err := a.openHeaders(e.SealedHeaders, e.Id)
	if err != nil {
		return unreadable()
	}
	set, err := a.openHeaders(patch.Sealed, e.Id)
	if err != nil {
		return unreadable()
	}
	merged, problem := resource.MergeHeaders(current, set, patch.Names, patch.Removed)
	if problem != nil {
		return problem
	}
	names := resource.HeaderNames(merged)
	if len(set) == 0 && len(merged) == len(current) {
		return nil
	}
	e.HeaderNames, e.SealedHeaders = names, nil
	if len(merged) == 0 {
		return nil
	}
	if e.SealedHeaders, err = a.keys.Seal(resource.HeadersJSON(merged), seal.EndpointHeaders(e.Id)); err != nil {
		return unreadable()
	}
	return nil
}

func (a *Applier) openHeaders(sealed []byte, endpointID string) (map[string]string, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	plain, err := a.keys.Open(sealed, seal.EndpointHeaders(endpointID))
	if err != nil {
		return nil, err
	}
	var headers map[string]string
	if err := json.Unmarshal(plain, &headers); err != nil {
		return nil, fmt.Errorf("decode headers of %s: %w", endpointID, err)
	}
	return headers, nil
}

func unreadable() *httpapi.Problem {
	return httpapi.NewProblem(http.StatusInternalServerError, "headers_unreadable",
		`The stored headers cannot be decrypted: SECRETS_KEY lost the key they were sealed with. Set "headers" to null, then anew.`)
}

// takeKeyPair gives an endpoint that signs with v1a the key that ingest made, unless it has one.
func takeKeyPair(e *webhooksv1.Endpoint, cmd *webhooksv1.UpdateEndpoint) *httpapi.Problem {
	if !resource.SignsV1a(e) || e.PublicKey != "" {
		return nil
	}
	if len(cmd.PrivateKey.GetSealedPrivateKey()) == 0 || cmd.PublicKey == "" || len(e.Secrets) == 0 {
		return httpapi.NewProblem(http.StatusInternalServerError, "key_missing", "The command has no key pair for v1a; send the request again.")
	}
	e.PublicKey = cmd.PublicKey
	e.Secrets[0].SealedPrivateKey = cmd.PrivateKey.SealedPrivateKey
	return nil
}

func remove(org *organization, ifMatch *webhooksv1.Precondition, cmd *webhooksv1.DeleteEndpoint) (*httpapi.Problem, error) {
	endpoint, problem, err := org.matching(cmd.EndpointId, ifMatch)
	if problem != nil || err != nil {
		return problem, err
	}
	set, err := org.set()
	if err != nil {
		return nil, err
	}
	org.state.Delete(org.key(endpoint.Id))
	set.Endpoints--
	return nil, org.putSet(set)
}

// disable carries out the deliverer's judgement, unless the endpoint has changed since it was made: who repaired an
// endpoint a moment ago is not punished for what it was before.
func disable(org *organization, commandID string, cmd *webhooksv1.DisableEndpoint) (*webhooksv1.Endpoint, *Event, *httpapi.Problem, error) {
	endpoint, err := org.endpoint(cmd.EndpointId)
	if err != nil || endpoint == nil {
		return nil, nil, httpapi.NotFound(), err
	}
	if endpoint.Version != cmd.JudgedVersion || !endpoint.Enabled {
		return endpoint, nil, nil, nil
	}
	endpoint.Enabled, endpoint.DisabledReason, endpoint.DisabledUnixMs = false, cmd.Reason, org.nowMS
	if err := org.change(endpoint); err != nil {
		return nil, nil, nil, err
	}
	event, err := disabledEvent(org.id, commandID, endpoint)
	return endpoint, event, nil, err
}

func disabledEvent(org, commandID string, e *webhooksv1.Endpoint) (*Event, error) {
	data, err := json.Marshal(struct {
		EndpointID string  `json:"endpointId"`
		Reason     string  `json:"reason"`
		DisabledAt *string `json:"disabledAt"`
	}{e.Id, e.DisabledReason, httpapi.Time(e.DisabledUnixMs)})
	if err != nil {
		return nil, fmt.Errorf("encode %s of %s: %w", schemas.TypeEndpointDisabled, e.Id, err)
	}
	return &Event{
		ID: id.Derive(id.Event, schemas.TypeEndpointDisabled, org, commandID), Type: schemas.TypeEndpointDisabled, Subject: e.Id, Data: data,
	}, nil
}
