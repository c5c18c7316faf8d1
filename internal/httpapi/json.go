package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"
)

// WriteJSON answers with v as JSON. A v that does not encode is a mistake in the program: it panics, which the router
// answers as 500.
func WriteJSON(ctx *fasthttp.RequestCtx, status int, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("BUG: an answer of type %T does not encode: %v", v, err))
	}
	WriteRaw(ctx, status, body.Bytes())
}

// WriteRaw answers with what is JSON already. The bytes are kept.
func WriteRaw(ctx *fasthttp.RequestCtx, status int, body []byte) {
	ctx.Response.SetStatusCode(status)
	ctx.Response.Header.SetContentType("application/json")
	ctx.Response.SetBodyRaw(body)
}

// SetETag sets the strong validator of a versioned object.
func SetETag(ctx *fasthttp.RequestCtx, version uint64) {
	ctx.Response.Header.Set(fasthttp.HeaderETag, etag(version))
}

func etag(version uint64) string { return `"` + strconv.FormatUint(version, 10) + `"` }

// JSONBody is the request's body, once its headers say that it is plain JSON: 415 otherwise. The bytes are valid until
// the handler returns.
func JSONBody(ctx *fasthttp.RequestCtx) ([]byte, error) {
	if len(ctx.Request.Header.ContentEncoding()) > 0 {
		return nil, NewProblem(http.StatusUnsupportedMediaType, "encoding_unsupported",
			"Send the body without Content-Encoding.")
	}
	kind, _, err := mime.ParseMediaType(string(ctx.Request.Header.ContentType()))
	if err != nil || kind != "application/json" && kind != "application/merge-patch+json" {
		return nil, NewProblem(http.StatusUnsupportedMediaType, "content_type_unsupported",
			"Send the body as application/json.")
	}
	return ctx.Request.Body(), nil
}

// DecodeStrict reads a request body into v, a pointer to a struct. Names are matched exactly and a name given twice
// takes its last value. A body that is not JSON in UTF-8 is a 400 problem; an unknown member, or a value that does not
// fit its member, is a 422 problem with the member's pointer.
func DecodeStrict(body []byte, v any) error {
	err := jsonv2.Unmarshal(body, v, jsonv2.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(true))
	if err == nil {
		return nil
	}
	semantic, ok := errors.AsType[*jsonv2.SemanticError](err)
	if !ok {
		return NewProblem(http.StatusBadRequest, "malformed_body", "The body is not JSON in UTF-8.")
	}
	// The decoder stops at what it dislikes first: the rest may still be no JSON at all.
	if !jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)) {
		return NewProblem(http.StatusBadRequest, "malformed_body", "The body is not JSON in UTF-8.")
	}
	return Invalid(FieldError{Pointer: string(semantic.JSONPointer), Detail: misfit(semantic)})
}

func misfit(err *jsonv2.SemanticError) string {
	switch {
	case errors.Is(err, jsonv2.ErrUnknownName):
		return "is not a known member"
	case err.Err != nil && err.JSONKind == 0:
		return err.Err.Error()
	default:
		return fmt.Sprintf("must not be %s of this form", kindName(err.JSONKind))
	}
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "an array"
	default:
		return "a value"
	}
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// FormatTime writes a time as every body has it: RFC 3339, UTC, milliseconds.
func FormatTime(t time.Time) string { return t.UTC().Format(timeLayout) }

// Time is FormatTime of milliseconds since the epoch, nil for 0, which means none.
func Time(unixMS int64) *string {
	if unixMS == 0 {
		return nil
	}
	s := FormatTime(time.UnixMilli(unixMS))
	return &s
}
