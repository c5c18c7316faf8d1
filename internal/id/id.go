// Package id makes and checks the ids of everything that Better Data itself names: events, endpoints, deliveries,
// attempts. An id is a TypeID (https://github.com/jetify-com/typeid): a prefix that says what it names, "_" and 26
// characters of Crockford's base32 in lower case, which encode 128 bits in the layout of a UUID.
//
// There are two kinds. New ids are UUIDv7: they sort by the time they were made. Derived ids are UUIDv8 (RFC 9562
// §5.8): a hash of what caused the thing, so that whoever computes it again, after a crash or on another machine,
// gets the same id. The package keeps no state.
package id

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/gofrs/uuid/v5"
	"go.jetify.com/typeid/v2/base32"
)

// Prefixes of ids.
const (
	Event      = "evt"
	Endpoint   = "ep"
	Delivery   = "dlv"
	Attempt    = "att"
	Connection = "con"
	Key        = "key"
	Replay     = "rpl"
	Request    = "req"
	Command    = "cmd"
	Audit      = "aud"
)

// suffixLength is the length of 128 bits in base32.
const suffixLength = 26

// New returns an id that was never given before and sorts after those of earlier milliseconds. It panics when the
// system has no randomness, since nothing sound can be done then.
func New(prefix string) string {
	return encode(prefix, [16]byte(uuid.Must(uuid.NewV7())))
}

// Derive returns the id that belongs to these parts: equal parts in equal order give equal ids, for ever. Each part is
// hashed with its length, so that ("ab", "c") and ("a", "bc") differ. The prefix is not part of the hash.
func Derive(prefix string, parts ...string) string {
	// Room for the parts of an event's id without an allocation; longer ones grow it.
	var room [256]byte
	input := room[:0]
	for _, part := range parts {
		input = binary.AppendUvarint(input, uint64(len(part)))
		input = append(input, part...)
	}
	sum := sha256.Sum256(input)
	var u uuid.UUID
	copy(u[:], sum[:])
	u.SetVersion(8)
	u.SetVariant(uuid.VariantRFC9562)
	return encode(prefix, [16]byte(u))
}

// Valid reports whether s is an id with that prefix. Upper case and the letters that base32 leaves out are refused: an
// id has exactly one spelling.
func Valid(prefix, s string) bool {
	suffix, ok := strings.CutPrefix(s, prefix)
	if !ok || len(suffix) != 1+suffixLength || suffix[0] != '_' {
		return false
	}
	suffix = suffix[1:]
	// 26 characters hold 130 bits: a first character above 7 would overflow the 128.
	return suffix[0] <= '7' && base32.ValidateString(suffix) == nil
}

// ValidOrg reports whether s can be an organization's id: 1 to 64 of A–Z a–z 0–9 _ -. Organizations are Better Data's;
// they have no prefix and need no creation here.
func ValidOrg(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func encode(prefix string, u [16]byte) string {
	var room [64]byte
	b := append(room[:0], prefix...)
	b = append(b, '_')
	return string(base32.AppendEncode(b, u))
}
