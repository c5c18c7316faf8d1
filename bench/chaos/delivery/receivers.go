package delivery

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/betterdata/webhooks/schemas"
)

// answer is what a receiver does with a request.
type answer int

const (
	ok answer = iota
	// slowly is 200 after a while, well before the time-out.
	slowly
	serverError
	throttle // 429 with Retry-After
	goneAway // 410
	// hang is nothing, until after the time-out.
	hang
	// cut closes the connection without an answer.
	cut
	// leave is 200, and then the connection is closed without having said so.
	leave
)

const (
	slowness   = 200 * time.Millisecond
	hangTime   = 2 * timeoutMS * time.Millisecond
	retryAfter = time.Second
)

// status is what was answered, 0 when nothing was.
func (a answer) status() int {
	switch a {
	case serverError:
		return http.StatusInternalServerError
	case throttle:
		return http.StatusTooManyRequests
	case goneAway:
		return http.StatusGone
	case hang, cut:
		return 0
	}
	return http.StatusOK
}

// attempt names what the deliverer says it is making.
type attempt struct {
	delivery string
	number   int
}

// request is one that came.
type request struct {
	arrived, ended time.Time
	answer         answer
	// connection is its number, of all that were made.
	connection int64
}

// receivers are the merchants' servers. They keep what came, by attempt.
type receivers struct {
	seed   uint64
	began  time.Time
	urls   []string
	kindOf func(endpoint string) (kind, int32)
	server []*http.Server
	healed atomic.Bool
	// connections counts those that were made. A port is another's a second after it was closed.
	connections atomic.Int64
	// arrivals counts the requests to prompt endpoints by partition.
	arrivals []atomic.Int64

	mu   sync.Mutex
	came map[attempt][]request
}

// connection is the key of its number.
type connection struct{}

// servers is on how many addresses the receivers listen.
const servers = 4

func listen(seed uint64, partitions int32) (*receivers, error) {
	r := &receivers{seed: seed, began: time.Now(), came: map[attempt][]request{}, arrivals: make([]atomic.Int64, partitions)}
	for n := range servers {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connection{}, r.connections.Add(1))
		}}
		if n == 0 {
			server.IdleTimeout = 500 * time.Millisecond // a merchant that lets no connection idle
		}
		r.server, r.urls = append(r.server, server), append(r.urls, "http://"+ln.Addr().String())
		go func() { _ = server.Serve(ln) }()
	}
	return r, nil
}

func (r *receivers) close() error {
	var errs []error
	for _, s := range r.server {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// ServeHTTP implements http.Handler.
func (r *receivers) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	arrived := time.Now()
	number, _ := strconv.Atoi(req.Header.Get("x-betterdata-attempt"))
	at := attempt{req.Header.Get("x-betterdata-delivery"), number}
	kind, partition := r.kindOf(strings.TrimPrefix(req.URL.Path, "/"))
	if kind == prompt {
		r.arrivals[partition].Add(1)
	}
	a := r.choose(kind, at, arrived)
	// Kept before it is answered: an answer that was given must be known.
	conn, _ := req.Context().Value(connection{}).(int64)
	place := r.keep(at, request{arrived: arrived, answer: a, connection: conn})
	if _, err := io.Copy(io.Discard, req.Body); err == nil {
		give(w, req, a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came[at][place].ended = time.Now()
}

func (r *receivers) keep(at attempt, req request) (place int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came[at] = append(r.came[at], req)
	return len(r.came[at]) - 1
}

func give(w http.ResponseWriter, req *http.Request, a answer) {
	switch a {
	case slowly:
		time.Sleep(slowness)
	case throttle:
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
	case hang:
		select {
		case <-req.Context().Done():
		case <-time.After(hangTime):
		}
		return
	case cut, leave:
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		if a == leave {
			_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
		}
		_ = conn.Close()
		return
	}
	w.WriteHeader(a.status())
}

// choose is drawn by delivery and number, so that a number that is sent again is answered alike, but for who is down.
func (r *receivers) choose(k kind, at attempt, now time.Time) answer {
	switch {
	case k == flaky && r.draw(at.delivery) < 5:
		return serverError // whatever the number, and also once healed
	case r.healed.Load() || k == prompt:
		return ok
	}
	draw := r.draw(at.delivery + strconv.Itoa(at.number))
	switch {
	case k == hanging && draw < 12:
		return hang
	case k == down && now.Sub(r.began)%(12*time.Second) < 3*time.Second:
		return serverError
	case k == hangsUp && draw < 40:
		return leave
	case k == gone && draw < 3:
		return goneAway
	case k == flaky, k == switched, k == doomed:
		return flakily(draw)
	}
	return ok
}

// draw is 0 to 99.
func (r *receivers) draw(of string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(of + strconv.FormatUint(r.seed, 10)))
	return h.Sum64() % 100
}

func flakily(draw uint64) answer {
	switch {
	case draw < 15:
		return serverError
	case draw < 25:
		return throttle
	case draw < 35:
		return cut
	case draw < 40:
		return slowly
	case draw < 43:
		return hang
	case draw < 50:
		return leave
	}
	return ok
}

// heal lets receivers answer 200 from now on, but for the deliveries that are to be exhausted.
func (r *receivers) heal() { r.healed.Store(true) }

// all are the requests that came. They are not added to any more.
func (r *receivers) all() map[attempt][]request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.came
}

// ends reports that a delivery of that status has ended.
func ends(status string) bool {
	return status == schemas.DeliveryDelivered || status == schemas.DeliveryDead
}
