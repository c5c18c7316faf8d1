package jsonscan

import (
	"encoding/binary"
	"math/bits"
)

// cursor walks one document. Its methods take the offset where they begin and return the offset after what they read,
// or -1 when it is refused; reason and at then say why and where.
type cursor struct {
	b      []byte
	out    []Value
	reason string
	at     int
}

func (c *cursor) refuse(at int, reason string) int {
	c.at, c.reason = at, reason
	return -1
}

func (c *cursor) err() error { return &SyntaxError{c.reason, c.at} }

const (
	end      = "the document ends too early"
	tooDeep  = "nested deeper than 64"
	noKey    = "a key is missing"
	noColon  = "a colon is missing"
	noValue  = "a value is missing"
	noComma  = "a comma or a closing bracket is missing"
	noEscape = "an unknown escape sequence"
	control  = "a control character in a string"
	noNumber = "a malformed number"
)

// value reads the value at i, which is the one that n describes, and captures what n asks for. depth is the number of
// containers around it.
func (c *cursor) value(n *node, i, depth int) int {
	for _, o := range n.below {
		c.out[o] = Value{}
	}
	start := i
	switch {
	case len(n.children) > 0 && i < len(c.b) && c.b[i] == '{':
		i = c.object(n, i, depth+1)
	case n.indexed && i < len(c.b) && c.b[i] == '[':
		i = c.array(n, i, depth+1)
	default:
		i = c.skip(i, depth)
	}
	if i < 0 {
		return -1
	}
	for _, o := range n.own {
		c.out[o] = valueOf(c.b[start:i])
	}
	return i
}

// object reads the object at i, some of whose members are asked for. depth counts the object itself, and cannot be too
// large: a path has fewer steps than MaxDepth.
func (c *cursor) object(n *node, i, depth int) int {
	b := c.b
	i = c.space(i + 1)
	if i < len(b) && b[i] == '}' {
		return i + 1
	}
	for {
		if i >= len(b) || b[i] != '"' {
			return c.refuse(i, noKey)
		}
		start := i
		if i = c.text(i + 1); i < 0 {
			return -1
		}
		next := n.member(b[start+1 : i-1])
		if i = c.space(i); i >= len(b) || b[i] != ':' {
			return c.refuse(i, noColon)
		}
		i = c.space(i + 1)
		if next != nil {
			i = c.value(next, i, depth)
		} else {
			i = c.skip(i, depth)
		}
		if i < 0 {
			return -1
		}
		if i = c.space(i); i < len(b) && b[i] == ',' {
			i = c.space(i + 1)
			continue
		}
		if i < len(b) && b[i] == '}' {
			return i + 1
		}
		return c.refuse(i, noComma)
	}
}

// array reads the array at i, some of whose elements are asked for.
func (c *cursor) array(n *node, i, depth int) int {
	b := c.b
	i = c.space(i + 1)
	if i < len(b) && b[i] == ']' {
		return i + 1
	}
	for index := 0; ; index++ {
		if next := n.element(index); next != nil {
			i = c.value(next, i, depth)
		} else {
			i = c.skip(i, depth)
		}
		if i < 0 {
			return -1
		}
		if i = c.space(i); i < len(b) && b[i] == ',' {
			i = c.space(i + 1)
			continue
		}
		if i < len(b) && b[i] == ']' {
			return i + 1
		}
		return c.refuse(i, noComma)
	}
}

// member is the step for a key, given as it stands between its quotes, or nil.
func (n *node) member(key []byte) *node {
	for i := range n.children {
		if string(key) == n.children[i].key {
			return n.children[i].node
		}
	}
	for _, ch := range key {
		if ch == '\\' {
			return n.escapedMember(key)
		}
	}
	return nil
}

func (n *node) escapedMember(key []byte) *node {
	var space [64]byte
	plain := string(appendUnescaped(space[:0], key))
	for i := range n.children {
		if plain == n.children[i].key {
			return n.children[i].node
		}
	}
	return nil
}

func (n *node) element(index int) *node {
	for i := range n.children {
		if n.children[i].index == index {
			return n.children[i].node
		}
	}
	return nil
}

// skip reads the value at i, of which nothing is asked for. What is open is kept as one bit a level, 1 for an object:
// MaxDepth levels fit a word.
func (c *cursor) skip(i, depth int) int {
	b, base := c.b, depth
	var objects uint64
	for {
		if i >= len(b) {
			return c.refuse(i, end)
		}
		switch ch := b[i]; ch {
		case '"':
			i = c.text(i + 1)
		case '{', '[':
			if depth++; depth > MaxDepth {
				return c.refuse(i, tooDeep)
			}
			objects <<= 1
			if ch == '{' {
				objects |= 1
			}
			if i = c.space(i + 1); i < len(b) && b[i] == ch+2 { // in ASCII the brackets of a pair are two apart
				i, depth, objects = i+1, depth-1, objects>>1
				break
			}
			if ch == '{' {
				if i = c.key(i); i < 0 {
					return -1
				}
			}
			continue
		default:
			i = c.scalar(i)
		}
		if i < 0 {
			return -1
		}
		for {
			if depth == base {
				return i
			}
			if i = c.space(i); i >= len(b) {
				return c.refuse(i, end)
			}
			if b[i] == ',' {
				break
			}
			if b[i] != ']'+byte(objects&1)<<5 {
				return c.refuse(i, noComma)
			}
			i, depth, objects = i+1, depth-1, objects>>1
		}
		if i = c.space(i + 1); objects&1 == 1 {
			if i = c.key(i); i < 0 {
				return -1
			}
		}
	}
}

// key reads a member's key and colon, of which nothing is asked for, up to its value.
func (c *cursor) key(i int) int {
	if i >= len(c.b) || c.b[i] != '"' {
		return c.refuse(i, noKey)
	}
	if i = c.text(i + 1); i < 0 {
		return -1
	}
	if i = c.space(i); i >= len(c.b) || c.b[i] != ':' {
		return c.refuse(i, noColon)
	}
	return c.space(i + 1)
}

// scalar reads a literal or a number.
func (c *cursor) scalar(i int) int {
	switch c.b[i] {
	case 't':
		return c.word(i, "true")
	case 'f':
		return c.word(i, "false")
	case 'n':
		return c.word(i, "null")
	}
	return c.number(i)
}

func (c *cursor) word(i int, want string) int {
	if len(c.b)-i < len(want) || string(c.b[i:i+len(want)]) != want {
		return c.refuse(i, noValue)
	}
	return i + len(want)
}

// number reads -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?, the grammar of RFC 8259 section 6.
func (c *cursor) number(i int) int {
	b, start := c.b, i
	if i < len(b) && b[i] == '-' {
		i++
	}
	digits := i
	i = c.digits(i)
	if i == digits {
		if start == digits {
			return c.refuse(start, noValue)
		}
		return c.refuse(i, noNumber)
	}
	if b[digits] == '0' && i > digits+1 {
		return c.refuse(digits, noNumber)
	}
	if i < len(b) && b[i] == '.' {
		fraction := i + 1
		if i = c.digits(fraction); i == fraction {
			return c.refuse(i, noNumber)
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		exponent := i
		if i = c.digits(exponent); i == exponent {
			return c.refuse(i, noNumber)
		}
	}
	return i
}

func (c *cursor) digits(i int) int {
	for i < len(c.b) && c.b[i]-'0' <= 9 {
		i++
	}
	return i
}

// space passes white space. Most often there is none, or one run of indentation.
func (c *cursor) space(i int) int {
	if i < len(c.b) && c.b[i] > ' ' {
		return i
	}
	return c.spaces(i)
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

func (c *cursor) spaces(i int) int {
	b := c.b
	for i < len(b) {
		switch b[i] {
		case ' ', '\n', '\r', '\t':
			i++
		default:
			return i
		}
		for i+8 <= len(b) {
			other := binary.LittleEndian.Uint64(b[i:]) ^ ones*' '
			if other != 0 {
				i += bits.TrailingZeros64(other) / 8
				break
			}
			i += 8
		}
	}
	return i
}

// text reads a string from the byte after its opening quote to the one after its closing quote, eight bytes at a time.
// That the bytes are UTF-8 is not its business.
func (c *cursor) text(i int) int {
	b := c.b
	for {
		if i+8 <= len(b) {
			w := binary.LittleEndian.Uint64(b[i:])
			quote, escape := w^ones*'"', w^ones*'\\'
			// The lowest high bit that is set marks the first control character, quote or backslash; above it a borrow
			// may set wrong ones.
			stop := ((w-ones*' ')&^w | (quote-ones)&^quote | (escape-ones)&^escape) & highs
			if stop == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(stop) / 8
		}
		if i >= len(b) {
			return c.refuse(i, end)
		}
		switch ch := b[i]; {
		case ch == '"':
			return i + 1
		case ch == '\\':
			if i = c.escape(i + 1); i < 0 {
				return -1
			}
		case ch < ' ':
			return c.refuse(i, control)
		default:
			i++
		}
	}
}

// escape reads what follows a backslash.
func (c *cursor) escape(i int) int {
	b := c.b
	if i >= len(b) {
		return c.refuse(i, end)
	}
	switch b[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 1
	case 'u':
		for k := i + 1; k < i+5; k++ {
			if k >= len(b) {
				return c.refuse(k, end)
			}
			if hexDigit(b[k]) < 0 {
				return c.refuse(k, noEscape)
			}
		}
		return i + 5
	}
	return c.refuse(i, noEscape)
}

// hexDigit is the worth of a hexadecimal digit, -1 for another byte.
func hexDigit(b byte) rune {
	switch {
	case b-'0' <= 9:
		return rune(b - '0')
	case b|0x20-'a' <= 5:
		return rune(b|0x20-'a') + 10
	}
	return -1
}
