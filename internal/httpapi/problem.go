// Package httpapi is what every HTTP API of ours has in common, on fasthttp: routing with the key and the organization
// checked, problems (RFC 9457), lists with filters and cursors, strict decoding, times.
//
// A request passes Router: path, method, bearer key, organization, scope, in this order; then a Handler, which writes
// an answer or returns an error. A *Problem is answered as it is; any other error is logged here, once, and answered as
// 500 without its text. Every answer carries x-request-id. The package knows nothing of what the API is about.
package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/id"
)

// Problem is an error answer (RFC 9457). As an error it may be wrapped; the outermost answer is the Problem alone.
type Problem struct {
	Status int
	// Code is the stable name of what is wrong, in snake_case; the problem's type is "/problems/" + Code.
	Code string
	// Title is the short name for people; empty takes that of the status.
	Title string
	// Detail says what to do about this occurrence. It must hold no secret and nothing from inside.
	Detail string
	Errors []FieldError
	// RetryAfter is sent as Retry-After in whole seconds, rounded up, when it is above 0.
	RetryAfter time.Duration
}

// FieldError says what is wrong with one member of the request.
type FieldError struct {
	// Pointer is the member's JSON Pointer (RFC 6901); for a parameter of the query "?" and its name.
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// NewProblem makes a Problem whose detail is formatted as by fmt.Sprintf.
func NewProblem(status int, code, format string, args ...any) *Problem {
	return &Problem{Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// NotFound is the 404 of a path or id that names nothing the caller may see.
func NotFound() *Problem {
	return NewProblem(http.StatusNotFound, "not_found", "Nothing is here under this path.")
}

// Unavailable is a 503 that says when to come again.
func Unavailable(code, format string, args ...any) *Problem {
	p := NewProblem(http.StatusServiceUnavailable, code, format, args...)
	p.RetryAfter = time.Second
	return p
}

// Invalid is the 422 of a well-formed request that breaks rules; it has at least one field error.
func Invalid(errors ...FieldError) *Problem {
	return &Problem{
		Status: http.StatusUnprocessableEntity, Code: "invalid_request",
		Detail: "The request is well-formed JSON but breaks the rules listed in errors.", Errors: errors,
	}
}

// Error implements error.
func (p *Problem) Error() string {
	return strconv.Itoa(p.Status) + " " + p.Code + ": " + p.Detail
}

type problemBody struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail"`
	Code      string       `json:"code"`
	RequestID string       `json:"requestId"`
	Errors    []FieldError `json:"errors"`
}

// WriteProblem answers the request with p, in place of whatever body was there before. Headers set before stay.
func WriteProblem(ctx *fasthttp.RequestCtx, p *Problem) {
	body := problemBody{
		Type: "/problems/" + p.Code, Title: p.Title, Status: p.Status, Detail: p.Detail, Code: p.Code,
		RequestID: RequestID(ctx), Errors: p.Errors,
	}
	if body.Title == "" {
		body.Title = http.StatusText(p.Status)
	}
	if body.Errors == nil {
		body.Errors = []FieldError{}
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		panic("BUG: a problem of strings and numbers does not encode: " + err.Error())
	}
	if p.RetryAfter > 0 {
		seconds := (p.RetryAfter + time.Second - 1) / time.Second
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, strconv.FormatInt(int64(seconds), 10))
	}
	ctx.Response.ResetBody()
	ctx.Response.SetStatusCode(p.Status)
	ctx.Response.Header.SetContentType("application/problem+json")
	ctx.Response.SetBodyRaw(encoded)
}

const requestIDHeader = "x-request-id"

type requestIDKey struct{}

// RequestID is the id of this request, made at the first call and set on the answer. An id that another process of ours
// gave the request is kept; any other text in the header is not.
func RequestID(ctx *fasthttp.RequestCtx) string {
	if s, ok := ctx.UserValue(requestIDKey{}).(string); ok {
		return s
	}
	s := string(ctx.Request.Header.Peek(requestIDHeader))
	if !id.Valid(id.Request, s) {
		s = id.New(id.Request)
	}
	ctx.SetUserValue(requestIDKey{}, s)
	ctx.Response.Header.Set(requestIDHeader, s)
	return s
}
