package sender_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deliverer/sender"
)

// What a receiver answers to hurt us costs no more memory than an answer may, and no more time than the attempt has.
func TestHostileAnswersAreBounded(t *testing.T) {
	const (
		timeout = 2 * time.Second
		memory  = 4 << 20
	)
	bomb := bombOf(t, 256<<20)
	for _, tc := range []struct {
		name string
		addr string
		want sender.Class
	}{
		{"gigabyte body", endless(t, "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", "abcdefgh"), sender.TooLarge},
		{"body without an end", endless(t, "HTTP/1.1 200 OK\r\n\r\n", "abcdefgh"), sender.TooLarge},
		{"one chunk of a gigabyte", endless(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n", "abcdefgh"), sender.TooLarge},
		{"headers without an end", endless(t, "HTTP/1.1 200 OK\r\n", "X-A: b\r\n"), sender.TooLarge},
		{"one header without an end", endless(t, "HTTP/1.1 200 OK\r\nX-A: ", "bbbbbbbb"), sender.TooLarge},
		{"a status line without an end", endless(t, "HTTP/1.1 200 ", "OKOKOKOK"), sender.TooLarge},
		{"no line at all", endless(t, "", "abcdefgh"), sender.TooLarge},
		{"compressed bomb", answersAndCloses(t, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(bomb), bomb)), sender.None},
		{"interim answers without an end", endless(t, "", "HTTP/1.1 100 Continue\r\n\r\n"), sender.Protocol},
		{"drips headers", dripsAfter(t, "HTTP/1.1 200 OK\r\nX-A: "), sender.TimeoutHeaders},
		{"drips its body", dripsAfter(t, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"), sender.TimeoutTotal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, d := newSender(t, nil), destination(t, "http://"+tc.addr+"/", timeout)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			res := s.Send(d, message())
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			require.Equal(t, tc.want.String(), res.Class.String(), "error: %v", res.Err)
			require.Less(t, took, timeout+time.Second)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(memory), "bytes, the receiver's own included")
			require.LessOrEqual(t, len(res.Excerpt), sender.MaxExcerptBytes)
		})
	}
}

// bombOf compresses so many zeros.
func bombOf(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = io.CopyN(w, zeros{}, size)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.LessOrEqual(t, b.Len(), sender.MaxBodyBytes, "it is refused for what it holds or not at all")
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// dripsAfter answers a beginning and then a byte at a time.
func dripsAfter(t *testing.T, head string) string {
	return raw(t, func(c net.Conn) {
		if readRequest(c) != nil {
			return
		}
		_, err := io.WriteString(c, head)
		for err == nil {
			time.Sleep(20 * time.Millisecond)
			_, err = io.WriteString(c, "a")
		}
	})
}

// dials is a guard that remembers what was about to be dialled.
type dials struct {
	sender.Guard
	mu  sync.Mutex
	all []string
}

func (d *dials) CheckDial(secure bool, ap netip.AddrPort) error {
	d.mu.Lock()
	d.all = append(d.all, ap.String())
	d.mu.Unlock()
	return d.Guard.CheckDial(secure, ap)
}

// A receiver that our guard lets through must not lead us on to what it would not.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{"http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:9/", "//metadata.google.internal/", "/elsewhere"} {
			t.Run(fmt.Sprint(status, " to ", location), func(t *testing.T) {
				addr := answers(t, fmt.Sprintf("HTTP/1.1 %d Over There\r\nLocation: %s\r\nRefresh: 0; url=%s\r\nContent-Length: 0\r\n\r\n", status, location, location))
				guard := &dials{Guard: loopback()}
				s := newSender(t, func(c *sender.Config) { c.Guard = guard })
				res := s.Send(destination(t, "http://"+addr+"/", 2*time.Second), message())
				require.Equal(t, sender.HTTP3xx.String(), res.Class.String(), "error: %v", res.Err)
				require.Equal(t, []string{addr}, guard.all, "nothing else is dialled")
			})
		}
	}
}
