package sender

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// attempt is one Send while it runs.
type attempt struct {
	s        *Sender
	d        *Destination
	m        *Message
	deadline time.Time
	res      Result
}

func (a *attempt) fail(class Class, err error) {
	a.res.Class, a.res.Err = class, err
}

// run makes the request, once more when the connection it was written to had been closed before.
func (a *attempt) run() {
	h := a.s.hosts.acquire(a.d.key, a.res.Started)
	defer a.s.hosts.release(h)
	stale := a.exchange(h.client, false)
	if !stale {
		return
	}
	if !time.Now().Before(a.deadline) {
		a.fail(TimeoutTotal, errors.New("no time left after a stale connection"))
		return
	}
	a.res.Resent, a.res.Class, a.res.Err = true, None, nil
	a.exchange(h.client, true)
}

// exchange writes the request to a connection and reads the answer. It reports true when a connection from before
// turned out to be closed without a byte of answer.
func (a *attempt) exchange(pool *fasthttp.HostClient, fresh bool) (stale bool) {
	cc, err := pool.AcquireConn(time.Until(a.deadline), false)
	for err == nil && fresh && cc.Conn().(*conn).uses > 0 {
		// Its siblings were idle as long: all are let go rather than tried one by one.
		pool.CloseConn(cc)
		cc, err = pool.AcquireConn(time.Until(a.deadline), false)
	}
	if err != nil {
		a.failDial(err)
		return false
	}
	c := cc.Conn().(*conn)
	reused := c.uses > 0
	if !reused {
		a.res.Timings.DNS, a.res.Timings.Connect, a.res.Timings.TLS = c.dns, c.connect, c.tls
	}
	c.begin()
	keep := a.talk(c)
	if keep {
		pool.ReleaseConn(cc)
		return false
	}
	pool.CloseConn(cc)
	return reused && c.read == 0 && a.res.Class == Reset
}

func (a *attempt) failDial(err error) {
	var dial *dialError
	if !errors.As(err, &dial) {
		a.fail(TimeoutTotal, err)
		return
	}
	a.res.Timings.DNS, a.res.Timings.Connect, a.res.Timings.TLS = dial.dns, dial.conn, dial.tls
	a.fail(dial.class, dial.err)
}

// talk does the exchange on c and reports whether c may be used again.
func (a *attempt) talk(c *conn) (keep bool) {
	begun := time.Now()
	defer func() { a.timeAnswer(c, begun) }()
	if err := c.SetDeadline(a.deadline); err != nil {
		a.fail(Reset, err)
		return false
	}
	writeErr := a.write(c)
	if writeErr != nil && isTimeout(writeErr) {
		a.fail(TimeoutHeaders, writeErr)
		return false
	}
	// A receiver may answer and hang up before it has read everything (413, for one): the answer counts.
	return a.read(c) && writeErr == nil
}

func (a *attempt) timeAnswer(c *conn, begun time.Time) {
	if c.read == 0 {
		a.res.Timings.FirstByte = time.Since(begun)
		return
	}
	a.res.Timings.FirstByte = c.firstRead.Sub(begun)
	a.res.Timings.Body = time.Since(c.firstRead)
}

// Buffers are shared by all hosts: what is in use is bounded by the attempts in flight, not by the number of hosts.
var (
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 8<<10) }}
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, MaxHeaderBytes) }}
)

func (a *attempt) write(c *conn) error {
	req := fasthttp.AcquireRequest()
	defer fasthttp.ReleaseRequest(req)
	a.d.fill(req, a.m, a.res.Started)
	w := writers.Get().(*bufio.Writer)
	w.Reset(c)
	err := req.Write(w)
	if err == nil {
		err = w.Flush()
	}
	w.Reset(nil)
	writers.Put(w)
	return err
}

// maxInterim bounds the 1xx answers that may stand before the real one.
const maxInterim = 8

// read takes the answer and reports whether the connection is left where the next answer would begin.
func (a *attempt) read(c *conn) (keep bool) {
	r := readers.Get().(*bufio.Reader)
	r.Reset(c)
	resp := fasthttp.AcquireResponse()
	defer func() {
		// The stream, if any, refers to the reader: it goes first.
		fasthttp.ReleaseResponse(resp)
		r.Reset(nil)
		readers.Put(r)
	}()
	for interim := 0; ; interim++ {
		// fasthttp takes status 000 for one that was not set, and so for 200.
		zero := startsWithStatusZero(r)
		if err := resp.Header.Read(r); err != nil {
			a.failHeaders(c, err)
			return false
		}
		status := resp.StatusCode()
		if zero {
			status = 0
		}
		if status >= 200 {
			break
		}
		if status < 100 || status == fasthttp.StatusSwitchingProtocols || interim == maxInterim {
			a.fail(Protocol, errors.New("no final answer"))
			return false
		}
	}
	a.res.StatusCode = resp.StatusCode()
	a.res.Class = classOfStatus(a.res.StatusCode)
	if a.res.Class != None {
		a.res.RetryAfter = parseRetryAfter(resp.Header.Peek(fasthttp.HeaderRetryAfter), time.Now())
	}
	whole := a.readBody(c, r, resp)
	return whole && !resp.ConnectionClose() && r.Buffered() == 0 && c.readErr == nil
}

// startsWithStatusZero waits for the answer's first bytes; that there are none is Header.Read's to find.
func startsWithStatusZero(r *bufio.Reader) bool {
	line, _ := r.Peek(len("HTTP/1.1 000"))
	return bytes.HasSuffix(line, []byte(" 000"))
}

// failHeaders judges an answer that has no status.
func (a *attempt) failHeaders(c *conn, err error) {
	var small *fasthttp.ErrSmallBuffer
	switch {
	case c.readErr != nil && isTimeout(c.readErr):
		a.fail(TimeoutHeaders, c.readErr)
	case errors.As(err, &small):
		a.fail(TooLarge, errors.New("header block over the limit"))
	case c.readErr == nil:
		a.fail(Protocol, errors.New("not an HTTP/1.1 answer"))
	case isTLSAlert(c.readErr):
		a.fail(TLS, c.readErr)
	case errors.Is(c.readErr, io.EOF), isReset(c.readErr):
		a.fail(Reset, c.readErr)
	default:
		a.fail(Protocol, c.readErr)
	}
}

// isTLSAlert: in TLS 1.3 the peer refuses a handshake after our side has taken it for done.
func isTLSAlert(err error) bool {
	var alert tls.AlertError
	var op *net.OpError
	var record tls.RecordHeaderError
	return errors.As(err, &alert) || errors.As(err, &op) && op.Op == "remote error" || errors.As(err, &record)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
}
