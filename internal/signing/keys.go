// Package signing signs what Better Data sends and verifies what it is sent, in two schemes:
//
//   - Standard Webhooks (https://www.standardwebhooks.com): headers webhook-id, webhook-timestamp and
//     webhook-signature, which holds "v1," and base64 of HMAC-SHA256, or "v1a," and base64 of an ed25519 signature, of
//     "id.timestamp.body"; several, separated by spaces, while keys are rotated.
//   - x-betterdata-signature: "t=<unix>,v1=<hex>" with HMAC-SHA256 of "t.body", in the manner of Stripe; several v1
//     while secrets are rotated.
//
// Their keys differ: a Standard Webhooks key is what the base64 after "whsec_" holds, whereas the other scheme takes the
// bytes of the whole text, prefix included. Comparison of signatures takes constant time. Nothing here reads a clock.
package signing

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Prefixes of keys as text.
const (
	SecretPrefix     = "whsec_"
	PrivateKeyPrefix = "whsk_"
	PublicKeyPrefix  = "whpk_"
)

// Bounds of a secret's bytes (Standard Webhooks specification, "Signature scheme").
const (
	MinSecretBytes = 24
	MaxSecretBytes = 64

	newSecretBytes = 32
)

// ErrKey says that a text is not a key. Errors never hold the text.
var ErrKey = errors.New("not a usable key")

// NewSecret makes a random secret, "whsec_" and base64 of 32 bytes.
func NewSecret() string {
	raw := make([]byte, newSecretBytes)
	// crypto/rand.Read never fails: it ends the process when the system has no randomness.
	_, _ = rand.Read(raw)
	return SecretPrefix + base64.StdEncoding.EncodeToString(raw)
}

// ParseSecret is the key of a secret text: base64 of 24 to 64 bytes after "whsec_".
func ParseSecret(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(s, SecretPrefix)
	if !ok {
		return nil, fmt.Errorf("%w: a secret starts with %s", ErrKey, SecretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(text)
	// The decoder skips line ends, but the other scheme's key is the text itself.
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, fmt.Errorf("%w: what follows %s is not base64", ErrKey, SecretPrefix)
	}
	if len(key) < MinSecretBytes || len(key) > MaxSecretBytes {
		return nil, fmt.Errorf("%w: a secret has %d to %d bytes, this one %d", ErrKey, MinSecretBytes, MaxSecretBytes, len(key))
	}
	return key, nil
}

// NewKeyPair makes an ed25519 key pair for "v1a": the private key, base64 of seed and public key, and the public one.
func NewKeyPair() (private, public string) {
	// crypto/rand never fails, and GenerateKey fails only when it does.
	pub, priv, _ := ed25519.GenerateKey(nil)
	return PrivateKeyPrefix + base64.StdEncoding.EncodeToString(priv),
		PublicKeyPrefix + base64.StdEncoding.EncodeToString(pub)
}

// ParsePrivateKey reads a "whsk_" text. A key whose public half does not belong to its seed is refused: signing with it
// would leak the private half.
func ParsePrivateKey(s string) (ed25519.PrivateKey, error) {
	raw, err := decodeKey(s, PrivateKeyPrefix, ed25519.PrivateKeySize)
	if err != nil {
		return nil, err
	}
	key := ed25519.PrivateKey(raw)
	if !ed25519.NewKeyFromSeed(key.Seed()).Equal(key) {
		return nil, fmt.Errorf("%w: the halves of this private key do not belong together", ErrKey)
	}
	return key, nil
}

// ParsePublicKey reads a "whpk_" text.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	raw, err := decodeKey(s, PublicKeyPrefix, ed25519.PublicKeySize)
	return ed25519.PublicKey(raw), err
}

func decodeKey(s, prefix string, size int) ([]byte, error) {
	text, ok := strings.CutPrefix(s, prefix)
	raw, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(raw) != size {
		return nil, fmt.Errorf("%w: this key is %s and base64 of %d bytes", ErrKey, prefix, size)
	}
	return raw, nil
}
