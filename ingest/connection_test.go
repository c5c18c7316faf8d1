package ingest_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// dial opens a bare connection to the edge.
func (e *edge) dial() net.Conn {
	e.t.Helper()
	conn, err := net.Dial("tcp", e.Addr().String())
	require.NoError(e.t, err)
	e.t.Cleanup(func() { conn.Close() })
	require.NoError(e.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func readAnswer(t *testing.T, r *bufio.Reader) answer {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return answer{res.StatusCode, res.Header, body}
}

// A client that writes all it has before it reads is the one that a reset would rob of its answer.
func TestAClientThatWrites20MiBReadsItsAnswer(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	const size = 20 << 20
	chunked := func(w io.Writer) error {
		chunk := append([]byte("10000\r\n"), append(bytes.Repeat([]byte("x"), 0x10000), "\r\n"...)...)
		for range size / 0x10000 {
			if _, err := w.Write(chunk); err != nil {
				return err
			}
		}
		_, err := io.WriteString(w, "0\r\n\r\n")
		return err
	}
	plain := func(w io.Writer) error {
		_, err := w.Write(bytes.Repeat([]byte("x"), size))
		return err
	}
	for name, c := range map[string]struct {
		head string
		send func(io.Writer) error
		code string
	}{
		"of known length":      {fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size), plain, "body_too_large"},
		"in chunks":            {"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunked, "body_too_large"},
		"to an unknown source": {fmt.Sprintf("POST /webhooks/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size), plain, "unknown_source"},
		"to the API":           {fmt.Sprintf("POST /v1/orgs/o/endpoints HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size), plain, "body_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			_, err := io.WriteString(conn, c.head)
			require.NoError(t, err)
			require.NoError(t, c.send(conn), "the edge reads on")
			a := readAnswer(t, bufio.NewReader(conn))
			require.Equal(t, c.code, a.problem(t).Code)
		})
	}
}

func TestA2MiBBodyLeavesTheConnectionUsable(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	conn := e.dial()
	r := bufio.NewReader(conn)
	_, err := fmt.Fprintf(conn, "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 2<<20, strings.Repeat("x", 2<<20))
	require.NoError(t, err)
	require.Equal(t, 413, readAnswer(t, r).status)
	_, err = io.WriteString(conn, webhookRequest(subscriptionCreated))
	require.NoError(t, err)
	require.Equal(t, 200, readAnswer(t, r).status)
}

// webhookRequest is a signed request as it goes over the wire.
func webhookRequest(body string) string {
	return fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: %s\r\nContent-Length: %d\r\n\r\n%s", sign([]byte(body)), len(body), body)
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	conn := e.dial()
	_, err := io.WriteString(conn, webhookRequest(subscriptionCreated)+webhookRequest(`{"id":1}`)+webhookRequest(subscriptionCreated))
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	for _, want := range []int{200, 400, 200} {
		require.Equal(t, want, readAnswer(t, r).status)
	}
}

func TestChunkedBodies(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	// Chunks that fit no buffer size, around the sizes at which the edge's own grows.
	for _, size := range []int{0, 1, 100, 16<<10 - 1, 16 << 10, 16<<10 + 1, 32 << 10, 100_001, 1<<20 - 1, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			body := []byte(subscriptionCreated)
			if pad := size - len(body); pad > 0 {
				body = append(body, bytes.Repeat([]byte(" "), pad)...)
			}
			req := e.request(http.MethodPost, "/webhooks/stripe", nil, "Stripe-Signature", sign(body))
			req.ContentLength = -1
			req.Body = io.NopCloser(iotest(body, 777))
			require.Equal(t, 200, e.do(req).status)
		})
	}
	t.Run("one byte too many", func(t *testing.T) {
		body := bytes.Repeat([]byte(" "), 1<<20+1)
		req := e.request(http.MethodPost, "/webhooks/stripe", nil, "Stripe-Signature", sign(body))
		req.ContentLength = -1
		req.Body = io.NopCloser(iotest(body, 60_000))
		require.Equal(t, 413, e.do(req).status)
	})
}

// iotest reads body in pieces of n bytes.
func iotest(body []byte, n int) io.Reader {
	var pieces []io.Reader
	for len(body) > n {
		pieces, body = append(pieces, bytes.NewReader(body[:n])), body[n:]
	}
	return io.MultiReader(append(pieces, bytes.NewReader(body))...)
}

func TestBodiesThatEndEarlyAreNotTaken(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	body := subscriptionCreated
	for name, request := range map[string]string{
		"of known length":  fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: %s\r\nContent-Length: %d\r\n\r\n%s", sign([]byte(body)), len(body)+20_000, body),
		"within a chunk":   fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", sign([]byte(body)), len(body)+100, body),
		"a broken chunk":   fmt.Sprintf("POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\nzz\r\n", sign([]byte(body)), len(body), body),
		"no chunk at all ": "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			_, err := io.WriteString(conn, request)
			require.NoError(t, err)
			require.NoError(t, conn.(*net.TCPConn).CloseWrite())
			all, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.NotContains(t, string(all), "200 OK")
		})
	}
	require.Zero(t, e.metric("webhooks_ingest_requests_total", "source", "stripe", "code", "200"))
	require.Zero(t, e.metric("webhooks_ingest_held_bytes"))
}

func TestExpectContinue(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	conn := e.dial()
	body := subscriptionCreated
	_, err := fmt.Fprintf(conn, "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nStripe-Signature: %s\r\nContent-Length: %d\r\n\r\n", sign([]byte(body)), len(body))
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "100 Continue")
	_, err = r.ReadString('\n')
	require.NoError(t, err)
	_, err = io.WriteString(conn, body)
	require.NoError(t, err)
	require.Equal(t, 200, readAnswer(t, r).status)
	records(t, e.kafka, schemas.InboundUnrouted, 1)
}

func TestWhatIsNoRequestIsAProblemToo(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"rubbish":          {"\x16\x03\x01 rubbish\r\n\r\n", 400},
		"too many headers": {"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20_000) + "\r\n\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			_, err := io.WriteString(conn, c.request)
			require.NoError(t, err)
			a := readAnswer(t, bufio.NewReader(conn))
			require.Equal(t, c.status, a.status)
			require.NotEmpty(t, a.problem(t).RequestID)
			require.NotEmpty(t, a.header.Get("X-Request-Id"))
		})
	}
}

func TestWhatIsNoRequestIsRecorded(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.ReadTimeout = 200 * time.Millisecond })
	requests := map[string]string{
		"malformed_request": "\x16\x03\x01 rubbish\r\n\r\n",
		"headers_too_large": "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 20_000) + "\r\n\r\n",
		"request_timeout":   "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX-A",
	}
	// More than the rows that a class makes a second.
	const each = 45
	want := map[string]uint32{}
	for reason, request := range requests {
		want[reason] = each
		conns := make([]net.Conn, each)
		for i := range conns {
			conns[i] = e.dial()
			_, err := io.WriteString(conns[i], request)
			require.NoError(t, err)
		}
		for _, conn := range conns {
			require.Equal(t, reason, readAnswer(t, bufio.NewReader(conn)).problem(t).Code)
		}
		require.EqualValues(t, each, e.metric("webhooks_ingest_rejected_total", "source", "unknown", "reason", reason))
	}
	require.NoError(t, e.stop())
	var weights map[string]uint32
	rows := recordsUntil(t, e.kafka, schemas.Rejections, func(got []*kgo.Record) bool {
		weights = map[string]uint32{}
		for _, r := range got {
			var row webhooksv1.RejectionRow
			require.NoError(t, proto.Unmarshal(r.Value, &row))
			if row.Source == "unknown" {
				weights[row.Reason] += row.Weight
			}
		}
		return weights["malformed_request"]+weights["headers_too_large"]+weights["request_timeout"] >= 3*each
	})
	require.Equal(t, want, weights)
	require.Less(t, len(rows), 3*each, "they are sampled")
}

func TestAClientThatTakesTooLongIsGivenUp(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.ReadTimeout = 200 * time.Millisecond })
	for name, request := range map[string]string{
		"within the headers": "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nX-A",
		"within a body":      "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n{",
		"within a chunk":     "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
		"late in a body":     "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 19_000),
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			_, err := io.WriteString(conn, request)
			require.NoError(t, err)
			r := bufio.NewReader(conn)
			require.Equal(t, "request_timeout", readAnswer(t, r).problem(t).Code)
			_, err = r.ReadByte()
			require.ErrorIs(t, err, io.EOF, "the connection is closed")
		})
	}
	require.Zero(t, e.metric("webhooks_ingest_held_bytes"))
	require.Positive(t, e.metric("webhooks_ingest_requests_total", "source", "unknown", "code", "408"))
}

func TestTheBudgetOfHeldBodiesBoundsMemory(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t), func(c *ingest.Config, _ *ingest.Deps) { c.HeldBytes = 64 << 10 })
	big := append([]byte(`{"id":"evt_1","type":"x","pad":"`), append(bytes.Repeat([]byte("x"), 100<<10), `"}`...)...)
	a := e.post(big, sign(big))
	require.Equal(t, 503, a.status)
	require.Equal(t, "unavailable", a.problem(t).Code)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Equal(t, 200, e.post([]byte(subscriptionCreated), sign([]byte(subscriptionCreated))).status)
	require.Zero(t, e.metric("webhooks_ingest_held_bytes"))
}

// 413 comes when the edge has read on for 5 s, although the client may take longer to be given up.
func TestABodyThatIsTooLargeIsRefusedAlthoughItStalls(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for name, request := range map[string]string{
		"announced":            "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 5242880\r\n\r\n" + strings.Repeat("x", 1000),
		"announced to the API": "POST /v1/orgs/o/endpoints HTTP/1.1\r\nHost: x\r\nContent-Length: 5242880\r\n\r\n" + strings.Repeat("x", 1000),
		"in chunks":            "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n500000\r\n" + strings.Repeat("x", 1<<20+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := e.dial()
			begun := time.Now()
			_, err := io.WriteString(conn, request)
			require.NoError(t, err)
			require.Equal(t, "body_too_large", readAnswer(t, bufio.NewReader(conn)).problem(t).Code)
			require.Less(t, time.Since(begun), 9*time.Second)
		})
	}
}

func TestExpectContinueIsRefusedBeforeTheBody(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for name, c := range map[string]struct {
		line, length, code string
	}{
		"too large":            {"POST /webhooks/stripe", "5242880", "body_too_large"},
		"too large to the API": {"POST /v1/orgs/o/endpoints", "5242880", "body_too_large"},
		"unknown source":       {"POST /webhooks/x", "10", "unknown_source"},
		"not by POST":          {"PUT /webhooks/stripe", "10", "method_not_allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			begun := time.Now()
			_, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %s\r\n\r\n", c.line, c.length)
			require.NoError(t, err)
			r := bufio.NewReader(conn)
			a := readAnswer(t, r)
			require.Equal(t, c.code, a.problem(t).Code)
			require.Less(t, time.Since(begun), 4*time.Second)
			_, err = r.ReadByte()
			require.ErrorIs(t, err, io.EOF, "the connection is closed")
		})
	}
}

func TestChunksThatCannotBeReadAreMalformed(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	head := "POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, chunks := range map[string]string{
		"size is no number":     "zz\r\n{}\r\n0\r\n\r\n",
		"size is negative":      "-1\r\n{}\r\n0\r\n\r\n",
		"size is far too large": "fffffffffffffffffff\r\n{}",
		"second size":           "2\r\n{}\r\nzz\r\n",
		"longer than its size":  "1\r\n{}\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := e.dial()
			begun := time.Now()
			_, err := io.WriteString(conn, head+chunks)
			require.NoError(t, err)
			r := bufio.NewReader(conn)
			a := readAnswer(t, r)
			require.Equal(t, 400, a.status)
			require.Equal(t, "malformed_body", a.problem(t).Code)
			require.Less(t, time.Since(begun), 4*time.Second)
			_, err = r.ReadByte()
			require.ErrorIs(t, err, io.EOF, "the connection is closed")
		})
	}
	require.Zero(t, e.metric("webhooks_ingest_held_bytes"))
}

func TestOnlyTheExactPathNamesASource(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	body := subscriptionCreated
	for path, want := range map[string]int{
		"/webhooks/stripe":                200,
		"/webhooks/stripe?a=/../b":        200,
		"http://x/webhooks/stripe":        200,
		"/webhooks//stripe":               404,
		"//webhooks/stripe":               404,
		"/webhooks/x/../stripe":           404,
		"/x/../webhooks/stripe":           404,
		"/webhooks/./stripe":              404,
		"/webhooks/%73tripe":              404,
		"/%77ebhooks/stripe":              404,
		"/webhooks/stripe/":               404,
		"/webhooks/":                      404,
		"/webhooks/../v1/orgs/o/events/e": 404,
	} {
		t.Run(path, func(t *testing.T) {
			conn := e.dial()
			_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nStripe-Signature: %s\r\nContent-Length: %d\r\n\r\n%s", path, sign([]byte(body)), len(body), body)
			require.NoError(t, err)
			a := readAnswer(t, bufio.NewReader(conn))
			require.Equal(t, want, a.status)
			if want == 404 {
				require.Equal(t, "unknown_source", a.problem(t).Code)
			}
		})
	}
}

func TestRequestsAreForwarded(t *testing.T) {
	e := startReady(t, testenv.FakeKafka(t))
	for path, want := range map[string]string{
		"/v1/orgs/o/deliveries":               "deliverer",
		"/v1/orgs/o/deliveries/dlv_1":         "deliverer",
		"/v1/orgs/o/deliveries/dlv_1/more":    "deliverer",
		"/v1/orgs/o/events/evt_1":             "deliverer",
		"/v1/orgs/o/ledger?since=x":           "deliverer",
		"/v1/orgs/o/replays":                  "deliverer",
		"/settings/webhooks":                  "deliverer",
		"/v1/orgs/o/entitlements":             "processor",
		"/v1/orgs/o/billing/audit":            "processor",
		"/v1/orgs/o/endpoints":                "processor",
		"/v1/orgs/o/endpoints/ep_1":           "processor",
		"/v1/orgs/o/connections":              "processor",
		"/v1/event-types":                     "processor",
		"/openapi.json":                       "processor",
		"/":                                   "processor",
		"/webhooks":                           "processor",
		"/v1/orgs/o":                          "processor",
		"/v1/orgs/o/endpoints/ep_1/test/more": "processor",
	} {
		a := e.do(e.request(http.MethodGet, path, nil))
		require.Contains(t, string(a.body), `"room":"`+want+`"`, path)
		require.NotEmpty(t, a.header.Get("X-Request-Id"), path)
	}
	a := e.do(e.request(http.MethodPost, "/v1/orgs/o/replays", []byte(`{"a":1}`)))
	require.Contains(t, string(a.body), `{\"a\":1}`, "with their body")
	for _, path := range []string{"/v1/orgs/o/deliveries/dlv_1/retry", "/v1/orgs/o/deliveries/dlv_1/cancel", "/v1/orgs/o/endpoints/ep_1/test"} {
		require.Equal(t, 401, e.do(e.request(http.MethodPost, path, nil)).status, "%s is the edge's own", path)
	}
}
