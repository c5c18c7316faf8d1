package signing

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strconv"
	"sync"
)

// Names of the headers, in lower case.
const (
	HeaderID         = "webhook-id"
	HeaderTimestamp  = "webhook-timestamp"
	HeaderSignature  = "webhook-signature"
	HeaderBetterData = "x-betterdata-signature"
)

// StandardV1 signs a message: "v1," and base64. The timestamp is in seconds since the epoch.
func StandardV1(key []byte, id string, timestamp int64, body []byte) string {
	return string(newMAC(key).appendStandard(nil, id, timestamp, body))
}

// StandardV1a signs a message: "v1a," and base64.
func StandardV1a(key ed25519.PrivateKey, id string, timestamp int64, body []byte) string {
	return string(appendV1a(nil, key, append(appendHead(nil, id, timestamp), body...)))
}

// BetterData is the value of x-betterdata-signature with one secret. The timestamp is in seconds since the epoch.
func BetterData(secret string, timestamp int64, body []byte) string {
	return string(newMAC([]byte(secret)).appendHex(appendBetterDataHead(nil, timestamp), timestamp, body))
}

// Signer signs for one endpoint, with all its active keys, and keeps what can be computed once. It is safe for use from
// many goroutines and, once it has been used by as many as ever run at once, allocates nothing but ed25519 signatures.
type Signer struct {
	standard   []pool
	betterData []pool
	private    []ed25519.PrivateKey
	messages   sync.Pool
}

// NewSigner makes a signer of "whsec_" secrets and "whsk_" private keys, in the order in which their signatures will
// stand. With v1 false webhook-signature has no HMAC; x-betterdata-signature always has.
func NewSigner(secrets []string, v1 bool, privateKeys []string) (*Signer, error) {
	s := &Signer{messages: sync.Pool{New: func() any { return new([]byte) }}}
	for _, secret := range secrets {
		key, err := ParseSecret(secret)
		if err != nil {
			return nil, err
		}
		if v1 {
			s.standard = append(s.standard, newPool(key))
		}
		s.betterData = append(s.betterData, newPool([]byte(secret)))
	}
	for _, text := range privateKeys {
		key, err := ParsePrivateKey(text)
		if err != nil {
			return nil, err
		}
		s.private = append(s.private, key)
	}
	return s, nil
}

// AppendStandard appends the value of webhook-signature to dst and returns it.
func (s *Signer) AppendStandard(dst []byte, id string, timestamp int64, body []byte) []byte {
	start := len(dst)
	for i := range s.standard {
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		m := s.standard[i].get()
		dst = m.appendStandard(dst, id, timestamp, body)
		s.standard[i].put(m)
	}
	if len(s.private) == 0 {
		return dst
	}
	// ed25519 reads its message twice, so it must stand in one piece.
	message := s.messages.Get().(*[]byte)
	*message = append(appendHead((*message)[:0], id, timestamp), body...)
	for _, key := range s.private {
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = appendV1a(dst, key, *message)
	}
	s.messages.Put(message)
	return dst
}

// AppendBetterData appends the value of x-betterdata-signature to dst and returns it.
func (s *Signer) AppendBetterData(dst []byte, timestamp int64, body []byte) []byte {
	dst = appendBetterDataHead(dst, timestamp)
	for i := range s.betterData {
		m := s.betterData[i].get()
		dst = m.appendHex(dst, timestamp, body)
		s.betterData[i].put(m)
	}
	return dst
}

// mac is an HMAC-SHA256 of one key with the room it needs. Reset between uses costs no work on the key.
type mac struct {
	hash hash.Hash
	head []byte
	sum  []byte
}

func newMAC(key []byte) *mac {
	return &mac{hash: hmac.New(sha256.New, key), head: make([]byte, 0, 64), sum: make([]byte, 0, sha256.Size)}
}

// appendStandard appends "v1," and base64 of the HMAC of "id.timestamp.body".
func (m *mac) appendStandard(dst []byte, id string, timestamp int64, body []byte) []byte {
	m.head = appendHead(m.head[:0], id, timestamp)
	m.compute(body)
	return base64.StdEncoding.AppendEncode(append(dst, "v1,"...), m.sum)
}

// appendHex appends ",v1=" and hex of the HMAC of "timestamp.body".
func (m *mac) appendHex(dst []byte, timestamp int64, body []byte) []byte {
	m.head = append(strconv.AppendInt(m.head[:0], timestamp, 10), '.')
	m.compute(body)
	return hex.AppendEncode(append(dst, ",v1="...), m.sum)
}

func (m *mac) compute(body []byte) {
	m.hash.Reset()
	m.hash.Write(m.head)
	m.hash.Write(body)
	m.sum = m.hash.Sum(m.sum[:0])
}

// pool holds the macs of one key.
type pool struct{ *sync.Pool }

func newPool(key []byte) pool {
	return pool{&sync.Pool{New: func() any { return newMAC(key) }}}
}

func (p pool) get() *mac  { return p.Get().(*mac) }
func (p pool) put(m *mac) { p.Put(m) }

func appendHead(dst []byte, id string, timestamp int64) []byte {
	dst = append(append(dst, id...), '.')
	return append(strconv.AppendInt(dst, timestamp, 10), '.')
}

func appendBetterDataHead(dst []byte, timestamp int64) []byte {
	return strconv.AppendInt(append(dst, "t="...), timestamp, 10)
}

func appendV1a(dst []byte, key ed25519.PrivateKey, message []byte) []byte {
	return base64.StdEncoding.AppendEncode(append(dst, "v1a,"...), ed25519.Sign(key, message))
}
