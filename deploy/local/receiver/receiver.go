// Package receiver is `webhooks listen`: a merchant's endpoint for people who try the system and for tests. It verifies
// every signature, prints each delivery, and answers as it is told to: with success, with a failure, or not at all.
//
// Without a secret of its own it makes itself an endpoint through the management API of the running system and removes it
// at the end.
package receiver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/betterdata/webhooks/internal/signing"
)

// Stall is the answer that never comes.
const Stall = "stall"

// Config says where to receive and how to answer.
type Config struct {
	// Addr is "host:port"; port 0 picks a free one.
	Addr string
	// Secrets (whsec_…) or public keys (whpk_…), any of which a signature may fit; none: an endpoint is created.
	Secrets []string
	// Answer is a status code or Stall. ForwardTo, when set, gets each delivery instead and gives the answer.
	Answer, ForwardTo string
	// Tolerance is how far a timestamp may be off.
	Tolerance time.Duration

	// Org and Types are those of the endpoint that is created; API and Key open the management API, DataDir is where
	// they are read from when they are empty.
	Org               string
	Types             []string
	API, Key, DataDir string
}

const (
	// maxBody is above what is ever sent: data of at most 256 KiB.
	maxBody = 4 << 20
	// forwardTimeout bounds one forwarded request, headerTimeout the arrival of one's headers.
	forwardTimeout = 30 * time.Second
	headerTimeout  = 10 * time.Second
	// stopTimeout bounds the end: open requests, then the removal of the endpoint.
	stopTimeout = 5 * time.Second
)

// Listen receives until ctx ends.
func Listen(ctx context.Context, cfg Config, out io.Writer) (err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", cfg.Addr, err)
	}
	r := &receiver{cfg: cfg, out: out, stopping: ctx.Done()}
	url := "http://" + ln.Addr().String() + "/"
	if len(cfg.Secrets) == 0 {
		api, err := findManagement(ctx, cfg, out)
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		id, secret, err := api.createEndpoint(ctx, url)
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		defer func() { err = errors.Join(err, api.deleteEndpoint(context.WithoutCancel(ctx), id, out)) }()
		r.cfg.Secrets = []string{secret}
		fmt.Fprintf(out, "Endpoint %s of %s, for %s; secret %s\n", id, cfg.Org, strings.Join(cfg.Types, ", "), secret)
	}
	fmt.Fprintf(out, "Listening on %s; each delivery is %s.\n", url, r.manner())
	return r.serve(ctx, ln)
}

// receiver prints and answers.
type receiver struct {
	cfg      Config
	stopping <-chan struct{}

	mu  sync.Mutex
	out io.Writer
}

func (r *receiver) manner() string {
	switch {
	case r.cfg.ForwardTo != "":
		return "forwarded to " + r.cfg.ForwardTo
	case r.cfg.Answer == Stall:
		return "left without an answer"
	default:
		return "answered " + r.cfg.Answer
	}
}

func (r *receiver) serve(ctx context.Context, ln net.Listener) error {
	server := &http.Server{Handler: http.HandlerFunc(r.receive), ReadHeaderTimeout: headerTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if server.Shutdown(drain) != nil {
		return server.Close()
	}
	return nil
}

func (r *receiver) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		return
	}
	verdict, genuine := r.verify(req.Header, body)
	if !genuine {
		r.print(req, body, verdict, "400")
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.cfg.ForwardTo != "" {
		status, err := r.forward(req, body)
		if err != nil {
			verdict += ", forwarding failed: " + err.Error()
		}
		r.print(req, body, verdict, strconv.Itoa(status))
		w.WriteHeader(status)
		return
	}
	r.print(req, body, verdict, r.cfg.Answer)
	if r.cfg.Answer == Stall {
		select {
		case <-req.Context().Done():
		case <-r.stopping:
		}
		return
	}
	// The command line allows status codes only.
	status, _ := strconv.Atoi(r.cfg.Answer)
	w.WriteHeader(status)
}

// verify checks both signatures; at least one must be there, and none may be wrong.
func (r *receiver) verify(h http.Header, body []byte) (verdict string, genuine bool) {
	now := time.Now()
	standard := signing.VerifyStandard(signing.StandardHeaders{
		ID: h.Get(signing.HeaderID), Timestamp: h.Get(signing.HeaderTimestamp), Signature: h.Get(signing.HeaderSignature),
	}, r.cfg.Secrets, body, now, r.cfg.Tolerance)
	betterData := signing.VerifyBetterData(h.Get(signing.HeaderBetterData), r.secretsOnly(), body, now, r.cfg.Tolerance)
	// A public key verifies webhook-signature only.
	if len(r.secretsOnly()) == 0 {
		betterData = signing.ErrMissing
	}
	switch {
	case standard == nil && betterData == nil:
		return "signatures valid", true
	case standard == nil && errors.Is(betterData, signing.ErrMissing):
		return "webhook-signature valid", true
	case betterData == nil && errors.Is(standard, signing.ErrMissing):
		return "x-betterdata-signature valid", true
	default:
		return fmt.Sprintf("REFUSED: webhook-signature: %s, x-betterdata-signature: %s", said(standard), said(betterData)), false
	}
}

func said(err error) string {
	if err == nil {
		return "valid"
	}
	return err.Error()
}

func (r *receiver) secretsOnly() (secrets []string) {
	for _, s := range r.cfg.Secrets {
		if !strings.HasPrefix(s, signing.PublicKeyPrefix) {
			secrets = append(secrets, s)
		}
	}
	return secrets
}

func (r *receiver) forward(req *http.Request, body []byte) (status int, err error) {
	ctx, cancel := context.WithTimeout(req.Context(), forwardTimeout)
	defer cancel()
	out, err := http.NewRequestWithContext(ctx, req.Method, r.cfg.ForwardTo, bytes.NewReader(body))
	if err != nil {
		return http.StatusBadGateway, err
	}
	out.Header = req.Header.Clone()
	out.Header.Del("Connection")
	res, err := http.DefaultClient.Do(out)
	if err != nil {
		return http.StatusBadGateway, err
	}
	return res.StatusCode, res.Body.Close()
}

// print writes a line about the delivery and its body below.
func (r *receiver) print(req *http.Request, body []byte, verdict, answer string) {
	var e struct{ Type string }
	// What is no event is printed all the same.
	_ = json.Unmarshal(body, &e)
	var text bytes.Buffer
	fmt.Fprintf(&text, "\n%s  %s  %s  attempt %s  %s  →  %s\n", time.Now().Format("15:04:05.000"), or(e.Type, "?"),
		or(req.Header.Get(signing.HeaderID), "?"), or(req.Header.Get("x-betterdata-attempt"), "?"), verdict, answer)
	if json.Indent(&text, body, "", "  ") != nil {
		text.Write(body)
	}
	text.WriteByte('\n')
	r.mu.Lock()
	defer r.mu.Unlock()
	// A terminal that is gone is no reason to fail.
	_, _ = r.out.Write(text.Bytes())
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
