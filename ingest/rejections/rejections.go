// Package rejections makes refused requests visible (DESIGN §2, promise 8): each is a row for ClickHouse, or is counted
// in the weight of one, and never waits for anything.
//
// A class is a (source, reason). Up to PerSecond rows of a class are made a second; what comes beyond, and what finds the
// queue full or Kafka away, is folded: its weight goes to the class's next row, or to a copy of its last one within a
// second. So the weights of all rows add up to the refusals exactly, under attack too; only a process that is killed
// takes along what it had not handed over (the metric has counted it).
//
// Rows never hold anything of a body, nor of a header but the user agent.
package rejections

import (
	"context"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/ingest/source"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Unknown is the source of requests that name none that exists.
const Unknown = "unknown"

// Defaults.
const (
	defaultPerSecond = 20
	defaultQueue     = 1024
	maxUserAgent     = 256
	foldEvery        = time.Second
)

// Config bounds what is recorded.
type Config struct {
	// Sources are the names there are; Unknown is added.
	Sources []string
	// PerSecond is how many rows a class makes a second; default 20.
	PerSecond int
	// Queue is how many rows may be on their way; default 1,024.
	Queue int
	// Worker names this process in the rows.
	Worker string
}

// Send hands an encoded row over and has done called when its fate is known. It must not block.
type Send func(row []byte, done func(error))

// Request is what is kept of a refused request.
type Request struct {
	RemoteIP  netip.Addr
	UserAgent []byte
	// ContentLength is as declared; negative where it was not.
	ContentLength int
}

// Recorder takes refusals. Refused may be called from many goroutines.
type Recorder struct {
	cfg   Config
	send  Send
	log   *slog.Logger
	slots chan struct{}

	mu      sync.Mutex
	classes map[classKey]*class
}

type classKey struct {
	source string
	reason source.Reason
}

// class is the state of one (source, reason).
type class struct {
	// second is the Unix second that made counts.
	second int64
	made   int
	// folded is the weight that no row has taken yet; last is what a row for it looks like.
	folded uint64
	last   *webhooksv1.RejectionRow
}

// New makes a Recorder.
func New(cfg Config, send Send, log *slog.Logger) *Recorder {
	if cfg.PerSecond <= 0 {
		cfg.PerSecond = defaultPerSecond
	}
	if cfg.Queue <= 0 {
		cfg.Queue = defaultQueue
	}
	r := &Recorder{cfg: cfg, send: send, log: log, slots: make(chan struct{}, cfg.Queue), classes: map[classKey]*class{}}
	for _, name := range append([]string{Unknown}, cfg.Sources...) {
		for _, reason := range source.Reasons() {
			r.classes[classKey{name, reason}] = &class{}
		}
	}
	return r
}

// Refused records a refusal. A source that was not configured counts as Unknown.
func (r *Recorder) Refused(name string, reason source.Reason, req Request, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.classes[classKey{name, reason}]
	if c == nil {
		name = Unknown
		if c = r.classes[classKey{name, reason}]; c == nil {
			return
		}
	}
	c.folded++
	if second := now.Unix(); second != c.second {
		c.second, c.made = second, 0
	}
	// Under attack the row is not even built, but the first of its second is kept to carry what is folded.
	if c.made >= r.cfg.PerSecond {
		return
	}
	c.made++
	c.last = r.row(name, reason, req, now)
	r.flush(c)
}

// flush sends the class's last row with what is folded, when there is room on the way. The lock is held.
func (r *Recorder) flush(c *class) {
	if c.folded == 0 || c.last == nil {
		return
	}
	select {
	case r.slots <- struct{}{}:
	default:
		return
	}
	weight := min(c.folded, math.MaxUint32)
	c.folded -= weight
	c.last.Weight = uint32(weight)
	row, err := proto.Marshal(c.last)
	if err != nil {
		// Only text that is not UTF-8 fails, and there is none.
		row = nil
	}
	// The client may report at once, from this goroutine, which holds the lock.
	r.send(row, func(err error) { go r.sent(c, weight, err) })
}

// sent takes back the weight of a row that did not arrive, before it frees the row's place: Outstanding must never miss
// it.
func (r *Recorder) sent(c *class, weight uint64, err error) {
	if err != nil {
		r.mu.Lock()
		c.folded += weight
		r.mu.Unlock()
	}
	<-r.slots
}

// Run hands over what is folded, once a second, until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	tick := time.NewTicker(foldEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.flushAll()
		}
	}
}

func (r *Recorder) flushAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.classes {
		r.flush(c)
	}
}

// Drain hands over everything, waiting until ctx ends for what is on its way. It is called when no more refusals come.
func (r *Recorder) Drain(ctx context.Context) {
	for {
		r.flushAll()
		if r.Outstanding() == 0 {
			return
		}
		select {
		case <-ctx.Done():
			r.log.Warn("refusals were not recorded in ClickHouse; the metric has counted them", "outstanding", r.Outstanding())
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Outstanding is the number of rows on their way plus the weight that is folded; 0 when every refusal has its row.
func (r *Recorder) Outstanding() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := uint64(len(r.slots))
	for _, c := range r.classes {
		n += c.folded
	}
	return n
}

func (r *Recorder) row(name string, reason source.Reason, req Request, now time.Time) *webhooksv1.RejectionRow {
	ip := req.RemoteIP.As16()
	return &webhooksv1.RejectionRow{
		RejectedUnixMs: now.UnixMilli(), Source: name, Reason: string(reason), Status: uint32(reason.Status()),
		RemoteIp: ip[:], UserAgent: userAgent(req.UserAgent), ContentLength: uint64(max(req.ContentLength, 0)),
		Worker: r.cfg.Worker,
	}
}

// userAgent is what a client calls itself, cut, and made UTF-8.
func userAgent(raw []byte) string {
	s := strings.ToValidUTF8(string(raw[:min(len(raw), maxUserAgent)]), "\uFFFD")
	for len(s) > maxUserAgent {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
