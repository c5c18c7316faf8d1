package engine

import (
	"io"
	"net"
	"sync"
)

// relay stands between clients and the engine's own port. The engine is clickhouse-local, which has no handler for a
// connection that is reset: it aborts the whole process. So whatever becomes of a client, a SIGKILL too, the engine sees a
// connection that was closed in good order, and what it still says is read to the end.
type relay struct {
	target string

	mu      sync.Mutex
	ended   bool
	engines map[*net.TCPConn]struct{}
}

func newRelay(target string) *relay {
	return &relay{target: target, engines: map[*net.TCPConn]struct{}{}}
}

// serve accepts until the listener is closed.
func (r *relay) serve(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		go r.carry(client)
	}
}

func (r *relay) carry(client net.Conn) {
	defer client.Close()
	conn, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer conn.Close()
	engine := conn.(*net.TCPConn)
	if !r.enter(engine) {
		return
	}
	defer r.leave(engine)
	go func() {
		_, _ = io.Copy(engine, client)
		_ = engine.CloseWrite()
	}()
	if _, err := io.Copy(client, engine); err != nil {
		_, _ = io.Copy(io.Discard, engine)
	}
}

func (r *relay) enter(engine *net.TCPConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.engines[engine] = struct{}{}
	return !r.ended
}

func (r *relay) leave(engine *net.TCPConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.engines, engine)
}

// end tells the engine that no client has anything more to say, so that it need not wait for idle ones.
func (r *relay) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for engine := range r.engines {
		_ = engine.CloseWrite()
	}
}
