package testenv

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
)

// Received is one request that a receiver got.
type Received struct {
	Header http.Header
	Body   []byte
	At     time.Time
}

// Event decodes the body of a received webhook.
func (r Received) Event(t testing.TB) map[string]any {
	t.Helper()
	var event map[string]any
	require.NoError(t, json.NewDecoder(bytes.NewReader(r.Body)).Decode(&event))
	return event
}

// Verify checks the signature with the Standard Webhooks library for Go, against an endpoint's secret.
func (r Received) Verify(t testing.TB, secret string) {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	require.NoError(t, webhook.Verify(r.Body, r.Header))
}

// Receiver is a merchant's server on 127.0.0.1. It keeps what it gets and answers what Answer says, 200 by default.
type Receiver struct {
	// URL is where it listens.
	URL string

	mu       sync.Mutex
	received []Received
	answer   func(Received) int
}

// NewReceiver starts a receiver that ends with the test.
func NewReceiver(t testing.TB) *Receiver {
	t.Helper()
	r := &Receiver{answer: func(Received) int { return http.StatusOK }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		w.WriteHeader(r.take(Received{Header: req.Header.Clone(), Body: body, At: time.Now()}))
	}))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

func (r *Receiver) take(got Received) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received = append(r.received, got)
	return r.answer(got)
}

// Answer sets the status of the answers to come.
func (r *Receiver) Answer(status func(Received) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = status
}

// Received is what came so far, in order of arrival.
func (r *Receiver) Received() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Received(nil), r.received...)
}

// Wait returns once n requests have come.
func (r *Receiver) Wait(t testing.TB, timeout time.Duration, n int) []Received {
	t.Helper()
	Eventually(t, timeout, func() bool { return len(r.Received()) >= n }, n, " requests; there are ", len(r.Received()))
	return r.Received()
}
