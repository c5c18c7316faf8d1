package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// Bounds of `limit`.
const (
	MaxLimit     = 250
	DefaultLimit = 50
)

// ListParams is what a list request asks for.
type ListParams struct {
	// Limit is the number of objects on a page, 1 to MaxLimit.
	Limit int
	// Cursor is the position that NextCursor was given for the previous page; nil for the first.
	Cursor []byte
	// Since is inclusive, Until exclusive; the zero time is no bound.
	Since, Until time.Time
	// Filters are the values of each parameter that was given; several are alternatives.
	Filters map[string][]string

	binding [bindingBytes]byte
}

// Page is the body of a list.
type Page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"nextCursor"`
}

// NewPage makes a page; no data is an empty array, never null.
func NewPage[T any](data []T, next *string) Page[T] {
	if data == nil {
		data = []T{}
	}
	return Page[T]{Data: data, NextCursor: next}
}

const (
	cursorVersion = 1
	bindingBytes  = 8
)

// ParseList reads the query of a list. limit and cursor are always taken; of the rest only the allowed names, "since"
// and "until" among them where the list has them. An unknown name, an empty value, a bad bound or a cursor of another
// list or other filters is a 400 problem.
func ParseList(ctx *fasthttp.RequestCtx, allowed []string) (ListParams, error) {
	p := ListParams{Limit: DefaultLimit, Filters: map[string][]string{}}
	var cursor string
	seen := map[string]bool{}
	for rawName, rawValue := range ctx.QueryArgs().All() {
		name, value := string(rawName), string(rawValue)
		var err error
		switch name {
		case "limit":
			p.Limit, err = parseLimit(value)
		case "cursor":
			cursor = value
		case "since", "until":
			if !slices.Contains(allowed, name) {
				return p, parameterProblem(name, "is not a parameter of this list")
			}
			p.Since, p.Until, err = parseBound(name, value, p)
		default:
			err = p.addFilter(name, value, allowed)
		}
		if err != nil {
			return p, err
		}
		if seen[name] && p.Filters[name] == nil {
			return p, parameterProblem(name, "is given twice")
		}
		seen[name] = true
	}
	p.binding = bind(string(ctx.Path()), p)
	if seen["cursor"] {
		position, err := openCursor(cursor, p.binding)
		if err != nil {
			return p, err
		}
		p.Cursor = position
	}
	return p, nil
}

// NextCursor is the cursor of the page after the one whose last object stands at position; nil when position is nil,
// which says that there is no further page.
func NextCursor(p ListParams, position []byte) *string {
	if position == nil {
		return nil
	}
	raw := make([]byte, 0, 1+bindingBytes+len(position))
	raw = append(raw, cursorVersion)
	raw = append(raw, p.binding[:]...)
	raw = append(raw, position...)
	s := base64.RawURLEncoding.EncodeToString(raw)
	return &s
}

func (p *ListParams) addFilter(name, value string, allowed []string) error {
	if !slices.Contains(allowed, name) {
		return parameterProblem(name, "is not a parameter of this list")
	}
	if value == "" {
		return parameterProblem(name, "is empty")
	}
	p.Filters[name] = append(p.Filters[name], value)
	return nil
}

func parseLimit(value string) (int, error) {
	// ParseUint takes digits only; Atoi would take a sign too.
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n < 1 || n > MaxLimit {
		return 0, parameterProblem("limit", "must be a number from 1 to "+strconv.Itoa(MaxLimit))
	}
	return int(n), nil
}

func parseBound(name, value string, p ListParams) (since, until time.Time, err error) {
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return since, until, parameterProblem(name, "must be a time like 2026-01-31T12:00:00.000Z (RFC 3339)")
	}
	if name == "since" {
		return t.UTC(), p.Until, nil
	}
	return p.Since, t.UTC(), nil
}

// bind hashes what a cursor belongs to: the path, the bounds and the filters in any order. The limit may change between pages.
func bind(path string, p ListParams) [bindingBytes]byte {
	var input []byte
	add := func(s string) {
		input = binary.AppendUvarint(input, uint64(len(s)))
		input = append(input, s...)
	}
	add(path)
	add(p.Since.Format(time.RFC3339Nano))
	add(p.Until.Format(time.RFC3339Nano))
	names := make([]string, 0, len(p.Filters))
	for name := range p.Filters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		add(name)
		values := slices.Sorted(slices.Values(p.Filters[name]))
		add(strconv.Itoa(len(values)))
		for _, value := range values {
			add(value)
		}
	}
	sum := sha256.Sum256(input)
	return [bindingBytes]byte(sum[:bindingBytes])
}

func openCursor(s string, binding [bindingBytes]byte) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) < 1+bindingBytes || raw[0] != cursorVersion {
		return nil, parameterProblem("cursor", "is not a nextCursor of this API")
	}
	if [bindingBytes]byte(raw[1:1+bindingBytes]) != binding {
		return nil, parameterProblem("cursor", "belongs to another list or to other filters")
	}
	return raw[1+bindingBytes:], nil
}

func parameterProblem(name, detail string) *Problem {
	p := NewProblem(http.StatusBadRequest, "invalid_parameter", "The parameter %s %s.", name, detail)
	p.Errors = []FieldError{{Pointer: "?" + name, Detail: detail}}
	return p
}
