package signing

import (
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Tolerance is how far a timestamp may be off, either way; exactly this much passes.
const Tolerance = 300 * time.Second

// What verification finds, in the order checked: a forged request is told apart from one that came late.
var (
	ErrMissing   = errors.New("signature missing")
	ErrInvalid   = errors.New("signature invalid")
	ErrTimestamp = errors.New("timestamp out of tolerance")
)

// VerifyBetterData checks the value of x-betterdata-signature against the body with each of the secrets. It returns
// nil, ErrMissing, ErrInvalid or ErrTimestamp. Items of other names than t and v1 are ignored; a timestamp that is
// missing, given twice or not decimal makes the signature invalid.
func VerifyBetterData(header string, secrets []string, body []byte, now time.Time, tolerance time.Duration) error {
	if header == "" {
		return ErrMissing
	}
	timestamp, ok := betterDataTimestamp(header)
	if !ok {
		return ErrInvalid
	}
	var room [96]byte
	for _, secret := range secrets {
		want := newMAC([]byte(secret)).appendHex(room[:0], timestamp, body)[len(",v1="):]
		for item := range strings.SplitSeq(header, ",") {
			if given, is := strings.CutPrefix(item, "v1="); is && hmac.Equal([]byte(given), want) {
				return checkTime(timestamp, now, tolerance)
			}
		}
	}
	return ErrInvalid
}

func betterDataTimestamp(header string) (timestamp int64, ok bool) {
	for item := range strings.SplitSeq(header, ",") {
		text, is := strings.CutPrefix(item, "t=")
		if !is {
			continue
		}
		if ok {
			return 0, false
		}
		if timestamp, ok = parseTimestamp(text); !ok {
			return 0, false
		}
	}
	return timestamp, ok
}

// StandardHeaders are the three headers of Standard Webhooks as they were received.
type StandardHeaders struct {
	ID, Timestamp, Signature string
}

// VerifyStandard checks the headers against the body with each of the keys: secrets, with or without "whsec_" and of
// any length, as every receiver takes them, or "whpk_" public keys. It returns nil, ErrMissing, ErrInvalid, ErrTimestamp
// or an error that wraps ErrKey.
func VerifyStandard(h StandardHeaders, keys []string, body []byte, now time.Time, tolerance time.Duration) error {
	if h.ID == "" || h.Timestamp == "" || h.Signature == "" {
		return ErrMissing
	}
	timestamp, ok := parseTimestamp(h.Timestamp)
	if !ok {
		return ErrInvalid
	}
	for _, text := range keys {
		verify, err := verifier(text, h.ID, timestamp, body)
		if err != nil {
			return err
		}
		for item := range strings.SplitSeq(h.Signature, " ") {
			if verify(item) {
				return checkTime(timestamp, now, tolerance)
			}
		}
	}
	return ErrInvalid
}

// verifier returns the check of one item of webhook-signature with one key.
func verifier(text, id string, timestamp int64, body []byte) (func(item string) bool, error) {
	if strings.HasPrefix(text, PublicKeyPrefix) {
		key, err := ParsePublicKey(text)
		if err != nil {
			return nil, err
		}
		message := append(appendHead(nil, id, timestamp), body...)
		return func(item string) bool {
			encoded, is := strings.CutPrefix(item, "v1a,")
			signature, err := base64.StdEncoding.DecodeString(encoded)
			return is && err == nil && ed25519.Verify(key, message, signature)
		}, nil
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, SecretPrefix))
	if err != nil || len(key) == 0 {
		return nil, ErrKey
	}
	want := newMAC(key).appendStandard(nil, id, timestamp, body)
	return func(item string) bool { return hmac.Equal([]byte(item), want) }, nil
}

// parseTimestamp takes seconds since the epoch in plain decimal and in the one spelling that the signer signed.
func parseTimestamp(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}

func checkTime(timestamp int64, now time.Time, tolerance time.Duration) error {
	// Compared in seconds, so that neither overflows and a fraction of a second does not count.
	bound := int64(tolerance / time.Second)
	if age := now.Unix() - timestamp; age > bound || age < -bound {
		return ErrTimestamp
	}
	return nil
}
