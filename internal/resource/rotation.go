package resource

import (
	"fmt"
	"time"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// Overlap of a rotation: how long the secrets before go on signing beside the new one.
const (
	DefaultOverlap = 24 * time.Hour
	maxOverlap     = 7 * 24 * time.Hour
)

// ParseRotation reads the body of POST …/endpoints/{id}/rotate-secret, `{"overlapMs": 86400000}`; all of it may be left
// out. With 0 the secrets before end at once.
func ParseRotation(body []byte) (overlap time.Duration, err error) {
	var rotation struct {
		OverlapMS *int64 `json:"overlapMs"`
	}
	if len(body) > 0 {
		if err := httpapi.DecodeStrict(body, &rotation); err != nil {
			return 0, err
		}
	}
	if rotation.OverlapMS == nil {
		return DefaultOverlap, nil
	}
	if ms := *rotation.OverlapMS; ms < 0 || ms > maxOverlap.Milliseconds() {
		return 0, httpapi.Invalid(httpapi.FieldError{
			Pointer: "/overlapMs", Detail: fmt.Sprintf("must be 0 to %d milliseconds", maxOverlap.Milliseconds()),
		})
	}
	return time.Duration(*rotation.OverlapMS) * time.Millisecond, nil
}
