package sender

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/betterdata/webhooks/internal/testenv"
)

const secret = "whsec_test"

// platform receives as a verifying edge would and keeps what it got.
func platform(t *testing.T, status int) (url string, got func() []map[string]any) {
	t.Helper()
	var bodies [][]byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), secret)
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		bodies = append(bodies, body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"id":"evt_ours"}`)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() (events []map[string]any) {
		for _, body := range bodies {
			var e map[string]any
			require.NoError(t, json.Unmarshal(body, &e))
			events = append(events, e)
		}
		return events
	}
}

func send(t *testing.T, cfg Config, status int) (events []map[string]any, printed string, err error) {
	t.Helper()
	url, got := platform(t, status)
	cfg.URL, cfg.Secret = url, secret
	var out bytes.Buffer
	err = Stripe(t.Context(), cfg, &out)
	return got(), out.String(), err
}

func object(t *testing.T, e map[string]any) map[string]any {
	t.Helper()
	return e["data"].(map[string]any)["object"].(map[string]any)
}

func TestSamplesAreSentSignedAndPrinted(t *testing.T) {
	for _, name := range sampleNames() {
		events, printed, err := send(t, Config{Files: []string{name}}, 200)
		require.NoError(t, err, name)
		require.Equal(t, "event", events[0]["object"])
		require.Contains(t, printed, events[0]["type"])
		require.Contains(t, printed, `200 {"id":"evt_ours"}`)
	}
}

func TestNewIDsAndOrg(t *testing.T) {
	cfg := Config{Files: []string{"subscription.created", "subscription.created"}, Org: "globex", NewIDs: true}
	events, _, err := send(t, cfg, 200)
	require.NoError(t, err)
	require.NotEqual(t, events[0]["id"], events[1]["id"])
	require.InDelta(t, time.Now().Unix(), events[0]["created"], 5)
	require.Equal(t, "globex", object(t, events[0])["metadata"].(map[string]any)["organizationId"])
}

func TestAWholeEventIsSentByteForByte(t *testing.T) {
	text := []byte("{\"type\":\"a.b\" , \"data\":{}, \"n\":1.10}\n")
	file := filepath.Join(t.TempDir(), "x.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	e, err := read(file, Config{})
	require.NoError(t, err)
	require.Equal(t, string(text), string(e.body))
}

func TestNumbersKeepTheirText(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"type":"a.b","data":{"object":{"n":12345678901234567890,"m":1.10}}}`), 0o600))
	e, err := read(file, Config{NewIDs: true, Org: "o"})
	require.NoError(t, err)
	require.Contains(t, string(e.body), "12345678901234567890")
	require.Contains(t, string(e.body), "1.10")
}

func TestObjectsAndDataAreWrapped(t *testing.T) {
	for fixture, want := range map[string]string{
		"subscription.updated.object-only.json":   "customer.subscription.updated",
		"subscription.deleted.object-only.json":   "customer.subscription.deleted",
		"invoice.payment_failed.object-only.json": "invoice.payment_failed",
	} {
		file := filepath.Join(t.TempDir(), fixture)
		require.NoError(t, os.WriteFile(file, testenv.Fixture(t, "stripe/pay/"+fixture), 0o600))
		events, _, err := send(t, Config{Files: []string{file}, Org: "acme"}, 200)
		require.NoError(t, err)
		require.Equal(t, want, events[0]["type"])
		require.NotEmpty(t, events[0]["id"])
		require.Contains(t, want, object(t, events[0])["object"], "a subscription or an invoice, where Stripe has it")
		require.Equal(t, "acme", object(t, events[0])["metadata"].(map[string]any)["organizationId"])
	}
	file := filepath.Join(t.TempDir(), "invoice.object-only.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"object":"invoice"}`), 0o600))
	_, _, err := send(t, Config{Files: []string{file}}, 200)
	require.ErrorContains(t, err, "--type")
	events, _, err := send(t, Config{Files: []string{file}, Type: "invoice.paid"}, 200)
	require.NoError(t, err)
	require.Equal(t, "invoice.paid", events[0]["type"])
}

func TestARefusalIsAnErrorOnceAllAreSent(t *testing.T) {
	events, printed, err := send(t, Config{Files: []string{"invoice.paid", "subscription.deleted"}}, 503)
	require.ErrorContains(t, err, "2 of 2")
	require.Len(t, events, 2)
	require.Contains(t, printed, "503")
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	_, _, err := send(t, Config{Files: []string{"subscription.paused"}}, 200)
	require.ErrorContains(t, err, "subscription.created")
	err = Stripe(t.Context(), Config{Files: []string{"invoice.paid"}, DataDir: t.TempDir()}, io.Discard)
	require.ErrorContains(t, err, "webhooks run")
	err = Stripe(t.Context(), Config{Files: []string{"invoice.paid"}, DataDir: t.TempDir(), URL: "http://127.0.0.1:1"}, io.Discard)
	require.ErrorContains(t, err, "--secret")
}
