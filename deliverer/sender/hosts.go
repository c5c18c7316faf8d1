package sender

import (
	"crypto/tls"
	"math"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// sessionCacheSize is how many TLS sessions are kept for resumption, over all hosts.
const sessionCacheSize = 4096

// hostKey is what connections may be shared within: the peer and how it proves who it is.
type hostKey struct {
	secure bool
	// name is the host without its port, as it is resolved and verified.
	name string
	// addr is host:port.
	addr string
}

// host is the pool of connections to one peer.
type host struct {
	client  *fasthttp.HostClient
	users   int
	lastUse time.Time
}

// hosts finds a peer's pool, and lets go those that nobody has used for a while.
type hosts struct {
	cfg      Config
	sessions tls.ClientSessionCache

	mu        sync.Mutex
	byKey     map[hostKey]*host
	lastSweep time.Time
}

func (h *hosts) init(cfg Config) {
	h.cfg = cfg
	h.sessions = tls.NewLRUClientSessionCache(sessionCacheSize)
	h.byKey = make(map[hostKey]*host)
	h.lastSweep = time.Now()
}

// acquire returns the pool of a peer, which stays until release.
func (h *hosts) acquire(key hostKey, now time.Time) *host {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byKey[key]
	if p == nil {
		p = &host{client: h.newClient(key)}
		h.byKey[key] = p
	}
	p.users++
	p.lastUse = now
	if now.Sub(h.lastSweep) > h.cfg.IdleHost {
		h.sweep(now)
	}
	return p
}

func (h *hosts) release(p *host) {
	h.mu.Lock()
	p.users--
	h.mu.Unlock()
}

// sweep runs with the lock held, once in IdleHost at most, so that its walk over all hosts costs nothing per request.
func (h *hosts) sweep(now time.Time) {
	h.lastSweep = now
	for key, p := range h.byKey {
		if p.users == 0 && now.Sub(p.lastUse) > h.cfg.IdleHost {
			p.client.CloseIdleConnections()
			delete(h.byKey, key)
		}
	}
}

func (h *hosts) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.byKey {
		p.client.CloseIdleConnections()
	}
}

// newClient makes the pool. Its own limits are out of the way: an endpoint's concurrency bounds its connections, and
// the dialer bounds the phases.
func (h *hosts) newClient(key hostKey) *fasthttp.HostClient {
	d := &dialer{cfg: h.cfg, key: key}
	if key.secure {
		d.tls = &tls.Config{
			ServerName:         key.name,
			MinVersion:         tls.VersionTLS12,
			RootCAs:            h.cfg.RootCAs,
			ClientSessionCache: h.sessions,
		}
	}
	return &fasthttp.HostClient{
		Addr:                key.addr,
		IsTLS:               key.secure,
		MaxConns:            math.MaxInt32,
		MaxIdleConnDuration: h.cfg.IdleConn,
		DialTimeout:         func(_ string, timeout time.Duration) (net.Conn, error) { return d.dial(timeout) },
	}
}
