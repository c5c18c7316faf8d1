// Package jsonscan validates a JSON document and picks values out of it in one pass, without allocating. (That the bytes
// are UTF-8 is seen in a second one, which takes about a tenth of the time.)
//
// It exists because every body that the system takes must be checked whole before it is accepted, while only a few of
// its fields are needed: decoding everything into Go values would cost the edge more than the rest of its work.
//
// A document is accepted exactly when it is one JSON object (RFC 8259) in valid UTF-8, nested at most MaxDepth deep,
// with nothing but white space after it. An escaped lone surrogate is accepted and read as U+FFFD, as encoding/json does.
// Where a key occurs twice in one object the last one counts, at every level: a repeated parent discards what was
// captured under the earlier one, also when the new one has no such member. Keys are compared exactly, after
// unescaping.
//
// Captured values are slices of the document: they hold as long as it is not changed.
package jsonscan

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep objects and arrays may be nested; the outermost object counts as 1.
const MaxDepth = 64

// SyntaxError says where and why a document was refused.
type SyntaxError struct {
	Reason string
	// Offset is the number of bytes before the one that was refused.
	Offset int
}

func (e *SyntaxError) Error() string {
	return "JSON: " + e.Reason + " at byte " + strconv.Itoa(e.Offset)
}

// Scanner captures the values at a fixed set of paths. It is immutable and may be used by many goroutines at once.
type Scanner struct {
	root  node
	paths int
}

// node is one step of the paths: what to capture there and where to go on.
type node struct {
	// own are the outputs that take this value; below are all outputs of this value and of what it contains.
	own, below []int
	children   []child
	// indexed: a child's token is an array index.
	indexed bool
}

type child struct {
	key string
	// index is the token read as an array index, -1 where it is none.
	index int
	node  *node
}

// Compile prepares a Scanner for JSON Pointers (RFC 6901) that are known when the program is written; it panics on one
// that is malformed. Parse is for pointers that come from outside.
func Compile(paths ...string) *Scanner {
	s, err := Parse(paths...)
	if err != nil {
		panic(err)
	}
	return s
}

// Parse prepares a Scanner for JSON Pointers (RFC 6901). A token that is a number selects an array's element as well as
// an object's member; "" selects the whole document.
func Parse(paths ...string) (*Scanner, error) {
	s := &Scanner{paths: len(paths)}
	for i, path := range paths {
		tokens, err := tokensOf(path)
		if err != nil {
			return nil, fmt.Errorf("JSON Pointer %q: %w", path, err)
		}
		n := &s.root
		n.below = append(n.below, i)
		for _, token := range tokens {
			n = n.child(token)
			n.below = append(n.below, i)
		}
		n.own = append(n.own, i)
	}
	return s, nil
}

// tokensOf splits and unescapes a JSON Pointer.
func tokensOf(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' {
		return nil, errors.New("must be empty or begin with /")
	}
	tokens := strings.Split(path[1:], "/")
	for i, token := range tokens {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(token), "~") {
			return nil, errors.New("~ must be followed by 0 or 1")
		}
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
	}
	if len(tokens) >= MaxDepth {
		return nil, fmt.Errorf("has more than %d steps", MaxDepth-1)
	}
	return tokens, nil
}

// child finds or adds the next step.
func (n *node) child(token string) *node {
	if at := slices.IndexFunc(n.children, func(c child) bool { return c.key == token }); at >= 0 {
		return n.children[at].node
	}
	index, err := strconv.Atoi(token)
	if err != nil || strconv.Itoa(index) != token || index < 0 {
		index = -1
	}
	n.indexed = n.indexed || index >= 0
	next := &node{}
	n.children = append(n.children, child{token, index, next})
	return next
}

// Paths is the number of paths, and so the length of Scan's out.
func (s *Scanner) Paths() int { return s.paths }

// Scan validates body and sets out[i] to the value at the i-th path, or to the zero Value (kind Absent) where there is
// none. The error is a *SyntaxError; out then holds nothing of use. out must have room for every path.
func (s *Scanner) Scan(body []byte, out []Value) error {
	out = out[:s.paths]
	clear(out)
	c := cursor{b: body, out: out}
	start := c.space(0)
	if start >= len(body) || body[start] != '{' {
		return &SyntaxError{"not an object", start}
	}
	if end := c.value(&s.root, start, 0); end < 0 {
		return c.err()
	} else if end = c.space(end); end < len(body) {
		return &SyntaxError{"something follows the object", end}
	}
	if !utf8.Valid(body) {
		return &SyntaxError{"not UTF-8", invalidAt(body)}
	}
	return nil
}

// Valid reports whether body would be accepted.
func Valid(body []byte) bool {
	return empty.Scan(body, nil) == nil
}

var empty = Scanner{}

// invalidAt is the offset of the first byte that is not UTF-8.
func invalidAt(body []byte) int {
	for i := 0; i < len(body); {
		r, size := utf8.DecodeRune(body[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(body)
}
