package receiver

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/internal/testenv"
)

// console collects what is printed.
type console struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(b)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// listen runs a receiver until the test ends and returns where it listens.
func listen(t *testing.T, cfg Config) (url string, out *console, stop func() error) {
	t.Helper()
	cfg.Addr, cfg.Tolerance = "127.0.0.1:0", signing.Tolerance
	out = &console{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Listen(ctx, cfg, out) }()
	testenv.Eventually(t, 5*time.Second, func() bool { return strings.Contains(out.String(), "Listening on ") }, "it listens")
	_, rest, _ := strings.Cut(out.String(), "Listening on ")
	url, _, _ = strings.Cut(rest, ";")
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return url, out, stop
}

const body = `{"id":"evt_1","type":"loop.started","data":{}}`

// deliver sends a signed request; change may spoil it.
func deliver(t *testing.T, url, secret string, change func(http.Header)) (status int) {
	t.Helper()
	signer, err := signing.NewSigner([]string{secret}, true, nil)
	require.NoError(t, err)
	now := time.Now().Unix()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set(signing.HeaderID, "evt_1")
	req.Header.Set(signing.HeaderTimestamp, strconv.FormatInt(now, 10))
	req.Header.Set(signing.HeaderSignature, string(signer.AppendStandard(nil, "evt_1", now, []byte(body))))
	req.Header.Set(signing.HeaderBetterData, string(signer.AppendBetterData(nil, now, []byte(body))))
	req.Header.Set("x-betterdata-attempt", "3")
	if change != nil {
		change(req.Header)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res.StatusCode
}

func TestAnswersAndPrints(t *testing.T) {
	secret := signing.NewSecret()
	for _, answer := range []string{"200", "410", "429", "500"} {
		url, out, _ := listen(t, Config{Secrets: []string{signing.NewSecret(), secret}, Answer: answer})
		status := deliver(t, url, secret, nil)
		require.Equal(t, answer, strconv.Itoa(status))
		for _, want := range []string{"loop.started  evt_1  attempt 3  signatures valid  →  " + answer, `  "type": "loop.started"`} {
			require.Contains(t, out.String(), want)
		}
	}
}

func TestRefusesWhatIsNotSigned(t *testing.T) {
	secret := signing.NewSecret()
	url, out, _ := listen(t, Config{Secrets: []string{secret}, Answer: "200"})
	for name, change := range map[string]func(http.Header){
		"standard wrong":   func(h http.Header) { h.Set(signing.HeaderSignature, "v1,AAAA") },
		"betterdata wrong": func(h http.Header) { h.Set(signing.HeaderBetterData, "t=1,v1=00") },
		"both missing":     func(h http.Header) { h.Del(signing.HeaderSignature); h.Del(signing.HeaderBetterData) },
	} {
		require.Equal(t, 400, deliver(t, url, secret, change), name)
	}
	require.Equal(t, 3, strings.Count(out.String(), "REFUSED"))
	require.Equal(t, 200, deliver(t, url, secret, func(h http.Header) { h.Del(signing.HeaderBetterData) }), "one scheme is enough")
	require.Equal(t, 200, deliver(t, url, secret, func(h http.Header) { h.Del(signing.HeaderSignature) }))
}

func TestStallsUntilItStops(t *testing.T) {
	secret := signing.NewSecret()
	url, out, stop := listen(t, Config{Secrets: []string{secret}, Answer: Stall})
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_ = deliver(t, url, secret, nil)
	}()
	testenv.Eventually(t, 5*time.Second, func() bool { return strings.Contains(out.String(), "stall") }, "it is printed")
	select {
	case <-answered:
		t.Fatal("answered")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, stop())
	<-answered
}

func TestForwards(t *testing.T) {
	secret := signing.NewSecret()
	got := make(chan string, 1)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		got <- r.Header.Get(signing.HeaderID) + " " + string(text)
		w.WriteHeader(http.StatusTeapot)
	}))
	url, _, _ := listen(t, Config{Secrets: []string{secret}, Answer: "200", ForwardTo: target.URL})
	require.Equal(t, http.StatusTeapot, deliver(t, url, secret, nil))
	require.Equal(t, "evt_1 "+body, <-got)
	target.Close()
	require.Equal(t, http.StatusBadGateway, deliver(t, url, secret, nil))
}

func TestMakesItsOwnEndpointAndRemovesIt(t *testing.T) {
	secret := signing.NewSecret()
	var mu sync.Mutex
	var calls []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if calls = append(calls, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")); len(calls) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable) // it is starting
			return
		}
		if r.Method == http.MethodGet {
			return
		}
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		var asked struct {
			URL        string
			EventTypes []string
		}
		if json.NewDecoder(r.Body).Decode(&asked) != nil || asked.URL == "" || len(asked.EventTypes) != 1 {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]string{"id": "ep_1", "secret": secret})
	}))
	defer api.Close()
	url, out, stop := listen(t, Config{Answer: "200", Org: "acme", Types: []string{"*"}, API: api.URL, Key: "k"})
	require.Contains(t, out.String(), "ep_1")
	require.Equal(t, 200, deliver(t, url, secret, nil))
	require.NoError(t, stop())
	require.Contains(t, out.String(), "ep_1 removed")
	require.Equal(t, []string{"GET /v1/orgs/acme/endpoints Bearer k", "GET /v1/orgs/acme/endpoints Bearer k", "POST /v1/orgs/acme/endpoints Bearer k", "DELETE /v1/orgs/acme/endpoints/ep_1 Bearer k"}, calls)
}

func TestWithoutARunningSystemItSaysWhatToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &console{}
		_, err := findManagement(t.Context(), Config{DataDir: t.TempDir()}, out)
		require.ErrorContains(t, err, "webhooks run")
		require.Contains(t, out.String(), "Waiting")
	})
}

func TestAWrongKeyIsToldAtOnce(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer api.Close()
	err := Listen(t.Context(), Config{Addr: "127.0.0.1:0", Answer: "200", API: api.URL, Key: "k"}, io.Discard)
	require.ErrorContains(t, err, "401")
}
