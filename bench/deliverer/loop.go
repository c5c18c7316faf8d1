package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/bench/rig"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/signing"
)

// loopSetup is what the loop is told.
type loopSetup struct {
	URLs             []string
	Posts, Connected int
	Roots            string
}

// prepared is how many different bodies are sent in turn.
const prepared = 512

func startLoop(o options, r *rig.Rig, m *rig.Merchants) (*measure.Child, error) {
	s := loopSetup{Posts: o.deliveries, Connected: o.connections, Roots: r.Roots()}
	for i := range o.hosts {
		s.URLs = append(s.URLs, m.URL(i, rig.OK))
	}
	file, err := os.CreateTemp("", "webhooks-bench-loop-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := json.NewEncoder(file).Encode(s); err != nil {
		return nil, err
	}
	return measure.Self("-role", "loop", "-setup", file.Name())
}

// runLoop is the reference: each connection signs an event, posts it and reads the answer.
func runLoop(_ context.Context, o options) error {
	content, err := os.ReadFile(o.setup)
	if err != nil {
		return err
	}
	var s loopSetup
	if err := json.Unmarshal(content, &s); err != nil {
		return err
	}
	client := &fasthttp.Client{MaxConnsPerHost: s.Connected, MaxIdleConnDuration: 30 * time.Second, NoDefaultUserAgentHeader: true}
	if s.Roots != "" {
		if client.TLSConfig, err = trust(s.Roots); err != nil {
			return err
		}
	}
	signer, err := signing.NewSigner([]string{rig.Secret}, true, nil)
	if err != nil {
		return err
	}
	var bodies [][]byte
	for i := range prepared {
		bodies = append(bodies, rig.Body(id.New(id.Event), "org_loop", time.Now(), rig.Data(i, time.Now())))
	}
	return measure.Obey("ready", func(string) (any, error) {
		var next atomic.Int64
		var running errgroup.Group
		for range s.Connected {
			running.Go(func() error {
				for i := int(next.Add(1)); i <= s.Posts; i = int(next.Add(1)) {
					if err := post(client, signer, s.URLs[i%len(s.URLs)], bodies[i%prepared]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return "done", running.Wait()
	})
}

func trust(file string) (*tls.Config, error) {
	certificate, err := os.ReadFile(file)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	return &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(4096)}, err
}

// post is one webhook as the deliverer sends it.
func post(client *fasthttp.Client, signer *signing.Signer, url string, body []byte) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	event, now := id.New(id.Event), time.Now().Unix()
	var room [512]byte
	req.Header.SetMethod(fasthttp.MethodPost)
	req.SetRequestURI(url)
	req.Header.SetContentType("application/json")
	req.Header.SetUserAgent("BetterData-Webhooks/1")
	req.Header.Set(signing.HeaderID, event)
	req.Header.SetBytesV(signing.HeaderTimestamp, strconv.AppendInt(room[:0], now, 10))
	req.Header.SetBytesV(signing.HeaderSignature, signer.AppendStandard(room[:0], event, now, body))
	req.Header.SetBytesV(signing.HeaderBetterData, signer.AppendBetterData(room[:0], now, body))
	req.SetBodyRaw(body)
	if err := client.DoTimeout(req, res, 15*time.Second); err != nil {
		return err
	}
	if res.StatusCode() != fasthttp.StatusOK {
		return fmt.Errorf("answered %d", res.StatusCode())
	}
	return nil
}
