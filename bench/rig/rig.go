// Package rig is what the benches of the deliverer stand on: a real Apache Kafka and ClickHouse, the deliverer as a process
// of its own, and merchants, who are one more. Events are put on `deliveries` as fan-out does it, each with its first row of
// `deliveries` and its row of `events`, so that the deliverer records all that it does at work.
//
// A child is told what it needs as JSON in the flag -setup; a bench passes it on to RunDeliverer or RunMerchants.
package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/deploy/local/engine"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
)

// Rig is the cluster and the database server.
type Rig struct {
	folder, where string
	setup         Setup
	closers       []func()
}

// Options say what a Rig is.
type Options struct {
	// Brokers is a cluster to use instead of an Apache Kafka of its own.
	Brokers    string
	Partitions int
	// TLS has the merchants speak it, with certificates of an authority that the deliverers trust.
	TLS bool
}

// Setup is what a child is told.
type Setup struct {
	Brokers    []string `json:",omitempty"`
	Prefix     string
	Partitions int
	ClickHouse string
	SecretsKey string
	// State is the folder of the deliverer's state.
	State string
	// Authority is the folder of the merchants' certificate authority; empty without TLS.
	Authority string
	// Retries are the delays of the retry schedule; nil is the default.
	Retries []time.Duration
	// SilentDNS has names resolved by a server that never answers.
	SilentDNS bool
}

func (s Setup) cluster() kafka.Config {
	return kafka.Config{Brokers: s.Brokers, TopicPrefix: s.Prefix, Partitions: int32(s.Partitions), ReplicationFactor: 1}
}

// Start starts them. Close ends everything.
func Start(ctx context.Context, o Options) (*Rig, error) {
	r := &Rig{setup: Setup{Partitions: o.Partitions, SecretsKey: seal.NewKey()}}
	if err := r.start(ctx, o); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Rig) start(ctx context.Context, o Options) (err error) {
	if r.folder, err = os.MkdirTemp("", "webhooks-bench-"); err != nil {
		return err
	}
	r.closers = append(r.closers, func() { _ = os.RemoveAll(r.folder) })
	brokers, where, stop, err := measure.Kafka(ctx, o.Brokers)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, stop)
	r.setup.Brokers, r.where = []string{brokers}, where
	if err := r.startClickHouse(ctx); err != nil {
		return err
	}
	if o.TLS {
		if err := newAuthority(r.folder); err != nil {
			return err
		}
		r.setup.Authority = r.folder
	}
	return nil
}

// Merchants is a process that answers on every address of 127.0.0.0/8.
type Merchants struct {
	*measure.Child
	scheme string
}

// Merchants starts one. Competitors have one each: ten thousand connections kept by each would be more than one may have.
func (r *Rig) Merchants() (*Merchants, error) {
	child, err := measure.Self("-role", "merchants", "-setup", r.setup.encode())
	if err != nil {
		return nil, err
	}
	r.closers = append(r.closers, child.Stop)
	m := &Merchants{Child: child, scheme: "http"}
	if r.setup.Authority != "" {
		m.scheme = "https"
	}
	return m, nil
}

// URL is that of a host, which answers in that way.
func (m *Merchants) URL(host int, answer string) string {
	return fmt.Sprintf("%s://%s:%s%s", m.scheme, address(host), m.Port(), answer)
}

// Port is that of every host.
func (m *Merchants) Port() string { return m.Hello }

// Count is how many requests have come.
func (m *Merchants) Count() (n int, err error) {
	err = m.Ask("count", &n)
	return n, err
}

func address(host int) string { return fmt.Sprintf("127.1.%d.%d", host/250, 1+host%250) }

func (r *Rig) startClickHouse(ctx context.Context) error {
	server, err := engine.Start(ctx, engine.Config{
		Folder: filepath.Join(r.folder, "clickhouse"), Addr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0",
		Database: clickhouse.DefaultDatabase, Progress: os.Stderr,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	r.closers = append(r.closers, func() { _ = server.Stop(context.WithoutCancel(ctx)) })
	r.setup.ClickHouse = "clickhouse://" + server.Addr() + "/"
	return nil
}

// Close ends everything, the newest first.
func (r *Rig) Close() {
	for i := len(r.closers) - 1; i >= 0; i-- {
		r.closers[i]()
	}
	r.closers = nil
}

// Roots is the file of the certificate by which merchants are trusted; empty without TLS.
func (r *Rig) Roots() string {
	if r.setup.Authority == "" {
		return ""
	}
	return filepath.Join(r.setup.Authority, authorityFile)
}

// String says what it is, for a bench's first line.
func (r *Rig) String() string {
	return fmt.Sprintf("%s %s/%s, %d CPUs; %s, %d partitions; ClickHouse and the merchants in processes of their own",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), r.where, r.setup.Partitions)
}

// Deliverer is a deliverer with topics and a database of its own.
type Deliverer struct {
	*measure.Child
	// Rows are its tables.
	Rows driver.Conn

	setup   Setup
	program string
	feed    *Feed
}

// Begin makes the topics and tables of a deliverer, with the endpoints, and starts it. Program is the bench to start, this
// one if empty; change may say more.
func (r *Rig) Begin(ctx context.Context, name, program string, endpoints []Endpoint, change func(*Setup)) (d *Deliverer, err error) {
	s := r.setup
	s.Prefix = name + "."
	s.ClickHouse += "bench_" + name
	s.State = filepath.Join(r.folder, "state-"+name)
	if change != nil {
		change(&s)
	}
	log := slog.New(slog.DiscardHandler)
	if err := errors.Join(kafka.EnsureTopics(ctx, s.cluster(), log), clickhouse.Migrate(ctx, s.ClickHouse, log)); err != nil {
		return nil, err
	}
	d = &Deliverer{setup: s, program: program}
	if d.Rows, err = clickhouse.Open(ctx, s.ClickHouse); err != nil {
		return nil, err
	}
	if d.feed, err = newFeed(s); err != nil {
		return nil, err
	}
	if err := d.feed.putEndpoints(ctx, s, endpoints); err != nil {
		return nil, err
	}
	_, err = d.Restart(ctx)
	return d, err
}

// Restart starts the process, after Stop or Kill, and tells how long it took until it was ready.
func (d *Deliverer) Restart(ctx context.Context) (took time.Duration, err error) {
	program := d.program
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	if d.Child, err = measure.Start(exec.Command(program, "-role", "deliverer", "-setup", d.setup.encode())); err != nil {
		return 0, err
	}
	for !d.ready() {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return time.Since(began), nil
}

// Forget deletes the local state of a deliverer that does not run.
func (d *Deliverer) Forget() error { return os.RemoveAll(d.setup.State) }

// End stops the deliverer and lets go of what was opened for it.
func (d *Deliverer) End() {
	d.Stop()
	d.feed.close()
	_ = d.Rows.Close()
}
