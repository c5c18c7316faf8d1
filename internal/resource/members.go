package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Values of an endpoint's members.
const (
	SignatureV1    = "v1"
	SignatureV1a   = "v1a"
	DisabledManual = "manual"
	// DisabledGone: the endpoint answered 410. DisabledFailing: nothing but failures for ENDPOINT_DISABLE_AFTER.
	DisabledGone    = "gone"
	DisabledFailing = "failing"
)

// Bounds of an endpoint's members.
const (
	maxUID         = 256
	maxDescription = 1024
	maxPatterns    = 250
	maxName        = 128
	maxMetadata    = 16 << 10
	maxPointer     = 256
	maxConcurrency = 1000
	maxRateLimit   = 100_000
	minTimeoutMS   = 1000
	maxTimeoutMS   = 25_000
	maxRetries     = 20
	// maxRetryDelayMS is 7 days, in milliseconds.
	maxRetryDelayMS = 7 * 24 * 60 * 60 * 1000
)

// Codes of refusals with a meaning of their own.
const (
	codeURL          = "url_not_allowed"
	codeNotSupported = "not_supported"
)

// endpointMembers are the writable members. A null takes a member back to its default, as in a merge patch.
var endpointMembers = map[string]func(*edit, json.RawMessage) error{
	"url":             member(required, setURL),
	"uid":             member(func(ed *edit) error { ed.endpoint.Uid = nil; return nil }, setUID),
	"description":     member(func(ed *edit) error { ed.endpoint.Description = nil; return nil }, setDescription),
	"enabled":         member(func(ed *edit) error { ed.endpoint.Enabled = true; return nil }, setEnabled),
	"eventTypes":      member(required, setEventTypes),
	"loopIds":         member(func(ed *edit) error { ed.endpoint.LoopIds = nil; return nil }, setLoopIDs),
	"filter":          member(func(ed *edit) error { ed.endpoint.Filter = nil; return nil }, setFilter),
	"headers":         member(clearHeaders, setHeaders),
	"metadata":        member(func(ed *edit) error { ed.endpoint.MetadataJson = nil; return nil }, setMetadata),
	"paused":          member(func(ed *edit) error { ed.endpoint.Paused = false; return nil }, setPaused),
	"rateLimit":       member(clearRateLimit, setRateLimit),
	"concurrency":     member(clearConcurrency, setConcurrency),
	"timeoutMs":       member(clearTimeout, setTimeout),
	"retryScheduleMs": member(func(ed *edit) error { ed.endpoint.RetrySchedule = nil; return nil }, setRetrySchedule),
	"ordering":        member(func(ed *edit) error { ed.endpoint.Ordering = nil; return nil }, setOrdering),
	"signatures":      member(clearSignatures, setSignatures),
	"secret":          member(func(*edit) error { return nil }, setSecret),
}

// member makes the setter of one member: clear for null, set for a value of type T.
func member[T any](clear func(*edit) error, set func(*edit, T) error) func(*edit, json.RawMessage) error {
	return func(ed *edit, raw json.RawMessage) error {
		if isNull(raw) {
			return clear(ed)
		}
		var value T
		if err := json.Unmarshal(raw, &value); err != nil {
			return fmt.Errorf("must be %s", kindOf(value))
		}
		return set(ed, value)
	}
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	case []string:
		return "an array of strings"
	case []int64:
		return "an array of integers"
	case map[string]*string, map[string]json.RawMessage:
		return "an object"
	default:
		return "an integer"
	}
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(raw), []byte("null")) }

func required(*edit) error { return errors.New("is required") }

func setURL(ed *edit, url string) error {
	if ed.rules.guard != nil {
		if err := ed.rules.guard.CheckURL(url); err != nil {
			return &memberError{code: codeURL, detail: err.Error()}
		}
	}
	ed.endpoint.Url = url
	return nil
}

func setUID(ed *edit, uid string) error {
	if err := checkText(uid, 1, maxUID); err != nil {
		return err
	}
	ed.endpoint.Uid = &uid
	return nil
}

func setDescription(ed *edit, text string) error {
	if utf8.RuneCountInString(text) > maxDescription {
		return fmt.Errorf("must have at most %d characters", maxDescription)
	}
	ed.endpoint.Description = &text
	return nil
}

func setEnabled(ed *edit, enabled bool) error { ed.endpoint.Enabled = enabled; return nil }

func setPaused(ed *edit, paused bool) error { ed.endpoint.Paused = paused; return nil }

// eventPattern is the name charset of event types with `*`, for any characters, as its last one.
var eventPattern = regexp.MustCompile(`^([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)?\*?$`)

func setEventTypes(ed *edit, patterns []string) error {
	if len(patterns) == 0 {
		return fmt.Errorf("must have 1 to %d patterns", maxPatterns)
	}
	ed.endpoint.EventTypes = patterns
	return checkPatterns(patterns)
}

func checkPatterns(patterns []string) error {
	if len(patterns) > maxPatterns {
		return fmt.Errorf("must have at most %d patterns", maxPatterns)
	}
	for i, p := range patterns {
		if p == "" || len(p) > maxName || !eventPattern.MatchString(p) || strings.HasSuffix(p, ".") {
			return &memberError{pointer: fmt.Sprintf("/%d", i), detail: `must be an event type, or the beginning of one with "*" as last character`}
		}
	}
	return nil
}

func setLoopIDs(ed *edit, ids []string) error {
	if len(ids) > maxPatterns {
		return fmt.Errorf("must have at most %d entries", maxPatterns)
	}
	for i, loopID := range ids {
		if err := checkText(loopID, 1, maxName); err != nil {
			return &memberError{pointer: fmt.Sprintf("/%d", i), detail: err.Error()}
		}
	}
	ed.endpoint.LoopIds = ids
	return nil
}

func setFilter(ed *edit, filter string) error {
	if ed.rules.filters != nil {
		if _, err := ed.rules.filters.Compile(filter); err != nil {
			return err
		}
	}
	ed.endpoint.Filter = &filter
	return nil
}

// setMetadata keeps a new endpoint's metadata as it was written, but for whitespace; a patch is merged into it.
func setMetadata(ed *edit, value map[string]json.RawMessage) error {
	merged, err := mergeMetadata(ed, value)
	if err != nil {
		return err
	}
	if len(merged) > maxMetadata {
		return fmt.Errorf("must have at most %d bytes", maxMetadata)
	}
	ed.endpoint.MetadataJson = merged
	return nil
}

func mergeMetadata(ed *edit, value map[string]json.RawMessage) ([]byte, error) {
	patch, err := json.Marshal(value)
	if err != nil || ed.creating {
		return patch, err
	}
	current := ed.endpoint.MetadataJson
	if len(current) == 0 {
		current = []byte(`{}`)
	}
	return mergeJSON(current, patch)
}

func clearRateLimit(ed *edit) error {
	ed.endpoint.RateLimit = ed.rules.defaultRateLimit()
	return nil
}

func setRateLimit(ed *edit, limit float64) error {
	if !(limit > 0 && limit <= maxRateLimit) {
		return fmt.Errorf("must be above 0 and at most %d requests a second", maxRateLimit)
	}
	ed.endpoint.RateLimit = &limit
	return nil
}

func clearConcurrency(ed *edit) error {
	ed.endpoint.Concurrency = ed.rules.defaults.Concurrency
	return nil
}

func setConcurrency(ed *edit, n int64) error {
	if n < 1 || n > maxConcurrency {
		return fmt.Errorf("must be 1 to %d", maxConcurrency)
	}
	ed.endpoint.Concurrency = uint32(n)
	return nil
}

func clearTimeout(ed *edit) error {
	ed.endpoint.TimeoutMs = ed.rules.defaults.TimeoutMS
	return nil
}

func setTimeout(ed *edit, ms int64) error {
	if ms < minTimeoutMS || ms > maxTimeoutMS {
		return fmt.Errorf("must be %d to %d milliseconds", minTimeoutMS, maxTimeoutMS)
	}
	ed.endpoint.TimeoutMs = uint32(ms)
	return nil
}

// setRetrySchedule takes an empty list too: one attempt, no retries.
func setRetrySchedule(ed *edit, delays []int64) error {
	if len(delays) > maxRetries {
		return fmt.Errorf("must have at most %d delays", maxRetries)
	}
	schedule := &webhooksv1.RetrySchedule{}
	for i, ms := range delays {
		if ms < 1 || ms > maxRetryDelayMS {
			return &memberError{pointer: fmt.Sprintf("/%d", i), detail: fmt.Sprintf("must be 1 to %d milliseconds", maxRetryDelayMS)}
		}
		schedule.DelaysMs = append(schedule.DelaysMs, uint64(ms))
	}
	ed.endpoint.RetrySchedule = schedule
	return nil
}

func setOrdering(ed *edit, ordering string) error {
	if ordering != schemas.OrderingOrganization {
		if len(ordering) > maxPointer {
			return fmt.Errorf("must have at most %d bytes", maxPointer)
		}
		if _, err := jsonscan.Parse(ordering); ordering == "" || err != nil {
			return errors.New(`must be null, "organization" or a JSON Pointer into the event`)
		}
	}
	ed.endpoint.Ordering = &ordering
	return nil
}

func clearSignatures(ed *edit) error {
	ed.endpoint.Signatures = []string{SignatureV1}
	return nil
}

func setSignatures(ed *edit, schemes []string) error {
	sorted := slices.Sorted(slices.Values(schemes))
	valid := slices.Equal(sorted, []string{SignatureV1}) || slices.Equal(sorted, []string{SignatureV1a}) ||
		slices.Equal(sorted, []string{SignatureV1, SignatureV1a})
	if !valid {
		return errors.New(`must be ["v1"], ["v1a"] or both`)
	}
	ed.endpoint.Signatures = schemes
	return nil
}

// setSecret takes the merchant's own secret as Standard Webhooks writes it: whsec_ and base64 of 24 to 64 bytes.
func setSecret(ed *edit, secret string) error {
	if !ed.creating {
		return errors.New("can only be given when the endpoint is created; rotate-secret replaces it")
	}
	if _, err := signing.ParseSecret(secret); err != nil {
		return fmt.Errorf("must be %s followed by the base64 of %d to %d bytes",
			signing.SecretPrefix, signing.MinSecretBytes, signing.MaxSecretBytes)
	}
	ed.secret = secret
	return nil
}

func checkText(s string, low, high int) error {
	n := utf8.RuneCountInString(s)
	if n < low || n > high || strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return fmt.Errorf("must have %d to %d characters, no control characters", low, high)
	}
	return nil
}

var readOnlyMembers = []string{
	"id", "organizationId", "publicKey", "disabledReason", "disabledAt", "version", "createdAt", "updatedAt",
}

func isReadOnly(name string) bool { return slices.Contains(readOnlyMembers, name) }

// readOnlyOf has the read-only members as the endpoint is answered.
func readOnlyOf(e *webhooksv1.Endpoint) map[string]any {
	encoded, err := json.Marshal(EndpointView(e))
	if err != nil {
		return map[string]any{}
	}
	var members map[string]any
	if json.Unmarshal(encoded, &members) != nil {
		return map[string]any{}
	}
	return members
}

// compare lets a client send back what it read: a read-only member may be repeated as it is. A new endpoint has none
// but its organization.
func (ed *edit) compare(name string, raw json.RawMessage) error {
	if ed.readOnly == nil {
		return nil
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil || !reflect.DeepEqual(value, ed.readOnly[name]) {
		return errors.New("is read-only")
	}
	return nil
}
