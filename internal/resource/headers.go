package resource

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/betterdata/webhooks/internal/httpapi"
)

const (
	maxHeaders     = 32
	maxHeaderName  = 128
	maxHeaderValue = 4096
)

// HeaderPatch is what a merge patch does to an endpoint's headers. The three do not overlap.
type HeaderPatch struct {
	// Set has the new values in clear text.
	Set map[string]string
	// Keep are names sent with their mask: they must exist.
	Keep []string
	// Remove are names sent as null.
	Remove []string
}

// Names are those set or kept, sorted: what SealedHeaders carries.
func (p *HeaderPatch) Names() []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(p.Set)), p.Keep...)))
}

// HeadersJSON is the clear text that is sealed: a JSON object of names and values.
func HeadersJSON(headers map[string]string) []byte {
	if headers == nil {
		headers = map[string]string{}
	}
	// A map of strings always encodes.
	encoded, _ := json.Marshal(headers)
	return encoded
}

// MergeHeaders applies what a patch sets, keeps and removes to the current headers. Names that differ only in case are
// one header; the last writing holds.
func MergeHeaders(current, set map[string]string, named, removed []string) (map[string]string, *httpapi.Problem) {
	merged := maps.Clone(current)
	if merged == nil {
		merged = map[string]string{}
	}
	for _, name := range removed {
		deleteFold(merged, name)
	}
	var missing []httpapi.FieldError
	for _, name := range named {
		value, ok := set[name]
		if !ok {
			if value, ok = getFold(current, name); !ok {
				missing = append(missing, httpapi.FieldError{
					Pointer: "/headers/" + escapePointer(name), Detail: "is not set yet: " + Mask + " stands for a value that is",
				})
				continue
			}
		}
		deleteFold(merged, name)
		merged[name] = value
	}
	if len(missing) > 0 {
		return nil, httpapi.Invalid(missing...)
	}
	if len(merged) > maxHeaders {
		return nil, httpapi.Invalid(httpapi.FieldError{Pointer: "/headers", Detail: fmt.Sprintf("must have at most %d headers", maxHeaders)})
	}
	return merged, nil
}

func getFold(headers map[string]string, name string) (string, bool) {
	for have, value := range headers {
		if strings.EqualFold(have, name) {
			return value, true
		}
	}
	return "", false
}

func deleteFold(headers map[string]string, name string) {
	maps.DeleteFunc(headers, func(have, _ string) bool { return strings.EqualFold(have, name) })
}

func clearHeaders(ed *edit) error {
	ed.endpoint.HeaderNames, ed.endpoint.SealedHeaders = nil, nil
	return nil
}

func setHeaders(ed *edit, headers map[string]*string) error {
	if len(headers) > maxHeaders {
		return fmt.Errorf("must have at most %d headers", maxHeaders)
	}
	patch := &HeaderPatch{Set: map[string]string{}}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value := headers[name]
		if err := checkHeader(name, value); err != nil {
			return &memberError{pointer: "/" + escapePointer(name), detail: err.Error()}
		}
		if folded := strings.ToLower(name); seen[folded] {
			return &memberError{pointer: "/" + escapePointer(name), detail: "is given twice in different case"}
		} else {
			seen[folded] = true
		}
		switch {
		case value == nil:
			patch.Remove = append(patch.Remove, name)
		case *value != Mask:
			patch.Set[name] = *value
		case ed.creating:
			return &memberError{pointer: "/" + escapePointer(name), detail: "must not be the mask of a value"}
		default:
			patch.Keep = append(patch.Keep, name)
		}
	}
	ed.headers = patch
	return nil
}

// ownHeaders are made by the deliverer or would change what the request is (SOURCES §7, RFC 9110 §7.6.1).
var ownHeaders = []string{
	"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "accept-encoding", "user-agent", "expect",
	"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "upgrade",
}

func checkHeader(name string, value *string) error {
	lower := strings.ToLower(name)
	switch {
	case len(name) > maxHeaderName || !httpguts.ValidHeaderFieldName(name):
		return errors.New("is not a header name")
	case slices.Contains(ownHeaders, lower), strings.HasPrefix(lower, "webhook-"), strings.HasPrefix(lower, "x-betterdata-"):
		return errors.New("is set by the sender and cannot be chosen")
	case value == nil:
		return nil
	case len(*value) > maxHeaderValue || !httpguts.ValidHeaderFieldValue(*value):
		return fmt.Errorf("must be a header value of at most %d bytes, without line breaks", maxHeaderValue)
	}
	return nil
}

// HeaderNames are the names, sorted, as an endpoint lists them.
func HeaderNames(headers map[string]string) []string { return slices.Sorted(maps.Keys(headers)) }
