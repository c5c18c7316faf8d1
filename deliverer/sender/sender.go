// Package sender makes one attempt: a signed POST to a merchant's endpoint, bounded in time and memory whatever the
// receiver does, and judged by the classes of CONTRACT §5.
//
// A Destination is an endpoint made ready once a version: URL parsed, secrets opened, fixed headers rendered. Send
// takes it and a Message, and always returns a Result. Connections are kept per (scheme, host, port): a
// fasthttp.HostClient each, used as pool of connections only, since the request and the answer need hooks (timings,
// limits, the difference between a stale connection and a receiver that hangs up) that its Do does not give.
//
// It promises: the address is checked as it is dialled, every time; no redirect is followed and no proxy used; TLS is
// 1.2 or newer and verified; an attempt ends by its time-out; no more than MaxHeaderBytes and MaxBodyBytes of an
// answer are read and never decompressed. It must not decide what a result means for the delivery, and must not
// show errors to anyone but our own log.
package sender

import (
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"time"
)

const (
	// MaxHeaderBytes bounds the header block of an answer.
	MaxHeaderBytes = 16 << 10
	// MaxBodyBytes bounds what is read of an answer's body. A success with a larger one counts as TooLarge.
	MaxBodyBytes = 1 << 20
	// MaxExcerptBytes bounds what is kept of it (CONTRACT §5, responseExcerpt).
	MaxExcerptBytes = 1024
	// MaxRetryAfter bounds how far a receiver can push the next attempt (CONTRACT §5).
	MaxRetryAfter = 24 * time.Hour
)

// Guard says which URLs and addresses may be reached; internal/netguard is one.
type Guard interface {
	// ParseURL refuses what can be judged from the text, and returns the URL with its host as it is to be dialled.
	ParseURL(raw string) (*url.URL, error)
	// CheckDial judges the address that is about to be connected to.
	CheckDial(secure bool, ap netip.AddrPort) error
}

// Config is how attempts are made. The zero value of a field takes its default.
type Config struct {
	Guard Guard
	// ConnectTimeout and TLSTimeout bound their phases within an attempt's total time; 5 s each.
	ConnectTimeout time.Duration
	TLSTimeout     time.Duration
	// IdleConn is how long an unused connection is kept; 30 s, below the 60 s after which common servers close.
	IdleConn time.Duration
	// IdleHost is after how long without a request a host's pool is let go; 2 min.
	IdleHost time.Duration
	// RootCAs verify receivers; nil is the system's.
	RootCAs *x509.CertPool
	// Resolver finds addresses; nil is net.DefaultResolver.
	Resolver Resolver
}

// Sender makes attempts. It is safe for concurrent use.
type Sender struct {
	cfg   Config
	hosts hosts
}

// New makes a Sender.
func New(cfg Config) *Sender {
	cfg.ConnectTimeout = orDefault(cfg.ConnectTimeout, 5*time.Second)
	cfg.TLSTimeout = orDefault(cfg.TLSTimeout, 5*time.Second)
	cfg.IdleConn = orDefault(cfg.IdleConn, 30*time.Second)
	cfg.IdleHost = orDefault(cfg.IdleHost, 2*time.Minute)
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	s := &Sender{cfg: cfg}
	s.hosts.init(cfg)
	return s
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}

// Close lets all idle connections go. Attempts that are running end by themselves.
func (s *Sender) Close() { s.hosts.close() }

// Message is what one attempt sends.
type Message struct {
	EventID    string
	DeliveryID string
	// ReplayID is "" outside of replays.
	ReplayID string
	// Number of the attempt, from 1.
	Number uint32
	Body   []byte
	// Ready is when the attempt could have started, had there been room; the zero time is now.
	Ready time.Time
}

// Timings of an attempt's phases. A phase that did not happen is 0: a reused connection has no DNS, Connect and TLS.
type Timings struct {
	// Queue is from Message.Ready until Send began.
	Queue   time.Duration
	DNS     time.Duration
	Connect time.Duration
	TLS     time.Duration
	// FirstByte is from the request's first byte out to the answer's first byte in.
	FirstByte time.Duration
	// Body is from there to the end of the answer.
	Body time.Duration
}

// Result is how an attempt ended.
type Result struct {
	Started  time.Time
	Duration time.Duration
	Timings  Timings
	// StatusCode is 0 when no status line came.
	StatusCode int
	Class      Class
	// Excerpt is the beginning of the answer's body: valid UTF-8, at most MaxExcerptBytes.
	Excerpt []byte
	// ResponseBytes and RequestBytes count bodies; of the answer's, what was read.
	ResponseBytes int
	RequestBytes  int
	// RetryAfter is the earliest time the receiver wants to be asked again; zero when it did not say.
	RetryAfter time.Time
	// Resent says that the request was written a second time, because the connection kept from before turned out to be
	// closed: nobody can know whether the receiver saw the first.
	Resent bool
	// Err is what happened below HTTP. For our own log only.
	Err error
}

// Success reports a 2xx answer, read to its end.
func (r *Result) Success() bool { return r.Class == None }

// Ended is when the attempt ended; delays run from it.
func (r *Result) Ended() time.Time { return r.Started.Add(r.Duration) }

// Throttled reports an answer by which the receiver, or what stands before it, asks for fewer requests (429, 502, 504;
// Standard Webhooks 1.0.0).
func (r *Result) Throttled() bool {
	return r.StatusCode == 429 || r.StatusCode == 502 || r.StatusCode == 504
}

// Send makes one attempt and returns when it has ended, at the latest when the destination's time-out has passed.
func (s *Sender) Send(d *Destination, m *Message) Result {
	a := attempt{s: s, d: d, m: m}
	a.res.Started = time.Now()
	a.res.RequestBytes = len(m.Body)
	if !m.Ready.IsZero() {
		a.res.Timings.Queue = max(0, a.res.Started.Sub(m.Ready))
	}
	a.deadline = a.res.Started.Add(d.Timeout)
	if d.refusal != nil {
		a.fail(Blocked, d.refusal)
	} else {
		a.run()
	}
	a.res.Duration = time.Since(a.res.Started)
	return a.res
}
