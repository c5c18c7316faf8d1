// Package source is what the edge asks of every platform that sends to it: is this request really from there, and which
// event is it. One package each answers (stripe, …); the edge does the rest alike for all of them.
//
// A Source is pure: a function of header, body and time. It decides nothing about organizations and keeps nothing.
package source

import (
	"net/http"
	"time"

	"github.com/valyala/fasthttp"
)

// Source verifies and reads the webhooks of one platform. Its methods are called from many goroutines at once.
type Source interface {
	// Name is the last part of its path, its metric label and the ce_source of its records.
	Name() string
	// Verify checks that the platform signed body, and when.
	Verify(header *fasthttp.RequestHeader, body []byte, now time.Time) *Refusal
	// Read finds out what a verified body says. The Event may not refer to header or body.
	Read(header *fasthttp.RequestHeader, body []byte) (Event, *Refusal)
}

// Event is what the edge needs to know of a platform's event.
type Event struct {
	// ID and Type are the platform's own.
	ID, Type string
	// Account is the platform's account that it happened in, "" where the event names none.
	Account string
	// Organization is the one that the event itself names (Stripe: in the object's metadata), "" for none. It holds where
	// no connection of the account was made by API.
	Organization string
	// Occurred is when, by the platform's clock; zero where the event does not say.
	Occurred time.Time
	// Ignored, when set, says why the event is answered 200 and recorded, but takes no effect.
	Ignored string
}

// Reason is why a request was refused: the problem's code, the metric's label and the column in ClickHouse.
type Reason string

// Reasons of CONTRACT §2, and of requests that get no further than HTTP.
const (
	Unknown             Reason = "unknown_source"
	Method              Reason = "method_not_allowed"
	BodyTooLarge        Reason = "body_too_large"
	EncodingUnsupported Reason = "encoding_unsupported"
	SignatureMissing    Reason = "signature_missing"
	SignatureInvalid    Reason = "signature_invalid"
	OutOfTolerance      Reason = "timestamp_out_of_tolerance"
	Malformed           Reason = "malformed_body"
	// RequestTimeout is a body that did not arrive in time, or not whole.
	RequestTimeout Reason = "request_timeout"
	// HeadersTooLarge and Unreadable are requests of which no path is known.
	HeadersTooLarge Reason = "headers_too_large"
	Unreadable      Reason = "malformed_request"
	// Unavailable is a request that was in order and could not be made durable.
	Unavailable Reason = "unavailable"
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{Unknown, Method, BodyTooLarge, EncodingUnsupported, SignatureMissing, SignatureInvalid, OutOfTolerance,
		Malformed, RequestTimeout, HeadersTooLarge, Unreadable, Unavailable}
}

// Refusal says why a request is not taken.
type Refusal struct {
	Reason Reason
	// Detail tells the sender what to do about it. It holds nothing of the body.
	Detail string
}

// Status is the answer's status.
func (r Reason) Status() int {
	switch r {
	case Unknown:
		return http.StatusNotFound
	case Method:
		return http.StatusMethodNotAllowed
	case BodyTooLarge:
		return http.StatusRequestEntityTooLarge
	case EncodingUnsupported:
		return http.StatusUnsupportedMediaType
	case RequestTimeout:
		return http.StatusRequestTimeout
	case HeadersTooLarge:
		return http.StatusRequestHeaderFieldsTooLarge
	case Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}
