package sender_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// BenchmarkSend is one signed attempt of 3 kB over a connection that is there; the receiver, which does next to nothing,
// runs in the same process.
func BenchmarkSend(b *testing.B) {
	const size = 3000
	addr := raw(b, func(c net.Conn) {
		buf, have := make([]byte, 16<<10), 0
		for {
			n, err := c.Read(buf[have:])
			if err != nil {
				return
			}
			have += n
			if head := bytes.Index(buf[:have], []byte("\r\n\r\n")); head >= 0 && have >= head+4+size {
				have = 0
				_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			}
		}
	})
	d := destination(b, "http://"+addr+"/hook", 5*time.Second)
	s := newSender(b, nil)
	m := message()
	m.Body = make([]byte, size)
	b.ReportAllocs()
	for b.Loop() {
		if res := s.Send(d, m); !res.Success() {
			b.Fatal(res.Err)
		}
	}
	s.Close()
}
