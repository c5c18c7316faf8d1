package ingest

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

const (
	// lingerBytes bounds what is read after an answer was sent.
	lingerBytes = 24 << 20
	// maxLingering bounds the connections that linger at one time; beyond it they are just closed.
	maxLingering = 256
)

// gentleListener makes its connections gentle.
type gentleListener struct {
	net.Listener
	lingering chan struct{}
}

func newGentleListener(l net.Listener) *gentleListener {
	return &gentleListener{l, make(chan struct{}, maxLingering)}
}

// Accept implements net.Listener.
func (l *gentleListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn, nil
	}
	return &gentleConn{TCPConn: tcp, lingering: l.lingering}, nil
}

// gentleConn is a connection that may be closed while its client is still sending. Closing it at once would reset it,
// and a reset takes along the answer that the client has not read yet.
type gentleConn struct {
	*net.TCPConn
	lingering chan struct{}
	// until (Unix ns) is how long Close reads on; 0 does not.
	until atomic.Int64
}

// Close closes the connection; with until set it half closes it, and in the background drops what still comes until
// the client has closed or time is up.
func (c *gentleConn) Close() error {
	until := c.until.Swap(0)
	if until == 0 {
		return c.TCPConn.Close()
	}
	select {
	case c.lingering <- struct{}{}:
	default:
		return c.TCPConn.Close()
	}
	go func() {
		defer func() { <-c.lingering }()
		defer c.TCPConn.Close()
		if c.CloseWrite() == nil && c.SetReadDeadline(time.Unix(0, until)) == nil {
			_, _ = io.CopyN(io.Discard, c.TCPConn, lingerBytes)
		}
	}()
	return nil
}
