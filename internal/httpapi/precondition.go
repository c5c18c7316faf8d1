package httpapi

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"
)

// Precondition is what a request asks of the version of the resource that it changes (If-Match).
type Precondition struct {
	// Any is "*": a resource of any version.
	Any bool
	// Versions are those of the tags that can be ours. Without one, and without Any, nothing matches.
	Versions []uint64
}

// ReadIfMatch reads If-Match (RFC 9110 §13.1.1): "*", or entity tags, in one header or several. It is nil where the
// request has none. Tags are compared strongly, so a weak one matches nothing, like one that SetETag never made. What is
// no list of tags is a 400 problem: taken for no condition, it would let the request overwrite what it meant to spare.
func ReadIfMatch(ctx *fasthttp.RequestCtx) (*Precondition, *Problem) {
	lines := ctx.Request.Header.PeekAll(fasthttp.HeaderIfMatch)
	if len(lines) == 0 {
		return nil, nil
	}
	field := strings.Trim(string(bytes.Join(lines, []byte(","))), " \t")
	if field == "*" {
		return &Precondition{Any: true}, nil
	}
	p, tags := &Precondition{}, 0
	const empty = " \t," // empty members of a list are allowed (§5.6.1)
	for rest := strings.TrimLeft(field, empty); rest != ""; rest = strings.TrimLeft(rest, empty) {
		tag, after, ok := cutTag(rest)
		if !ok {
			return nil, malformedIfMatch()
		}
		tags++
		if version, ours := versionOf(tag); ours && !slices.Contains(p.Versions, version) {
			p.Versions = append(p.Versions, version)
		}
		if rest = strings.TrimLeft(after, " \t"); rest != "" && rest[0] != ',' {
			return nil, malformedIfMatch()
		}
	}
	if tags == 0 {
		return nil, malformedIfMatch()
	}
	return p, nil
}

func malformedIfMatch() *Problem {
	return NewProblem(http.StatusBadRequest, "malformed_if_match",
		`If-Match must be "*" or a list of ETags as they were answered, each in quotes.`)
}

// cutTag takes the entity tag at the beginning of s, with its quotes and its W/.
func cutTag(s string) (tag, after string, ok bool) {
	start := 0
	if strings.HasPrefix(s, "W/") {
		start = 2
	}
	if len(s) == start || s[start] != '"' {
		return "", "", false
	}
	for i := start + 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return s[:i+1], s[i+1:], true
		case c <= ' ' || c == 0x7f:
			return "", "", false
		}
	}
	return "", "", false
}

// versionOf is the version whose ETag the tag is.
func versionOf(tag string) (version uint64, ok bool) {
	version, err := strconv.ParseUint(strings.Trim(tag, `"`), 10, 64)
	return version, err == nil && tag == etag(version)
}

// HasVersion reports that the client has a version already: If-None-Match names it, compared weakly (RFC 9110 §13.1.2).
func HasVersion(ctx *fasthttp.RequestCtx, version uint64) bool {
	want := etag(version)
	for tag := range strings.SplitSeq(string(ctx.Request.Header.Peek(fasthttp.HeaderIfNoneMatch)), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == want {
			return true
		}
	}
	return false
}
