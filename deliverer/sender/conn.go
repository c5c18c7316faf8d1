package sender

import (
	"net"
	"time"
)

// conn is a ready connection, TLS done, that remembers how it was made and watches what is read from it.
type conn struct {
	net.Conn
	dns, connect, tls time.Duration
	// uses counts the exchanges begun on it.
	uses int

	// Of the exchange that is running.
	read      int
	firstRead time.Time
	lastRead  time.Time
	readErr   error
}

// Handshake tells fasthttp.HostClient that TLS is done already.
func (c *conn) Handshake() error { return nil }

func (c *conn) begin() {
	c.uses++
	c.read, c.readErr = 0, nil
	c.firstRead, c.lastRead = time.Time{}, time.Time{}
}

// Read notes when bytes came and how reading ended: fasthttp reports every error on the first byte as end of file.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.lastRead = time.Now()
		if c.read == 0 {
			c.firstRead = c.lastRead
		}
		c.read += n
	}
	if err != nil {
		c.readErr = err
	}
	return n, err
}
