package sender_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// received is what a receiver saw.
type received struct {
	method, path, host string
	header             http.Header
	body               []byte
}

// exchange sends one message to an endpoint changed by change, and returns what arrived.
func exchange(t *testing.T, m *sender.Message, change func(*webhooksv1.Endpoint, *seal.Keyring)) received {
	t.Helper()
	got := make(chan received, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- received{r.Method, r.URL.RequestURI(), r.Host, r.Header, body}
	}))
	defer srv.Close()
	ring := keys(t)
	ep := endpoint(t, ring, srv.URL+"/hook/%2Fa?b=c&d", nil)
	if change != nil {
		change(ep, ring)
	}
	d, err := sender.NewDestination(ep, loopback(), ring, time.Second)
	require.NoError(t, err)
	res := newSender(t, nil).Send(d, m)
	require.True(t, res.Success(), "%v", res.Err)
	require.Equal(t, len(m.Body), res.RequestBytes)
	return <-got
}

func addSecret(t *testing.T, ep *webhooksv1.Endpoint, ring *seal.Keyring, text string, expires time.Time) {
	t.Helper()
	sealed, err := ring.Seal([]byte(text), seal.EndpointSecret(ep.GetId()))
	require.NoError(t, err)
	one := &webhooksv1.SigningSecret{SealedSecret: sealed}
	if !expires.IsZero() {
		one.ExpiresUnixMs = expires.UnixMilli()
	}
	ep.Secrets = append(ep.Secrets, one)
}

func TestRequestIsTheContracts(t *testing.T) {
	m := message()
	m.Number, m.ReplayID = 3, "rpl_01h455vb4pex5vsknk084sn02q"
	got := exchange(t, m, nil)
	require.Equal(t, "POST", got.method)
	require.Equal(t, "/hook/%2Fa?b=c&d", got.path)
	require.Equal(t, m.Body, got.body)
	for name, want := range map[string]string{
		"Webhook-Id": m.EventID, "X-Betterdata-Delivery": m.DeliveryID, "X-Betterdata-Attempt": "3",
		"X-Betterdata-Replay": m.ReplayID, "User-Agent": "BetterData-Webhooks/1", "Content-Type": "application/json",
		"Content-Length": strconv.Itoa(len(m.Body)),
	} {
		require.Equal(t, []string{want}, got.header[name], name)
	}
	ts, err := strconv.ParseInt(got.header.Get("webhook-timestamp"), 10, 64)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), time.Unix(ts, 0), 5*time.Second)
	require.Empty(t, got.header.Get("accept-encoding"))
}

func TestNoReplayHeaderOutsideOfReplays(t *testing.T) {
	require.NotContains(t, exchange(t, message(), nil).header, "X-Betterdata-Replay")
}

func TestStandardWebhooksLibraryAccepts(t *testing.T) {
	got := exchange(t, message(), nil)
	hook, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	require.NoError(t, hook.Verify(got.body, got.header))
	require.Error(t, hook.Verify(append(got.body, ' '), got.header))
}

func TestBetterDataSignatureIsAlwaysThere(t *testing.T) {
	for _, schemes := range [][]string{nil, {"v1"}, {"v1a"}, {"v1", "v1a"}} {
		got := exchange(t, message(), func(ep *webhooksv1.Endpoint, ring *seal.Keyring) {
			ep.Signatures = schemes
			private, _ := signing.NewKeyPair()
			sealed, err := ring.Seal([]byte(private), seal.EndpointPrivateKey(ep.GetId()))
			require.NoError(t, err)
			ep.Secrets[0].SealedPrivateKey = sealed
		})
		err := signing.VerifyBetterData(got.header.Get("x-betterdata-signature"), []string{secret}, got.body, time.Now(), 300*time.Second)
		require.NoError(t, err)
		signature := got.header.Get("webhook-signature")
		require.Equal(t, len(schemes) == 0 || schemes[0] == "v1", strings.Contains(signature, "v1,"), signature)
		require.Equal(t, len(schemes) > 0 && schemes[len(schemes)-1] == "v1a", strings.Contains(signature, "v1a,"), signature)
	}
}

func TestRotationSignsWithEveryActiveSecret(t *testing.T) {
	const old = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk"
	const older = "whsec_b2xkZXJvbGRlcm9sZGVyb2xkZXJvbGRlcm9sZGVyb2xk"
	got := exchange(t, message(), func(ep *webhooksv1.Endpoint, ring *seal.Keyring) {
		addSecret(t, ep, ring, old, time.Now().Add(time.Hour))
		addSecret(t, ep, ring, older, time.Now().Add(-time.Second))
	})
	for text, accepted := range map[string]bool{secret: true, old: true, older: false} {
		hook, err := standardwebhooks.NewWebhook(text)
		require.NoError(t, err)
		require.Equal(t, accepted, hook.Verify(got.body, got.header) == nil)
		err = signing.VerifyBetterData(got.header.Get("x-betterdata-signature"), []string{text}, got.body, time.Now(), 300*time.Second)
		require.Equal(t, accepted, err == nil)
	}
	require.Len(t, strings.Fields(got.header.Get("webhook-signature")), 2)
}

func TestOwnHeaders(t *testing.T) {
	got := exchange(t, message(), func(ep *webhooksv1.Endpoint, ring *seal.Keyring) {
		plain, err := json.Marshal(map[string]string{
			"Authorization": "Bearer abc", "X-Tenant": "t1", "Webhook-Id": "forged", "Host": "elsewhere.test",
			"Transfer-Encoding": "chunked", "X-Betterdata-Attempt": "99", "X-Split": "a\r\nX-Smuggled: yes",
		})
		require.NoError(t, err)
		ep.SealedHeaders, err = ring.Seal(plain, seal.EndpointHeaders(ep.GetId()))
		require.NoError(t, err)
	})
	require.Equal(t, "Bearer abc", got.header.Get("authorization"))
	require.Equal(t, "t1", got.header.Get("x-tenant"))
	require.Equal(t, message().EventID, got.header.Get("webhook-id"))
	require.Equal(t, []string{"1"}, got.header.Values("x-betterdata-attempt"))
	require.NotEqual(t, "elsewhere.test", got.host)
	require.NotContains(t, got.header, "X-Smuggled")
	require.NotContains(t, got.header, "X-Split")
}

func TestSecretsThatDoNotOpenAreAnErrorWithoutThem(t *testing.T) {
	ep := endpoint(t, keys(t), "https://example.com/", nil)
	_, err := sender.NewDestination(ep, loopback(), keys(t), time.Second)
	require.ErrorIs(t, err, seal.ErrUnknownKey)
	require.ErrorContains(t, err, endpointID)
	require.NotContains(t, err.Error(), secret)

	ep.Secrets = nil
	_, err = sender.NewDestination(ep, loopback(), keys(t), time.Second)
	require.Error(t, err)
}
