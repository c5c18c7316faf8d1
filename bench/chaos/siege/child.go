package siege

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/processor"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
)

// childVariable names the environment variable that makes a process an instance.
const childVariable = "BENCH_CHAOS_PROCESSOR"

// endpointsPerOrg and adminKey are settings of the instances. Nobody asks them anything.
const (
	endpointsPerOrg = 10
	adminKey        = "nobody-asks"
)

// stopTime is SHUTDOWN_TIMEOUT.
const stopTime = 30 * time.Second

// dedupeRetention is longer than any run.
const dedupeRetention = 32 * 24 * time.Hour

// child is what an instance is told.
type child struct {
	Kafka      kafka.Config
	StateDir   string
	SecretsKey string
}

// Child runs an instance of the processor when this process was started to be one. A program, or a test's main, that
// calls Run asks this first.
func Child() (exit int, is bool) {
	return fire.Child(childVariable, func(told []byte, log *slog.Logger) error {
		var c child
		if err := json.Unmarshal(told, &c); err != nil {
			return err
		}
		return c.run(log)
	})
}

// run is the processor as its service puts it together, without the parts that answer requests. ClickHouse is away: the
// sinks wait for it, and everything else must not notice.
func (c *child) run(log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	reg := prometheus.NewRegistry()
	copies, err := c.tables(log, reg)
	if err != nil {
		return err
	}
	p, err := c.processor(copies, log, reg)
	if err != nil {
		return err
	}
	return lifecycle.New(log, stopTime,
		lifecycle.Stage{Name: "tables", Run: copies.run, Eager: true},
		lifecycle.Stage{Name: "processor", Run: p.Run, Check: p.Check},
	).Run(ctx)
}

// copies of the tables, in the order of processor.Tables.
type copies []*table.Copy

func (c *child) tables(log *slog.Logger, reg prometheus.Registerer) (copies, error) {
	var all copies
	for _, topic := range []string{schemas.Billing, schemas.Entitlements, schemas.Endpoints, schemas.Connections} {
		t, err := table.New(table.Config{Kafka: c.Kafka, StateDir: c.StateDir, Topic: topic}, log, reg)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

func (c copies) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range c {
		group.Go(func() error { return errors.Join(t.Run(ctx), t.Close()) })
	}
	return group.Wait()
}

func (c *child) processor(all copies, log *slog.Logger, reg prometheus.Registerer) (*processor.Processor, error) {
	keys, err := seal.NewKeyring(c.SecretsKey)
	if err != nil {
		return nil, err
	}
	// A port that nobody listens on. The sinks do not get as far as to use it.
	rows, err := clickhouse.Open(context.Background(), "clickhouse://127.0.0.1:1/webhooks")
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	return processor.New(processor.Config{
		Kafka: c.Kafka, StateDir: c.StateDir, Plans: plans.Builtin(),
		DedupeRetention: dedupeRetention, EndpointsPerOrg: endpointsPerOrg,
	}, processor.Deps{
		Tables: processor.Tables{Billing: all[0], Entitlements: all[1], Endpoints: all[2], Connections: all[3]},
		Auth:   httpapi.AdminKey(adminKey), Keys: keys, ClickHouse: rows,
		Migrate: func(context.Context) error { return errors.New("there is no ClickHouse in this run") },
		Log:     log, Registerer: reg,
	})
}
