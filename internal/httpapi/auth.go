package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"
)

// Principal is who makes a request.
type Principal struct {
	// KeyID names the key in audit records: a key_… id, or "admin".
	KeyID string
	// Admin may do everything for every organization.
	Admin bool
	// Organization is the one that the key belongs to; empty for the admin.
	Organization string
	Scopes       map[string]bool
}

// Authenticator finds whose bearer key it is. It must take the same time for a wrong key as for a right one.
type Authenticator interface {
	Authenticate(bearer string) (Principal, bool)
}

// Can reports whether the principal holds the scope. The empty scope is everyone's.
func (p Principal) Can(scope string) bool {
	return p.Admin || scope == "" || p.Scopes[scope]
}

// Owns reports whether the principal may act for the organization.
func (p Principal) Owns(org string) bool {
	return p.Admin || p.Organization == org
}

type adminKey [sha256.Size]byte

// AdminKey accepts the one key that may do everything. Keys are compared by hash, so that neither length nor content
// shows in the time taken.
func AdminKey(key string) Authenticator {
	return adminKey(sha256.Sum256([]byte(key)))
}

// Authenticate implements Authenticator.
func (a adminKey) Authenticate(bearer string) (Principal, bool) {
	given := sha256.Sum256([]byte(bearer))
	if subtle.ConstantTimeCompare(a[:], given[:]) != 1 {
		return Principal{}, false
	}
	return Principal{KeyID: "admin", Admin: true}, true
}

// bearerToken reads an Authorization header (RFC 6750 §2.1); the scheme's case is ignored (RFC 9110 §11.1).
func bearerToken(header string) (string, bool) {
	scheme, token, ok := strings.Cut(header, " ")
	token = strings.Trim(token, " ")
	if !ok || token == "" || !strings.EqualFold(scheme, "bearer") {
		return "", false
	}
	return token, true
}
