package jsonscan

import (
	"iter"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Kind is the type of a value.
type Kind uint8

// Kinds. The zero Kind is a value that the document does not have.
const (
	Absent Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// Value is a value of a scanned document.
type Value struct {
	// Raw is its text, without white space around it; a slice of the document.
	Raw  []byte
	Kind Kind
}

func valueOf(raw []byte) Value {
	kind := Number
	switch raw[0] {
	case '"':
		kind = String
	case '{':
		kind = Object
	case '[':
		kind = Array
	case 't', 'f':
		kind = Bool
	case 'n':
		kind = Null
	}
	return Value{raw, kind}
}

// Exists reports that there is a value, and that it is not null.
func (v Value) Exists() bool { return v.Kind > Null }

// String is the text of a string, unescaped, and "" for every other kind.
func (v Value) String() string {
	if v.Kind != String {
		return ""
	}
	raw := v.Raw[1 : len(v.Raw)-1]
	if !escaped(raw) {
		return string(raw)
	}
	return string(appendUnescaped(make([]byte, 0, len(raw)), raw))
}

// Append appends the text of a string, unescaped, and nothing for every other kind.
func (v Value) Append(dst []byte) []byte {
	if v.Kind != String {
		return dst
	}
	return appendUnescaped(dst, v.Raw[1:len(v.Raw)-1])
}

// Empty reports that the value is not a string or has no text.
func (v Value) Empty() bool { return v.Kind != String || len(v.Raw) == 2 }

// Int64 is a number written as an integer; ok is false for every other value, one out of range, and one written with a
// fraction or an exponent.
func (v Value) Int64() (n int64, ok bool) {
	if v.Kind != Number {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v.Raw), 10, 64)
	return n, err == nil
}

// Bool is the truth of a boolean; ok is false for every other value.
func (v Value) Bool() (truth, ok bool) { return v.Kind == Bool && v.Raw[0] == 't', v.Kind == Bool }

// Elements are the elements of an array, in order; none for every other kind.
func (v Value) Elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if v.Kind != Array {
			return
		}
		c := cursor{b: v.Raw}
		for i := c.space(1); v.Raw[i] != ']'; {
			after := c.skip(i, 0)
			if !yield(valueOf(v.Raw[i:after])) {
				return
			}
			if i = c.space(after); v.Raw[i] == ',' {
				i = c.space(i + 1)
			}
		}
	}
}

// Members are the members of an object in the order of the document; none for every other kind. A key that occurs
// twice is given twice, and the later one counts.
func (v Value) Members() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		if v.Kind != Object {
			return
		}
		c := cursor{b: v.Raw}
		for i := c.space(1); v.Raw[i] != '}'; {
			colon := c.text(i + 1)
			key := Value{v.Raw[i:colon], String}
			i = c.space(c.space(colon) + 1)
			after := c.skip(i, 0)
			if !yield(key.String(), valueOf(v.Raw[i:after])) {
				return
			}
			if i = c.space(after); v.Raw[i] == ',' {
				i = c.space(i + 1)
			}
		}
	}
}

func escaped(raw []byte) bool {
	for _, ch := range raw {
		if ch == '\\' {
			return true
		}
	}
	return false
}

// appendUnescaped appends the text of a string that was validated, given without its quotes.
func appendUnescaped(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			continue
		}
		i++
		switch ch := raw[i]; ch {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := codeUnit(raw[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(raw) > i+6 && raw[i+1] == '\\' && raw[i+2] == 'u' {
					low = codeUnit(raw[i+3:])
				}
				// A lone surrogate, which DecodeRune answers with U+FFFD, leaves what follows to be read on its own.
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, ch)
		}
	}
	return dst
}

// codeUnit reads four hexadecimal digits.
func codeUnit(digits []byte) (r rune) {
	for _, d := range digits[:4] {
		r = r<<4 | hexDigit(d)
	}
	return r
}
