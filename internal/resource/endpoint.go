package resource

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// EndpointCreate is a valid request for a new endpoint, its secrets apart.
type EndpointCreate struct {
	// Endpoint lacks id, keys, version and times. HeaderNames are set, SealedHeaders are not.
	Endpoint *webhooksv1.Endpoint
	// Secret is the merchant's own `whsec_…`; empty asks for a generated one.
	Secret string
	// Headers are the extra request headers in clear text: to be sealed as a JSON object (HeadersJSON).
	Headers map[string]string
	// NeedsKeyPair asks for an ed25519 key: the endpoint signs with v1a.
	NeedsKeyPair bool
}

// EndpointPatch is a merge patch (RFC 7396) whose members are valid each for itself, its secrets apart.
type EndpointPatch struct {
	// JSON is the patch for ApplyEndpointPatch, without header values.
	JSON []byte
	// Headers is what the patch does to headers; nil when it names none or takes all away (JSON then says null).
	Headers *HeaderPatch
	// NeedsKeyPair asks for an ed25519 key, to be taken if the endpoint has none.
	NeedsKeyPair bool
}

// ParseEndpointCreate reads the body of POST …/endpoints. A nil problem means that the result may be sealed and put on
// the log.
func (r *Rules) ParseEndpointCreate(org string, body []byte) (*EndpointCreate, *httpapi.Problem) {
	members, problem := decodeObject(body)
	if problem != nil {
		return nil, problem
	}
	ed := &edit{rules: r, creating: true, endpoint: &webhooksv1.Endpoint{
		OrganizationId: org, Enabled: true, Signatures: []string{SignatureV1},
		Concurrency: r.defaults.Concurrency, TimeoutMs: r.defaults.TimeoutMS, RateLimit: r.defaultRateLimit(),
	}}
	ed.readOnly = map[string]any{"organizationId": org}
	ed.apply(members)
	for _, name := range []string{"url", "eventTypes"} {
		if _, named := members[name]; !named {
			ed.refuse("/"+name, errors.New("is required"))
		}
	}
	if problem := ed.problem(); problem != nil {
		return nil, problem
	}
	create := &EndpointCreate{Endpoint: ed.endpoint, Secret: ed.secret, NeedsKeyPair: SignsV1a(ed.endpoint)}
	if ed.headers != nil {
		create.Headers = ed.headers.Set
		create.Endpoint.HeaderNames = HeaderNames(ed.headers.Set)
	}
	if !create.Endpoint.Enabled {
		create.Endpoint.DisabledReason = DisabledManual
	}
	return create, nil
}

// ParseEndpointPatch reads the body of PATCH …/endpoints/{id} without knowing the endpoint. Whether read-only members
// are unchanged, and whether a header whose mask was sent exists, is judged when the patch is applied.
func (r *Rules) ParseEndpointPatch(body []byte) (*EndpointPatch, *httpapi.Problem) {
	members, problem := decodeObject(body)
	if problem != nil {
		return nil, problem
	}
	ed := &edit{rules: r, endpoint: &webhooksv1.Endpoint{}}
	ed.apply(members)
	if problem := ed.problem(); problem != nil {
		return nil, problem
	}
	patch := &EndpointPatch{Headers: ed.headers, NeedsKeyPair: SignsV1a(ed.endpoint)}
	if patch.Headers != nil {
		delete(members, "headers")
	}
	var err error
	if patch.JSON, err = json.Marshal(members); err != nil {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "malformed_body", "The body is not JSON in UTF-8.")
	}
	return patch, nil
}

// ApplyEndpointPatch returns a copy of the endpoint with the patch of ParseEndpointPatch applied. Its version and
// update time are the caller's to raise; headers are not in the patch, except to take all away.
func (r *Rules) ApplyEndpointPatch(current *webhooksv1.Endpoint, patch []byte, nowUnixMS int64) (*webhooksv1.Endpoint, *httpapi.Problem) {
	members, problem := decodeObject(patch)
	if problem != nil {
		return nil, problem
	}
	ed := &edit{rules: r, endpoint: proto.CloneOf(current), readOnly: readOnlyOf(current)}
	ed.apply(members)
	if problem := ed.problem(); problem != nil {
		return nil, problem
	}
	SetEnabled(ed.endpoint, current.Enabled, nowUnixMS)
	return ed.endpoint, nil
}

// SetEnabled makes reason and time of disabling agree with the endpoint's enabled, given what it was.
func SetEnabled(e *webhooksv1.Endpoint, was bool, nowUnixMS int64) {
	switch {
	case e.Enabled:
		e.DisabledReason, e.DisabledUnixMs = "", 0
	case was:
		e.DisabledReason, e.DisabledUnixMs = DisabledManual, nowUnixMS
	}
}

func (r *Rules) defaultRateLimit() *float64 {
	if r.defaults.RateLimit == 0 {
		return nil
	}
	return proto.Float64(r.defaults.RateLimit)
}

// SignsV1a reports an endpoint that signs with ed25519.
func SignsV1a(e *webhooksv1.Endpoint) bool { return slices.Contains(e.Signatures, SignatureV1a) }

// edit is a set of members on its way into an endpoint. It goes through all of them, so that one answer names every
// mistake.
type edit struct {
	rules    *Rules
	creating bool
	endpoint *webhooksv1.Endpoint
	secret   string
	headers  *HeaderPatch
	// readOnly are the values that read-only members may repeat; nil skips the comparison.
	readOnly map[string]any
	code     string
	errors   []httpapi.FieldError
}

func (ed *edit) apply(members map[string]json.RawMessage) {
	// In sorted order, so that the same body always gets the same answer.
	for _, name := range slices.Sorted(maps.Keys(members)) {
		pointer := "/" + escapePointer(name)
		set, writable := endpointMembers[name]
		switch {
		case writable:
			ed.refuse(pointer, set(ed, members[name]))
		case isReadOnly(name):
			ed.refuse(pointer, ed.compare(name, members[name]))
		default:
			ed.refuse(pointer, errors.New("is not a known member"))
		}
	}
}

// memberError is a mistake below a member, or one with a code of its own.
type memberError struct {
	pointer, code, detail string
}

func (e *memberError) Error() string { return e.detail }

func (ed *edit) refuse(pointer string, err error) {
	if err == nil {
		return
	}
	if special, ok := errors.AsType[*memberError](err); ok {
		pointer += special.pointer
		if ed.code == "" {
			ed.code = special.code
		}
	}
	ed.errors = append(ed.errors, httpapi.FieldError{Pointer: pointer, Detail: err.Error()})
}

func (ed *edit) problem() *httpapi.Problem {
	if len(ed.errors) == 0 {
		return nil
	}
	p := httpapi.Invalid(ed.errors...)
	if ed.code != "" {
		p.Code = ed.code
	}
	return p
}
