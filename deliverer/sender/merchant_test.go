package sender_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

var (
	hmacs   = []string{testenv.StandardWebhooks, testenv.Svix}
	ed25519 = []string{testenv.Ed25519}
)

// What the libraries say.
const (
	noneMatches = "No matching signature found"
	tooOld      = "Message timestamp too old"
)

// TestMerchantsLibrariesAccept sends to a receiver that verifies with npm's libraries, so that nothing of ours judges ours.
func TestMerchantsLibrariesAccept(t *testing.T) {
	merchant := testenv.NewMerchant(t)
	private, public := signing.NewKeyPair()
	_, otherPublic := signing.NewKeyPair()
	old, expired := signing.NewSecret(), signing.NewSecret()
	body := []byte(`{"id":"evt_1","type":"order.created","data":{"name":"Zoë 🛒","html":"\u003ca\u003e","n":9007199254740993}}`)
	rotated := func(ep *webhooksv1.Endpoint, ring *seal.Keyring) {
		addSecret(t, ep, ring, old, time.Now().Add(time.Hour))
		addSecret(t, ep, ring, expired, time.Now().Add(-time.Second))
	}
	schemes := func(schemes ...string) func(*webhooksv1.Endpoint, *seal.Keyring) {
		return func(ep *webhooksv1.Endpoint, ring *seal.Keyring) {
			ep.Signatures = schemes
			sealed, err := ring.Seal([]byte(private), seal.EndpointPrivateKey(ep.GetId()))
			require.NoError(t, err)
			ep.Secrets[0].SealedPrivateKey = sealed
		}
	}
	for name, c := range map[string]struct {
		change    func(*webhooksv1.Endpoint, *seal.Keyring)
		verifiers []string
		key       string
		accepted  bool
	}{
		"its secret":                          {nil, hmacs, secret, true},
		"another secret":                      {nil, hmacs, old, false},
		"the new secret of a rotation":        {rotated, hmacs, secret, true},
		"the old secret of a rotation":        {rotated, hmacs, old, true},
		"a secret whose rotation is over":     {rotated, hmacs, expired, false},
		"the secret, beside ed25519":          {schemes("v1", "v1a"), hmacs, secret, true},
		"the secret, where ed25519 alone is":  {schemes("v1a"), hmacs, secret, false},
		"the public key":                      {schemes("v1a"), ed25519, public, true},
		"the public key, beside HMAC":         {schemes("v1", "v1a"), ed25519, public, true},
		"another public key":                  {schemes("v1a"), ed25519, otherPublic, false},
		"the public key, where HMAC alone is": {nil, ed25519, public, false},
	} {
		for _, verifier := range c.verifiers {
			t.Run(name+", "+verifier, func(t *testing.T) {
				ring := keys(t)
				ep := endpoint(t, ring, merchant.URL(verifier, c.key), nil)
				if c.change != nil {
					c.change(ep, ring)
				}
				d, err := sender.NewDestination(ep, loopback(), ring, 0)
				require.NoError(t, err)
				m := message()
				m.Body = body
				res := newSender(t, nil).Send(d, m)
				require.Equal(t, c.accepted, res.Success(), "%d %s %v", res.StatusCode, res.Excerpt, res.Err)
				if !c.accepted {
					require.Equal(t, noneMatches, string(res.Excerpt))
				}
			})
		}
	}
}

// TestMerchantsLibrariesRefuse what was sent and is changed on its way, or kept for long.
func TestMerchantsLibrariesRefuse(t *testing.T) {
	merchant := testenv.NewMerchant(t)
	set := func(header, value string) func(*received) {
		return func(r *received) { r.header.Set(header, value) }
	}
	for name, c := range map[string]struct {
		change func(*received)
		says   string
	}{
		"nothing":                 {func(*received) {}, ""},
		"a byte of the body":      {func(r *received) { r.body[3] ^= 1 }, noneMatches},
		"a byte more":             {func(r *received) { r.body = append(r.body, ' ') }, noneMatches},
		"the id":                  {set("webhook-id", "evt_other"), noneMatches},
		"the time, within bounds": {set("webhook-timestamp", ago(time.Minute)), noneMatches},
		"the signature":           {set("webhook-signature", "v1,"+strings.Repeat("A", 43)+"="), noneMatches},
	} {
		for _, verifier := range hmacs {
			t.Run(name+", "+verifier, func(t *testing.T) {
				got := exchange(t, message(), nil)
				c.change(&got)
				status, says := got.forward(t, merchant.URL(verifier, secret))
				require.Equal(t, c.says, says)
				require.Equal(t, c.says == "", status == http.StatusNoContent)
			})
		}
	}
	t.Run("a request of six minutes ago", func(t *testing.T) {
		got := exchange(t, message(), nil)
		signer, err := signing.NewSigner([]string{secret}, true, nil)
		require.NoError(t, err)
		sent := time.Now().Add(-6 * time.Minute).Unix()
		got.header.Set("webhook-timestamp", strconv.FormatInt(sent, 10))
		got.header.Set("webhook-signature", string(signer.AppendStandard(nil, message().EventID, sent, got.body)))
		for _, verifier := range hmacs {
			_, says := got.forward(t, merchant.URL(verifier, secret))
			require.Equal(t, tooOld, says, verifier)
		}
	})
}

func ago(d time.Duration) string { return strconv.FormatInt(time.Now().Add(-d).Unix(), 10) }

// forward sends on what was received.
func (r received) forward(t *testing.T, url string) (status int, says string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), r.method, url, bytes.NewReader(r.body))
	require.NoError(t, err)
	req.Header, req.Close = r.header, true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}
