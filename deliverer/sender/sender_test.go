package sender_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/betterdata/webhooks/deliverer/sender"
)

// TestMain checks for goroutines left behind. fasthttp's cleaner of a pool lives until IdleConn after its last
// connection, which the tests keep short.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func silent() *log.Logger { return log.New(io.Discard, "", 0) }

func TestStatusClasses(t *testing.T) {
	for code, want := range map[int]sender.Class{
		200: sender.None, 201: sender.None, 204: sender.None, 299: sender.None,
		301: sender.HTTP3xx, 302: sender.HTTP3xx, 304: sender.HTTP3xx, 308: sender.HTTP3xx,
		400: sender.HTTP4xx, 404: sender.HTTP4xx, 410: sender.HTTP410, 429: sender.HTTP429,
		500: sender.HTTP5xx, 502: sender.HTTP5xx, 504: sender.HTTP5xx, 599: sender.HTTP5xx, 600: sender.Protocol,
	} {
		s := newSender(t, nil)
		res := s.Send(destination(t, status(t, code), time.Second*5), message())
		require.Equal(t, want, res.Class, "status %d: %v", code, res.Err)
		require.Equal(t, code, res.StatusCode)
		require.Equal(t, want == sender.None, res.Success())
		require.Equal(t, code == 429 || code == 502 || code == 504, res.Throttled())
	}
}

func TestClassesBelowHTTP(t *testing.T) {
	const limit = 600 * time.Millisecond
	hangUp := func(net.Conn) {}
	stall := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for _, tc := range []struct {
		name string
		url  string
		want sender.Class
	}{
		{"name that does not exist", "http://nobody.test/", sender.DNS},
		{"name server that does not answer", "http://slow.test/", sender.DNS},
		{"address inside", "http://10.0.0.1/", sender.Blocked},
		{"name that leads inside", "https://inside.test/", sender.Blocked},
		{"URL that must not be reached", "http://user@example.com/", sender.Blocked},
		{"nobody listens", "http://" + closedPort(t) + "/", sender.Refused},
		{"hangs up at once", "http://" + raw(t, hangUp) + "/", sender.Reset},
		{"hangs up after the request", "http://" + raw(t, func(c net.Conn) { _ = readRequest(c) }) + "/", sender.Reset},
		{"hangs up within the headers", "http://" + answersAndCloses(t, "HTTP/1.1 200 OK\r\nX-A: b") + "/", sender.Reset},
		{"hangs up within the body", "http://" + answersAndCloses(t, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc") + "/", sender.Reset},
		{"hangs up between chunks", "http://" + answersAndCloses(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n") + "/", sender.Reset},
		{"plain HTTP where TLS is due", "https://" + answers(t, "HTTP/1.1 400 Bad Request\r\n\r\n") + "/", sender.TLS},
		{"hangs up in the handshake", "https://" + raw(t, hangUp) + "/", sender.TLS},
		{"does not accept", "http://" + fullBacklog(t) + "/", sender.TimeoutConnect},
		{"does not shake hands", "https://" + raw(t, stall) + "/", sender.TimeoutTLS},
		{"does not answer", "http://" + raw(t, stall) + "/", sender.TimeoutHeaders},
		{"stops within the headers", "http://" + answers(t, "HTTP/1.1 200 OK\r\nX-A: b") + "/", sender.TimeoutHeaders},
		{"stops within the body", "http://" + answers(t, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc") + "/", sender.TimeoutBody},
		{"drips the body", "http://" + drips(t) + "/", sender.TimeoutTotal},
		{"is not HTTP", "http://" + answers(t, "SSH-2.0-OpenSSH_9.2\r\n\r\n") + "/", sender.Protocol},
		{"switches protocols", "http://" + answers(t, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n") + "/", sender.Protocol},
		{"answers 000", "http://" + answers(t, "HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n") + "/", sender.Protocol},
		{"breaks its chunks", "http://" + answers(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n") + "/", sender.Protocol},
		{"large headers", "http://" + answers(t, "HTTP/1.1 200 OK\r\nX-A: "+strings.Repeat("a", 1<<20)+"\r\n\r\n") + "/", sender.TooLarge},
		{"endless headers", "http://" + endless(t, "HTTP/1.1 200 OK\r\n", "X-A: b\r\n") + "/", sender.TooLarge},
		{"large body announced", "http://" + endless(t, "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n", "abcdefgh") + "/", sender.TooLarge},
		{"endless chunks", "http://" + endless(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "8\r\nabcdefgh\r\n") + "/", sender.TooLarge},
		{"endless body until close", "http://" + endless(t, "HTTP/1.1 200 OK\r\n\r\n", "abcdefgh") + "/", sender.TooLarge},
		{"failure with a large body keeps its status", "http://" + endless(t, "HTTP/1.1 503 Busy\r\n\r\n", "abcdefgh") + "/", sender.HTTP5xx},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSender(t, func(c *sender.Config) {
				c.Resolver = names{"slow.test": nil, "inside.test": {netip.MustParseAddr("169.254.169.254")}}
			})
			limit := limit
			if tc.want == sender.TooLarge {
				limit *= 20 // it is the size that ends it, however slow the machine
			}
			start := time.Now()
			res := s.Send(destination(t, tc.url, limit), message())
			require.Equal(t, tc.want.String(), res.Class.String(), "error: %v", res.Err)
			require.Error(t, orStatus(res))
			require.False(t, res.Success())
			require.Less(t, time.Since(start), 2*limit, "an attempt ends by its time-out")
			require.LessOrEqual(t, len(res.Excerpt), sender.MaxExcerptBytes)
			require.LessOrEqual(t, res.ResponseBytes, sender.MaxBodyBytes+8192)
		})
	}
}

// orStatus: a failure has an error below HTTP, or a status.
func orStatus(res sender.Result) error {
	if res.StatusCode >= 300 {
		return io.EOF
	}
	return res.Err
}

func TestTLS(t *testing.T) {
	ok := func(w http.ResponseWriter, _ *http.Request) {}
	t.Run("verified and 1.2 or newer", func(t *testing.T) {
		url, roots, resolve := secure(t, &tls.Config{MaxVersion: tls.VersionTLS12}, ok)
		s := newSender(t, func(c *sender.Config) { c.RootCAs, c.Resolver = roots, resolve })
		res := s.Send(destination(t, url, 5*time.Second), message())
		require.True(t, res.Success(), "%v", res.Err)
		require.Positive(t, res.Timings.TLS)
		require.Positive(t, res.Timings.Connect)
	})
	t.Run("unknown authority", func(t *testing.T) {
		url, _, resolve := secure(t, nil, ok)
		s := newSender(t, func(c *sender.Config) { c.Resolver = resolve })
		require.Equal(t, sender.TLS, s.Send(destination(t, url, 5*time.Second), message()).Class)
	})
	t.Run("certificate of another host", func(t *testing.T) {
		url, roots, resolve := secure(t, nil, ok)
		s := newSender(t, func(c *sender.Config) { c.RootCAs, c.Resolver = roots, resolve })
		url = strings.Replace(url, "example.com", "wrong.test", 1)
		require.Equal(t, sender.TLS, s.Send(destination(t, url, 5*time.Second), message()).Class)
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		url, roots, resolve := secure(t, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, ok)
		s := newSender(t, func(c *sender.Config) { c.RootCAs, c.Resolver = roots, resolve })
		require.Equal(t, sender.TLS, s.Send(destination(t, url, 5*time.Second), message()).Class)
	})
	t.Run("client certificate demanded", func(t *testing.T) {
		url, roots, resolve := secure(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, ok)
		s := newSender(t, func(c *sender.Config) { c.RootCAs, c.Resolver = roots, resolve })
		require.Equal(t, sender.TLS, s.Send(destination(t, url, 5*time.Second), message()).Class)
	})
}

func TestConnectionsAreReused(t *testing.T) {
	var conns atomic.Int32
	addr := raw(t, func(c net.Conn) {
		conns.Add(1)
		for readRequest(c) == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	s := newSender(t, func(c *sender.Config) { c.IdleConn = 300 * time.Millisecond })
	d := destination(t, "http://"+addr+"/", 5*time.Second)
	for range 5 {
		res := s.Send(d, message())
		require.True(t, res.Success(), "%v", res.Err)
		require.False(t, res.Resent)
		require.Equal(t, "ok", string(res.Excerpt))
		require.Equal(t, 2, res.ResponseBytes)
	}
	require.EqualValues(t, 1, conns.Load())
}

func TestStaleConnectionIsSentAgainOnce(t *testing.T) {
	var seen atomic.Int32
	addr := raw(t, func(c net.Conn) {
		// One answer a connection, without saying so: the next request on it finds it closed.
		if readRequest(c) == nil {
			seen.Add(1)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	s := newSender(t, func(c *sender.Config) { c.IdleConn = 100 * time.Millisecond })
	d := destination(t, "http://"+addr+"/", 5*time.Second)
	first := s.Send(d, message())
	require.True(t, first.Success())
	require.False(t, first.Resent)
	second := s.Send(d, message())
	require.True(t, second.Success(), "%v", second.Err)
	require.True(t, second.Resent)
	require.EqualValues(t, 2, seen.Load())
}

func TestFreshConnectionIsNotSentAgain(t *testing.T) {
	var conns atomic.Int32
	addr := raw(t, func(c net.Conn) { conns.Add(1); _ = readRequest(c) })
	s := newSender(t, nil)
	res := s.Send(destination(t, "http://"+addr+"/", 5*time.Second), message())
	require.Equal(t, sender.Reset, res.Class)
	require.False(t, res.Resent)
	require.EqualValues(t, 1, conns.Load())
}

func TestRetryAfter(t *testing.T) {
	later := time.Now().Add(90 * time.Second).UTC()
	for name, tc := range map[string]struct {
		value string
		want  time.Duration
	}{
		"absent":           {"", 0},
		"seconds":          {"120", 2 * time.Minute},
		"fraction":         {"1.2", 2 * time.Second},
		"date":             {later.Format(http.TimeFormat), 90 * time.Second},
		"past date":        {"Wed, 21 Oct 2015 07:28:00 GMT", 0},
		"negative":         {"-5", 0},
		"not a number":     {"NaN", 0},
		"nonsense":         {"soon", 0},
		"more than a day":  {"1e9", 24 * time.Hour},
		"infinity":         {"Inf", 24 * time.Hour},
		"far away as date": {"Fri, 31 Dec 9999 23:59:59 GMT", 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			head := "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n"
			if tc.value != "" {
				head += "Retry-After: " + tc.value + "\r\n"
			}
			res := newSender(t, nil).Send(destination(t, "http://"+answers(t, head+"\r\n")+"/", 5*time.Second), message())
			require.Equal(t, sender.HTTP5xx, res.Class)
			if tc.want == 0 {
				require.Zero(t, res.RetryAfter)
				return
			}
			require.WithinDuration(t, res.Ended().Add(tc.want), res.RetryAfter, 2*time.Second)
		})
	}
}

func TestExcerptIsValidUTF8(t *testing.T) {
	for name, body := range map[string]string{
		"short":               "no",
		"cut within a rune":   strings.Repeat("a", sender.MaxExcerptBytes-1) + "é and more",
		"invalid bytes":       "\xff\xfe" + strings.Repeat("x", 20),
		"only invalid bytes":  strings.Repeat("\xff", 3000),
		"compressed, unasked": "\x1f\x8b\x08\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			res := newSender(t, nil).Send(destination(t, "http://"+answersAndCloses(t, "HTTP/1.1 500 Oh\r\nContent-Encoding: gzip\r\n\r\n"+body)+"/", 5*time.Second), message())
			require.Equal(t, sender.HTTP5xx, res.Class)
			require.Equal(t, len(body), res.ResponseBytes)
			require.True(t, utf8.Valid(res.Excerpt))
			require.NotEmpty(t, res.Excerpt)
			require.LessOrEqual(t, len(res.Excerpt), sender.MaxExcerptBytes)
		})
	}
}

func TestAnswerBeforeTheBodyIsReadCounts(t *testing.T) {
	addr := raw(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.CopyN(io.Discard, c, 1024)
	})
	m := message()
	m.Body = []byte(`"` + strings.Repeat("a", 3<<20) + `"`)
	res := newSender(t, nil).Send(destination(t, "http://"+addr+"/", 5*time.Second), m)
	require.Contains(t, []sender.Class{sender.HTTP4xx, sender.Reset}, res.Class, "the system may drop the answer with the connection")
}

func TestInterimAnswersAreSkipped(t *testing.T) {
	addr := answers(t, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	res := newSender(t, nil).Send(destination(t, "http://"+addr+"/", 5*time.Second), message())
	require.True(t, res.Success(), "%v", res.Err)
	require.Equal(t, 200, res.StatusCode)
}

func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

func answersAndCloses(t *testing.T, answer string) string {
	return raw(t, func(c net.Conn) {
		if readRequest(c) == nil {
			_, _ = io.WriteString(c, answer)
		}
	})
}

// endless answers head, then more until the peer hangs up.
func endless(t *testing.T, head, more string) string {
	return raw(t, func(c net.Conn) {
		if readRequest(c) != nil {
			return
		}
		_, err := io.WriteString(c, head)
		for block := []byte(strings.Repeat(more, 512)); err == nil; {
			_, err = c.Write(block)
		}
	})
}

// drips answers a byte at a time.
func drips(t *testing.T) string {
	return raw(t, func(c net.Conn) {
		if readRequest(c) != nil {
			return
		}
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
		for err == nil {
			time.Sleep(20 * time.Millisecond)
			_, err = io.WriteString(c, "a")
		}
	})
}

// fullBacklog is a listener whose queue of connections is full: the next connect hangs.
func fullBacklog(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	for {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}
