package ingest

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest/produce"
)

// The server streams request bodies: a handler is called once the headers are there, so that a request is judged in the
// order of CONTRACT §2, and a body is read straight into the memory that goes to Kafka.

const (
	// prefetch is how much of a body fasthttp waits for before it calls a handler, the least it allows: by default it
	// waits for 8 KiB, and a client that announces too much and then stalls is told of its slowness instead.
	prefetch = 1
	// firstRead is how much is reserved for a body before its bytes have arrived: a client cannot make the edge hold
	// much more than it has sent.
	firstRead = 16 << 10
	// drainBytes and drainTime bound what is read of a body that nobody wants, so that its sender gets to read the
	// answer: closing a connection with unread bytes resets it, and a reset takes the answer along.
	drainBytes = 8 << 20
	drainTime  = 5 * time.Second
)

var (
	errTooLarge = errors.New("body is larger than allowed")
	errNoBudget = errors.New("too many bodies are in memory")
	errTimeout  = errors.New("body did not arrive in time")
	errCut      = errors.New("body ended early")
	errChunks   = errors.New("body is not in chunks as announced")
)

// readBody reads the request's body into first, which has firstRead bytes or is nil, and into memory of its own where
// that is not enough. reserved bytes of the budget are the caller's to give back, in case of an error too.
func readBody(ctx *fasthttp.RequestCtx, limit int, budget *produce.Budget, first []byte) (body []byte, reserved int64, err error) {
	length := ctx.Request.Header.ContentLength()
	stream := ctx.RequestBodyStream()
	// Before the stream: there is none of a body that was not asked for (Expect: 100-continue).
	if length > limit {
		return nil, 0, errTooLarge
	}
	if length == 0 || stream == nil {
		return nil, 0, nil
	}
	if first == nil {
		first = make([]byte, firstRead)
	}
	size := min(len(first), limit+1)
	if length > 0 {
		size = min(size, length)
	}
	body = first[:0]
	for taken := 0; ; {
		// What first has beyond size is held too.
		held := max(size, len(first))
		if !budget.Take(int64(held - taken)) {
			return nil, reserved, errNoBudget
		}
		taken, reserved = held, int64(held)
		if size > cap(body) {
			body = append(make([]byte, 0, size), body...)
		}
		n, err := io.ReadFull(stream, body[len(body):size])
		body = body[:len(body)+n]
		if len(body) == length {
			return body, reserved, nil
		}
		switch {
		case err == nil && len(body) > limit:
			return nil, reserved, errTooLarge
		case err == nil:
			// One more than the limit, to see a chunked body pass it.
			size = min(2*size, limit+1)
			if length > 0 {
				size = min(size, length)
			}
		case length < 0 && (err == io.EOF || err == io.ErrUnexpectedEOF) && ended(stream):
			return body, reserved, nil
		default:
			return nil, reserved, readError(err)
		}
	}
}

// ended tells the end of a chunked body, which reads as io.EOF again and again, from a connection that broke within a
// chunk. One that broke between two chunks looks like the end; what is missing then is missed by the signature.
func ended(stream io.Reader) bool {
	var one [1]byte
	_, err := stream.Read(one[:])
	return err == io.EOF
}

// readError tells a connection that stalled or broke from chunks that cannot be read.
func readError(err error) error {
	var netErr net.Error
	switch {
	case errors.As(err, &netErr) && netErr.Timeout():
		return errTimeout
	case errors.As(err, &netErr), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return errCut
	}
	return errChunks
}

// leave deals with what is left of a body that could not be read.
func leave(ctx *fasthttp.RequestCtx, err error) {
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, errNoBudget):
		drain(ctx)
	case errors.Is(err, errChunks):
		// Where the body ends is not known.
		closeGently(ctx, time.Now().Add(drainTime))
	default:
		ctx.SetConnectionClose()
	}
}

// drain reads and drops the rest of a body, so that the answer can be read. Where it does not come to the end, the
// connection is closed after the answer, gently.
func drain(ctx *fasthttp.RequestCtx) {
	stream := ctx.RequestBodyStream()
	if stream == nil || ctx.Response.ConnectionClose() {
		return
	}
	until := time.Now().Add(drainTime)
	if ctx.SetReadDeadline(until) == nil {
		if _, err := io.CopyN(io.Discard, stream, drainBytes); err == io.EOF {
			return
		}
	}
	closeGently(ctx, until)
}

// closeGently has the connection closed after the answer, and what the client sends until then dropped.
func closeGently(ctx *fasthttp.RequestCtx, until time.Time) {
	ctx.SetConnectionClose()
	if c, ok := ctx.Conn().(*gentleConn); ok {
		c.until.Store(until.UnixNano())
	}
}
