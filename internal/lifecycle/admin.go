package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// checkTimeout bounds all checks of one /readyz together.
	checkTimeout = 2 * time.Second
	// headerTimeout keeps a silent client from holding a connection.
	headerTimeout = 10 * time.Second
	// adminDrain bounds the wait for open admin requests at the end; a profile that is being taken is cut off.
	adminDrain = time.Second
)

// Status is Process.Status.
type Status func(ctx context.Context) (checks map[string]error, ready bool)

// Admin answers the operators: /metrics, /healthz (the process is alive), /readyz (it does useful work: 200 or 503 and
// what each stage says) and /debug/pprof/. It lives longer than the stages, so that their stop can be watched.
type Admin struct {
	server *http.Server
	ln     net.Listener
}

// NewAdmin takes over ln.
func NewAdmin(ln net.Listener, metrics prometheus.Gatherer, status Status) *Admin {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { readyz(w, r, status) })
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &Admin{ln: ln, server: &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}}
}

// Run serves until ctx ends.
func (a *Admin) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- a.server.Serve(a.ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", a.ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminDrain)
	defer cancel()
	if err := a.server.Shutdown(drain); errors.Is(err, context.DeadlineExceeded) {
		return a.server.Close()
	} else if err != nil {
		return fmt.Errorf("stop serving on %s: %w", a.ln.Addr(), err)
	}
	return nil
}

func readyz(w http.ResponseWriter, r *http.Request, status Status) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	checks, ready := status(ctx)
	body := struct {
		Ready  bool              `json:"ready"`
		Checks map[string]string `json:"checks"`
	}{ready, make(map[string]string, len(checks))}
	for name, err := range checks {
		body.Checks[name] = "ok"
		if err != nil {
			body.Checks[name] = err.Error()
		}
	}
	code := http.StatusOK
	if !ready {
		code = http.StatusServiceUnavailable
	}
	answer(w, code, body)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that has gone away is no concern of ours.
	_ = json.NewEncoder(w).Encode(body)
}
