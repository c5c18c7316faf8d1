package sender

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/betterdata/webhooks/internal/signing"
)

// scripted is a connection whose peer answers with fixed bytes and hangs up.
type scripted struct {
	net.Conn
	answer io.Reader
}

func (s *scripted) Read(p []byte) (int, error)  { return s.answer.Read(p) }
func (s *scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s *scripted) SetDeadline(time.Time) error { return nil }
func (s *scripted) Close() error                { return nil }

// Whatever a receiver answers, an attempt ends with a status or a class of failure, and keeps no more than its limits.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 120\r\n\r\n",
		"HTTP/1.0 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\nbody",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"HTTP/1.1 410 Gone\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd",
		"", "\r\n", "HTTP/1.1 \r\n\r\n", "ICY 200 OK\r\n\r\n", "\x16\x03\x01\x02\x00",
	} {
		f.Add([]byte(seed))
	}
	signer, err := signing.NewSigner([]string{signing.NewSecret()}, true, nil)
	if err != nil {
		f.Fatal(err)
	}
	d := &Destination{Timeout: time.Second, host: "example.com", path: "/", keys: signers{{Signer: signer}}}
	f.Fuzz(func(t *testing.T, answer []byte) {
		a := attempt{d: d, m: &Message{EventID: "evt_1", DeliveryID: "dlv_1", Number: 1, Body: []byte("{}")}, deadline: time.Now().Add(time.Second)}
		c := &conn{Conn: &scripted{answer: bytes.NewReader(answer)}}
		c.begin()
		keep := a.talk(c)
		r := a.res
		switch {
		case r.Class == None && (r.StatusCode < 200 || r.StatusCode > 299):
			t.Fatalf("status %d counts as success", r.StatusCode)
		case r.Class != None && r.StatusCode == 0 && r.Err == nil:
			t.Fatalf("%s without a reason", r.Class)
		case len(r.Excerpt) > MaxExcerptBytes || !utf8.Valid(r.Excerpt):
			t.Fatalf("excerpt of %d bytes", len(r.Excerpt))
		case r.ResponseBytes > MaxBodyBytes+len(buffer{}.scratch):
			t.Fatalf("%d bytes read", r.ResponseBytes)
		case keep && r.Err != nil:
			t.Fatalf("a connection is kept after %v", r.Err)
		case !r.RetryAfter.IsZero() && time.Until(r.RetryAfter) > MaxRetryAfter:
			t.Fatalf("retry after %s", r.RetryAfter)
		}
	})
}
