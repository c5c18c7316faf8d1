package sender

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"
)

// readBody reads what is allowed of the body, keeps its beginning, and reports whether it came whole. How a body fails
// counts only where the status says success: any other status is the better reason.
func (a *attempt) readBody(c *conn, r *bufio.Reader, resp *fasthttp.Response) (whole bool) {
	if !bodyExpected(resp) {
		return true
	}
	resp.StreamBody = true
	if err := resp.ReadBody(r, 0); err != nil {
		a.failBody(c, err)
		return false
	}
	defer func() { _ = resp.CloseBodyStream() }()
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	kept, err := a.drain(resp.BodyStream(), buf)
	a.res.Excerpt = excerpt(buf.head[:kept])
	if err == nil && resp.Header.ContentLength() == -1 && c.readErr != nil {
		// fasthttp takes a connection that ends between two chunks for the end of the body.
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		a.failBody(c, err)
	}
	return err == nil
}

// buffer is what reading a body needs.
type buffer struct {
	head    [MaxExcerptBytes]byte
	scratch [4096]byte
}

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func bodyExpected(resp *fasthttp.Response) bool {
	status := resp.StatusCode()
	return status != fasthttp.StatusNoContent && status != fasthttp.StatusNotModified && resp.Header.ContentLength() != 0
}

var errTooLarge = errors.New("body over the limit")

// drain reads the body to its end or its limit; buf.head takes its beginning.
func (a *attempt) drain(body io.Reader, buf *buffer) (kept int, err error) {
	for {
		n, err := body.Read(buf.scratch[:])
		kept += copy(buf.head[kept:], buf.scratch[:n])
		a.res.ResponseBytes += n
		switch {
		case err == io.EOF:
			return kept, nil
		case err != nil:
			return kept, err
		case a.res.ResponseBytes > MaxBodyBytes:
			return kept, errTooLarge
		}
	}
}

func (a *attempt) failBody(c *conn, err error) {
	if a.res.Class != None {
		return
	}
	switch {
	case errors.Is(err, errTooLarge):
		a.fail(TooLarge, err)
	case c.readErr != nil && isTimeout(c.readErr):
		a.fail(a.bodyTimeout(c), c.readErr)
	case c.readErr != nil:
		a.fail(Reset, c.readErr)
	default:
		a.fail(Protocol, err)
	}
}

// bodyTimeout tells a receiver that fell silent from one that drips: silence for half the attempt's time is silence.
func (a *attempt) bodyTimeout(c *conn) Class {
	if a.deadline.Sub(c.lastRead) >= a.d.Timeout/2 {
		return TimeoutBody
	}
	return TimeoutTotal
}

// excerpt copies the beginning of a body as valid UTF-8 of at most MaxExcerptBytes. A rune that the limit cuts is left
// out; other invalid bytes become U+FFFD.
func excerpt(head []byte) []byte {
	if len(head) == 0 {
		return nil
	}
	if len(head) == MaxExcerptBytes {
		head = dropCutRune(head)
	}
	if utf8.Valid(head) {
		return append([]byte(nil), head...)
	}
	text := []byte(strings.ToValidUTF8(string(head), "\uFFFD"))
	if len(text) > MaxExcerptBytes {
		text = dropCutRune(text[:MaxExcerptBytes])
	}
	return text
}

// dropCutRune removes the beginning of a rune from the end of b.
func dropCutRune(b []byte) []byte {
	for back := 1; back < utf8.UTFMax && back <= len(b); back++ {
		start := len(b) - back
		if utf8.RuneStart(b[start]) {
			if !utf8.FullRune(b[start:]) {
				return b[:start]
			}
			return b
		}
	}
	return b
}

// parseRetryAfter reads a Retry-After header (RFC 9110 §10.2.3): seconds, of which receivers also send fractions (rounded
// up), or a date. What is absent, past or unreadable is the zero time; what is later than MaxRetryAfter is cut to it.
func parseRetryAfter(value []byte, now time.Time) time.Time {
	text := strings.TrimSpace(string(value))
	if text == "" {
		return time.Time{}
	}
	var at time.Time
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if !(seconds > 0) {
			return time.Time{}
		}
		seconds = math.Min(math.Ceil(seconds), MaxRetryAfter.Seconds())
		at = now.Add(time.Duration(seconds) * time.Second)
	} else if at, err = http.ParseTime(text); err != nil || !at.After(now) {
		return time.Time{}
	}
	return earlier(at, now.Add(MaxRetryAfter))
}
