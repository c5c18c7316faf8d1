// Package seal encrypts what must not stand in clear text on a topic or in a table: endpoint secrets, private keys,
// request headers, access tokens. It is AES-256-GCM with a random nonce.
//
// What is sealed is bound to its place: the context, such as "endpoint/ep_…/secret", is authenticated with it, so that
// sealed bytes that were moved to another endpoint do not open. A keyring holds several keys while they are rotated:
// the first seals, all open.
//
// The form is: one version byte (1), 4 bytes that name the key (the first of its SHA-256), a 12-byte nonce, the
// ciphertext with its 16-byte tag. With random nonces a key is good for 2^32 seals (NIST SP 800-38D §8.3), far more
// than there are secrets.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	version     = 1
	keyBytes    = 32
	keyIDBytes  = 4
	nonceBytes  = 12
	headerBytes = 1 + keyIDBytes + nonceBytes
)

var (
	// ErrUnknownKey says that the bytes were sealed with a key that is not on the ring: SECRETS_KEY lost one.
	ErrUnknownKey = errors.New("sealed with a key that is not in SECRETS_KEY")
	// ErrCorrupt says that the bytes are not what Seal made for this context.
	ErrCorrupt = errors.New("sealed bytes do not open: changed, cut short or moved from elsewhere")
)

// Keyring seals with its first key and opens with all. It is safe for use from many goroutines.
type Keyring struct {
	keys []key
}

type key struct {
	id   [keyIDBytes]byte
	aead cipher.AEAD
}

// NewKeyring reads keys as SECRETS_KEY writes them: base64 of 32 bytes each, standard alphabet, separated by commas. A
// key's place is named in errors, its value never.
func NewKeyring(keys string) (*Keyring, error) {
	ring := &Keyring{}
	for i, text := range strings.Split(keys, ",") {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil || len(raw) != keyBytes {
			return nil, fmt.Errorf("secrets key %d is not base64 of %d bytes; make one with: openssl rand -base64 %d",
				i+1, keyBytes, keyBytes)
		}
		k, err := newKey(raw)
		if err != nil {
			return nil, fmt.Errorf("secrets key %d: %w", i+1, err)
		}
		ring.keys = append(ring.keys, k)
	}
	return ring, nil
}

func newKey(raw []byte) (key, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(raw)
	return key{id: [keyIDBytes]byte(sum[:keyIDBytes]), aead: aead}, nil
}

// Seal encrypts plain for its context. Two seals of one text differ.
func (r *Keyring) Seal(plain []byte, context string) ([]byte, error) {
	k := r.keys[0]
	sealed := make([]byte, headerBytes, headerBytes+len(plain)+k.aead.Overhead())
	sealed[0] = version
	copy(sealed[1:], k.id[:])
	nonce := sealed[1+keyIDBytes : headerBytes]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal %s: %w", context, err)
	}
	return k.aead.Seal(sealed, nonce, plain, []byte(context)), nil
}

// Open decrypts what Seal made for the same context. Its errors wrap ErrUnknownKey or ErrCorrupt.
func (r *Keyring) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) < headerBytes || sealed[0] != version {
		return nil, fmt.Errorf("open %s: %w", context, ErrCorrupt)
	}
	keyID := [keyIDBytes]byte(sealed[1 : 1+keyIDBytes])
	known := false
	// Key ids are short: two keys on a ring may share one, so each that fits is tried.
	for _, k := range r.keys {
		if k.id != keyID {
			continue
		}
		known = true
		plain, err := k.aead.Open(nil, sealed[1+keyIDBytes:headerBytes], sealed[headerBytes:], []byte(context))
		if err == nil {
			return plain, nil
		}
	}
	if !known {
		return nil, fmt.Errorf("open %s: %w", context, ErrUnknownKey)
	}
	return nil, fmt.Errorf("open %s: %w", context, ErrCorrupt)
}

// NewKey returns a fresh random key in the form NewKeyring reads.
func NewKey() string {
	raw := make([]byte, keyBytes)
	// crypto/rand.Read never fails: it ends the process when the system has no randomness.
	_, _ = rand.Read(raw)
	return base64.StdEncoding.EncodeToString(raw)
}
