package rig

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/bench/measure"
)

// How a merchant answers, the first part of its URL's path.
const (
	// OK answers 200 at once.
	OK = "/ok"
	// Hangs never answers.
	Hangs = "/hangs"
	// Drips answers 200 and then a byte a second.
	Drips = "/drips"
	// Closes hangs up without an answer.
	Closes = "/closes"
	// Fails answers 503, until the merchants are told "recover".
	Fails = "/fails"
)

// RunMerchants is the process of the merchants. It says its port. Asked "count" it answers how many requests came, asked
// "noted" how many of those to OK since it was asked for "latency" last: how many, and how old their events were in ms, p50,
// p99 and the oldest.
func RunMerchants(_ context.Context, setup string) error {
	s, err := decodeSetup(setup)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return err
	}
	if s.Authority != "" {
		certificates, err := readAuthority(s.Authority)
		if err != nil {
			return err
		}
		ln = tls.NewListener(ln, &tls.Config{GetCertificate: certificates.of})
	}
	m := &merchants{}
	server := &fasthttp.Server{Handler: m.answer, Concurrency: 100_000}
	go func() { _ = server.Serve(ln) }()
	return measure.Obey(port, m.obey)
}

type merchants struct {
	count     atomic.Int64
	recovered atomic.Bool

	mu        sync.Mutex
	latencies []float64
}

func (m *merchants) obey(line string) (any, error) {
	switch line {
	case "count":
		return m.count.Load(), nil
	case "recover", "fail":
		m.recovered.Store(line == "recover")
		return "ok", nil
	case "noted":
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.latencies), nil
	case "latency":
		return m.latency(), nil
	}
	return nil, fmt.Errorf("unknown line %q", line)
}

func (m *merchants) latency() string {
	m.mu.Lock()
	all := m.latencies
	m.latencies = nil
	m.mu.Unlock()
	if len(all) == 0 {
		return "0 0 0 0"
	}
	slices.Sort(all)
	return fmt.Sprint(len(all), " ", all[len(all)/2], " ", all[len(all)*99/100], " ", all[len(all)-1])
}

func (m *merchants) answer(ctx *fasthttp.RequestCtx) {
	m.count.Add(1)
	switch path := ctx.Path(); {
	case bytes.HasPrefix(path, []byte(OK)):
		m.note(ctx.PostBody())
	case bytes.HasPrefix(path, []byte(Fails)):
		if !m.recovered.Load() {
			ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
		}
	case bytes.HasPrefix(path, []byte(Hangs)):
		time.Sleep(time.Minute)
	case bytes.HasPrefix(path, []byte(Drips)):
		ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
			for w.WriteByte('.') == nil && w.Flush() == nil {
				time.Sleep(time.Second)
			}
		})
	case bytes.HasPrefix(path, []byte(Closes)):
		ctx.HijackSetNoResponse(true)
		ctx.Hijack(func(net.Conn) {})
	}
}

// note keeps how old the event is.
func (m *merchants) note(body []byte) {
	_, after, _ := bytes.Cut(body, []byte(madeAt))
	digits, _, _ := bytes.Cut(after, []byte(","))
	at, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil {
		return // not one of ours
	}
	took := float64(time.Now().UnixNano()-at) / 1e6
	m.mu.Lock()
	m.latencies = append(m.latencies, took)
	m.mu.Unlock()
}

const authorityFile, authorityKeyFile = "authority.pem", "authority-key.pem"

// newAuthority writes the certificate and the key of a certificate authority.
func newAuthority(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(filepath.Join(folder, authorityFile), "CERTIFICATE", certificate),
		writePEM(filepath.Join(folder, authorityKeyFile), "EC PRIVATE KEY", private))
}

func writePEM(file, kind string, content []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600)
}

// authority makes the certificate of an address when it is first asked for.
type authority struct {
	tls.Certificate

	mu     sync.Mutex
	issued map[string]*tls.Certificate
}

func readAuthority(folder string) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, authorityFile), filepath.Join(folder, authorityKeyFile))
	return &authority{Certificate: pair, issued: map[string]*tls.Certificate{}}, err
}

// of is the certificate of the address that was dialled.
func (a *authority) of(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	ip := hello.Conn.LocalAddr().(*net.TCPAddr).IP
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.issued[ip.String()]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.issued)) + 2), IPAddresses: []net.IP{ip}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, a.Leaf, &key.PublicKey, a.PrivateKey)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{certificate}, PrivateKey: key}
	a.issued[ip.String()] = c
	return c, nil
}
