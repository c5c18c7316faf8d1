package sender

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Resolver finds the addresses of a name. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// dialer makes connections to one peer, each by itself: resolved, checked and verified anew.
type dialer struct {
	cfg Config
	key hostKey
	// tls is nil for http.
	tls *tls.Config
}

// dialError says in which phase a connection could not be made, and how long the phases took.
type dialError struct {
	class Class
	err   error
	dns   time.Duration
	conn  time.Duration
	tls   time.Duration
}

func (e *dialError) Error() string { return e.class.String() + ": " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial makes a connection within timeout. Its error is a *dialError.
func (d *dialer) dial(timeout time.Duration) (net.Conn, error) {
	start := time.Now()
	deadline := start.Add(timeout)
	addrs, err := d.resolve(deadline)
	dns := time.Since(start)
	if err != nil {
		return nil, &dialError{class: DNS, err: err, dns: dns}
	}
	start = time.Now()
	raw, err := d.connect(addrs, earlier(deadline, start.Add(d.cfg.ConnectTimeout)))
	connect := time.Since(start)
	if err != nil {
		return nil, &dialError{class: connectClass(err), err: err, dns: dns, conn: connect}
	}
	if d.tls == nil {
		return &conn{Conn: raw, dns: dns, connect: connect}, nil
	}
	start = time.Now()
	secured, err := d.handshake(raw, earlier(deadline, start.Add(d.cfg.TLSTimeout)))
	took := time.Since(start)
	if err != nil {
		return nil, &dialError{class: handshakeClass(err), err: err, dns: dns, conn: connect, tls: took}
	}
	return &conn{Conn: secured, dns: dns, connect: connect, tls: took}, nil
}

// resolve asks for the absolute name: with the search domains of this machine, a merchant's "db" would be found inside.
func (d *dialer) resolve(deadline time.Time) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(d.key.name); err == nil {
		return []netip.Addr{addr}, nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	addrs, err := d.cfg.Resolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(d.key.name, ".")+".")
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", d.key.name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: no address", d.key.name)
	}
	return addrs, nil
}

// connect tries the addresses in their order until one takes the connection, with an equal share of the time that is
// left for each. A blocked address does not stop the others, but is what counts when none connects.
func (d *dialer) connect(addrs []netip.Addr, deadline time.Time) (net.Conn, error) {
	_, portText, err := net.SplitHostPort(d.key.addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", d.key.addr, err)
	}
	var worst error
	for i, addr := range addrs {
		left := time.Until(deadline)
		if left <= 0 {
			break
		}
		nd := net.Dialer{Timeout: left / time.Duration(len(addrs)-i), ControlContext: d.control}
		c, err := nd.DialContext(context.Background(), "tcp", net.JoinHostPort(addr.Unmap().String(), portText))
		if err == nil {
			return c, nil
		}
		var blocked *blockedError
		if worst == nil || errors.As(err, &blocked) {
			worst = err
		}
	}
	if worst == nil {
		worst = context.DeadlineExceeded
	}
	return nil, worst
}

// blockedError marks a refusal of the guard among the errors of a dial.
type blockedError struct{ err error }

func (e *blockedError) Error() string { return e.err.Error() }
func (e *blockedError) Unwrap() error { return e.err }

// control sees the address that the system is about to connect to: nothing can change between check and use.
func (d *dialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &blockedError{fmt.Errorf("address %q: %w", address, err)}
	}
	if err := d.cfg.Guard.CheckDial(d.key.secure, ap); err != nil {
		return &blockedError{err}
	}
	return nil
}

func (d *dialer) handshake(raw net.Conn, deadline time.Time) (net.Conn, error) {
	c := tls.Client(raw, d.tls)
	err := c.SetDeadline(deadline)
	if err == nil {
		err = c.Handshake()
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

// connectClass: what is neither blocked nor out of time had no listener, no route or no permission at the far end.
func connectClass(err error) Class {
	var blocked *blockedError
	switch {
	case errors.As(err, &blocked):
		return Blocked
	case isTimeout(err):
		return TimeoutConnect
	case errors.Is(err, syscall.ECONNRESET):
		return Reset
	}
	return Refused
}

// handshakeClass: a peer that hangs up before the handshake is over has failed at TLS, whatever its reason.
func handshakeClass(err error) Class {
	if isTimeout(err) {
		return TimeoutTLS
	}
	return TLS
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
