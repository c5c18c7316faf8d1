package commands

import (
	"crypto/hmac"
	"crypto/sha256"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	idempotencyKeyHeader = "idempotency-key"
	replayedHeader       = "idempotent-replayed"
	maxIdempotencyKey    = 255
)

// idempotencyKey is what goes with the command of a request that may be sent again, nil where the request has no
// Idempotency-Key. Its owner judges it: only there is it known what came before, at every edge.
//
// The body may hold secrets, so its hash is made with the key, which does not go on the log: from what does, nobody can
// try out what the body was.
func idempotencyKey(ctx *fasthttp.RequestCtx) (*webhooksv1.IdempotencyKey, *httpapi.Problem) {
	given := ctx.Request.Header.PeekAll(idempotencyKeyHeader)
	if len(given) == 0 {
		return nil, nil
	}
	key := given[0]
	if len(given) > 1 || !validIdempotencyKey(key) {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "malformed_idempotency_key",
			"Idempotency-Key must be given once, with 1 to %d printable ASCII characters.", maxIdempotencyKey)
	}
	hash, fingerprint := sha256.Sum256(key), hmac.New(sha256.New, key)
	for _, part := range [][]byte{ctx.Method(), {0}, ctx.Path(), {0}, ctx.Request.Body()} {
		fingerprint.Write(part)
	}
	return &webhooksv1.IdempotencyKey{Hash: hash[:], Fingerprint: fingerprint.Sum(nil)}, nil
}

func validIdempotencyKey(key []byte) bool {
	for _, c := range key {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(key) > 0 && len(key) <= maxIdempotencyKey
}

// repeatable answers 202 to a creation with an Idempotency-Key. What was prepared for it is not shown: the request may be
// a repeat, and then the first one's id and secret hold. Sent once more, it is answered.
func repeatable(ctx *fasthttp.RequestCtx) {
	accepted(ctx, string(ctx.Path()), struct {
		ID *string `json:"id"`
	}{})
}
