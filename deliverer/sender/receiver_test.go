package sender_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/seal"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const endpointID = "ep_01h455vb4pex5vsknk084sn02q"

// loopback is a guard that lets tests reach their own listeners.
func loopback() *netguard.Guard {
	return netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
}

// names is a resolver of fixed answers; what it does not know does not exist.
type names map[string][]netip.Addr

func (n names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	addrs, ok := n[strings.TrimSuffix(host, ".")]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if addrs == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return addrs, nil
}

var localhost = []netip.Addr{netip.MustParseAddr("127.0.0.1")}

// keys seals and opens the tests' secrets.
func keys(t testing.TB) *seal.Keyring {
	t.Helper()
	ring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	return ring
}

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAA"

// endpoint is one with a secret; change may set more.
func endpoint(t testing.TB, ring *seal.Keyring, url string, change func(*webhooksv1.Endpoint)) *webhooksv1.Endpoint {
	t.Helper()
	sealed, err := ring.Seal([]byte(secret), seal.EndpointSecret(endpointID))
	require.NoError(t, err)
	ep := &webhooksv1.Endpoint{
		Id: endpointID, Url: url, TimeoutMs: 5000,
		Secrets: []*webhooksv1.SigningSecret{{SealedSecret: sealed}},
	}
	if change != nil {
		change(ep)
	}
	return ep
}

func destination(t testing.TB, url string, timeout time.Duration) *sender.Destination {
	t.Helper()
	ring := keys(t)
	ep := endpoint(t, ring, url, func(ep *webhooksv1.Endpoint) { ep.TimeoutMs = uint32(timeout.Milliseconds()) })
	d, err := sender.NewDestination(ep, loopback(), ring, 0)
	require.NoError(t, err)
	return d
}

func newSender(t testing.TB, change func(*sender.Config)) *sender.Sender {
	t.Helper()
	cfg := sender.Config{Guard: loopback(), IdleConn: 50 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	s := sender.New(cfg)
	t.Cleanup(s.Close)
	return s
}

func message() *sender.Message {
	return &sender.Message{
		EventID: "evt_01h455vb4pex5vsknk084sn02q", DeliveryID: "dlv_01h455vb4pex5vsknk084sn02q", Number: 1,
		Body: []byte(`{"id":"evt_01h455vb4pex5vsknk084sn02q","type":"order.created"}`),
	}
}

// raw serves each connection with handle and returns the address. Connections are closed when handle returns.
func raw(t testing.TB, handle func(c net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

// readRequest takes one request off the connection.
func readRequest(c net.Conn) error {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err == nil {
		_, err = io.Copy(io.Discard, req.Body)
	}
	return err
}

// answers serves each connection one request and then what it is told, and leaves the connection open until the peer
// hangs up.
func answers(t *testing.T, answer string) string {
	return raw(t, func(c net.Conn) {
		if readRequest(c) != nil {
			return
		}
		_, _ = io.WriteString(c, answer)
		_, _ = io.Copy(io.Discard, c)
	})
}

// status serves HTTP with one status.
func status(t *testing.T, code int) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://169.254.169.254/latest/meta-data/")
		w.WriteHeader(code)
		if code != 204 && code != 304 {
			fmt.Fprintf(w, "answer %d", code)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// secure serves HTTPS and returns its URL under the name the certificate is for, its pool of roots, and a resolver.
func secure(t *testing.T, cfg *tls.Config, h http.HandlerFunc) (url string, roots *x509.CertPool, resolve names) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = cfg
	srv.Config.ErrorLog = silent()
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots = x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	require.NoError(t, err)
	return "https://example.com:" + port + "/hook", roots, names{"example.com": localhost, "wrong.test": localhost}
}
