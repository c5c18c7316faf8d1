package commands

import (
	"fmt"
	"net/http"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// organization is one organization's part of the state.
type organization struct {
	state State
	id    string
	nowMS int64
}

func (o *organization) key(endpointID string) []byte { return schemas.EndpointKey(o.id, endpointID) }

// endpoint is nil when the organization has none with that id.
func (o *organization) endpoint(endpointID string) (*webhooksv1.Endpoint, error) {
	value, ok, err := o.state.Get(o.key(endpointID))
	if err != nil || !ok {
		return nil, err
	}
	return decodeEndpoint(o.key(endpointID), value)
}

// matching is an endpoint that is as the request's If-Match asks. It is judged before what the request wants: a change
// made to a version that is not there any more should not be told that its values are wrong.
func (o *organization) matching(endpointID string, ifMatch *webhooksv1.Precondition) (*webhooksv1.Endpoint, *httpapi.Problem, error) {
	endpoint, err := o.endpoint(endpointID)
	switch {
	case err != nil:
		return nil, nil, err
	case endpoint == nil:
		return nil, httpapi.NotFound(), nil
	case ifMatch != nil && !ifMatch.Any && !slices.Contains(ifMatch.Versions, endpoint.Version):
		return nil, httpapi.NewProblem(http.StatusPreconditionFailed, "precondition_failed",
			"The endpoint has version %d, which If-Match does not name. Get it again, and decide anew.", endpoint.Version), nil
	}
	return endpoint, nil, nil
}

func decodeEndpoint(key, value []byte) (*webhooksv1.Endpoint, error) {
	endpoint := &webhooksv1.Endpoint{}
	if err := proto.Unmarshal(value, endpoint); err != nil {
		return nil, fmt.Errorf("decode endpoint %s: %w", key, err)
	}
	return endpoint, nil
}

func (o *organization) set() (*webhooksv1.EndpointSet, error) {
	set := &webhooksv1.EndpointSet{}
	value, ok, err := o.state.Get([]byte(o.id))
	if err != nil || !ok {
		return set, err
	}
	if err := proto.Unmarshal(value, set); err != nil {
		return nil, fmt.Errorf("decode endpoint set of %s: %w", o.id, err)
	}
	return set, nil
}

// change writes an endpoint that was there before, one version on.
func (o *organization) change(e *webhooksv1.Endpoint) error {
	set, err := o.set()
	if err != nil {
		return err
	}
	e.Version++
	e.UpdatedUnixMs = o.nowMS
	return o.put(e, set)
}

func (o *organization) put(e *webhooksv1.Endpoint, set *webhooksv1.EndpointSet) error {
	value, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode endpoint %s: %w", e.Id, err)
	}
	o.state.Put(o.key(e.Id), value)
	return o.putSet(set)
}

// putSet comes after the change it counts: see webhooksv1.EndpointSet.
func (o *organization) putSet(set *webhooksv1.EndpointSet) error {
	set.Version++
	value, err := proto.Marshal(set)
	if err != nil {
		return fmt.Errorf("encode endpoint set of %s: %w", o.id, err)
	}
	o.state.Put([]byte(o.id), value)
	return nil
}

// checkUID refuses a uid that another endpoint of the organization has. It reads them all: there are few, and this is
// asked only when a uid is given.
func (o *organization) checkUID(wanted *webhooksv1.Endpoint) (*httpapi.Problem, error) {
	if wanted.Uid == nil {
		return nil, nil
	}
	var taken *webhooksv1.Endpoint
	var failed error
	err := o.state.Scan(o.key(""), func(key, value []byte) bool {
		var other *webhooksv1.Endpoint
		if other, failed = decodeEndpoint(key, value); failed != nil {
			return false
		}
		if other.Id != wanted.Id && other.Uid != nil && *other.Uid == *wanted.Uid {
			taken = other
		}
		return taken == nil
	})
	if err != nil || failed != nil {
		return nil, fmt.Errorf("look for uid among the endpoints of %s: %w", o.id, firstOf(err, failed))
	}
	if taken == nil {
		return nil, nil
	}
	problem := httpapi.NewProblem(http.StatusConflict, "uid_taken", "Endpoint %s has this uid.", taken.Id)
	problem.Errors = []httpapi.FieldError{{Pointer: "/uid", Detail: "is taken"}}
	return problem, nil
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
