package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/deliverer"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/schemas"
)

func (s Setup) encode() string {
	text, _ := json.Marshal(s) // plain values
	return string(text)
}

func decodeSetup(text string) (s Setup, err error) {
	err = json.Unmarshal([]byte(text), &s)
	return s, err
}

// RunDeliverer is the process that is measured: the service as `webhooks deliverer` puts it together, but for its address
// for reads. It says its admin address, and ends when its standard input does.
func RunDeliverer(ctx context.Context, setup string) error {
	s, err := decodeSetup(setup)
	if err != nil {
		return err
	}
	if s.Authority != "" {
		// Read when the first certificate is verified.
		if err := os.Setenv("SSL_CERT_FILE", filepath.Join(s.Authority, authorityFile)); err != nil {
			return err
		}
	}
	if s.SilentDNS {
		if err := silenceDNS(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d, copy, err := newDeliverer(ctx, s, reg)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	admin := lifecycle.NewAdmin(ln, reg, func(ctx context.Context) (map[string]error, bool) {
		err := errors.Join(copy.Check(ctx), d.Check(ctx), d.CheckSinks(ctx))
		return map[string]error{"deliverer": err}, err == nil
	})
	parts, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{copy.Run, d.Run, admin.Run} {
		parts.Go(func() error {
			err := run(ctx)
			if err != nil {
				fmt.Fprintln(os.Stderr, "deliverer:", err)
				os.Exit(1)
			}
			return nil
		})
	}
	err = measure.Obey(ln.Addr(), func(line string) (any, error) { return nil, fmt.Errorf("unknown line %q", line) })
	cancel()
	// As the service does. Kafka may be gone, when the bench was killed.
	defer time.AfterFunc(stopTimeout, func() { os.Exit(1) }).Stop()
	return errors.Join(err, parts.Wait(), copy.Close())
}

// stopTimeout is SHUTDOWN_TIMEOUT.
const stopTimeout = 30 * time.Second

func newDeliverer(ctx context.Context, s Setup, reg prometheus.Registerer) (*deliverer.Deliverer, *table.Copy, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	keys, err := seal.NewKeyring(s.SecretsKey)
	if err != nil {
		return nil, nil, err
	}
	rows, err := clickhouse.Open(ctx, s.ClickHouse)
	if err != nil {
		return nil, nil, err
	}
	copy, err := table.New(table.Config{Kafka: s.cluster(), StateDir: s.State, Topic: schemas.Endpoints}, log, reg)
	if err != nil {
		return nil, nil, err
	}
	retries := schedule.Policy{Jitter: schedule.Default().Jitter, Delays: s.Retries}
	d, err := deliverer.New(
		deliverer.Config{Kafka: s.cluster(), StateDir: s.State, Dispatch: dispatch.Config{Retries: retries}},
		deliverer.Deps{
			Auth: httpapi.AdminKey("bench"), Endpoints: copy, Keys: keys, ClickHouse: rows, Log: log, Registerer: reg,
			Guard: netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}),
		})
	return d, copy, err
}

// silenceDNS has the process ask a name server that never answers.
func silenceDNS() error {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", silent.LocalAddr().String())
	}}
	return nil
}

// admin asks the deliverer's admin address.
func (d *Deliverer) admin(path string, read func(io.Reader) error) error {
	res, err := http.Get("http://" + d.Hello + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	return read(res.Body)
}

func (d *Deliverer) ready() bool {
	return d.admin("/readyz", func(io.Reader) error { return nil }) == nil
}

// Metric is the sum over all label values of a metric that the deliverer exports.
func (d *Deliverer) Metric(name string) (sum float64, err error) {
	err = d.admin("/metrics", func(body io.Reader) error {
		for lines := bufio.NewScanner(body); lines.Scan(); {
			series, value, _ := strings.Cut(lines.Text(), " ")
			if family, _, _ := strings.Cut(series, "{"); family != name {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return fmt.Errorf("metric %s: %w", name, err)
			}
			sum += v
		}
		return nil
	})
	return sum, err
}

// Profile writes a CPU profile of so many seconds to a file, and what was allocated so far to another.
func (d *Deliverer) Profile(file string, seconds int) error {
	return errors.Join(d.profile(fmt.Sprint("profile?seconds=", seconds), file), d.profile("allocs", file+".allocs"))
}

func (d *Deliverer) profile(kind, file string) error {
	return d.admin("/debug/pprof/"+kind, func(body io.Reader) error {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		return errors.Join(err, f.Close())
	})
}
