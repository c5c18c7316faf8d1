package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/deliverer"
	"github.com/betterdata/webhooks/deliverer/dispatch"
	"github.com/betterdata/webhooks/deliverer/schedule"
	"github.com/betterdata/webhooks/internal/clickhouse"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/lifecycle"
	"github.com/betterdata/webhooks/internal/netguard"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/table"
	"github.com/betterdata/webhooks/schemas"
)

// childVariable names the environment variable that makes a process an instance.
const childVariable = "BENCH_CHAOS_DELIVERER"

// stopTime is SHUTDOWN_TIMEOUT.
const stopTime = 30 * time.Second

// delays are RETRY_SCHEDULE: so short that a delivery ends within seconds.
var delays = []time.Duration{300 * time.Millisecond, 600 * time.Millisecond, time.Second, 1500 * time.Millisecond}

// adminKey is a setting. Nobody asks the instances for deliveries.
const adminKey = "nobody-asks"

// child is what an instance is told.
type child struct {
	Kafka                            kafka.Config
	Name, StateDir, SecretsKey, Rows string
}

// Child runs an instance of the deliverer when this process was started to be one. A program, or a test's main, that calls
// Run asks this first.
func Child() (exit int, is bool) {
	return fire.Child(childVariable, func(told []byte, log *slog.Logger) error {
		var c child
		if err := json.Unmarshal(told, &c); err != nil {
			return err
		}
		return c.run(log)
	})
}

// run is the deliverer as its service puts it together.
func (c *child) run(log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	endpoints, err := table.New(table.Config{Kafka: c.Kafka, StateDir: c.StateDir, Topic: schemas.Endpoints}, log, reg)
	if err != nil {
		return err
	}
	d, err := c.deliverer(endpoints, log, reg)
	if err != nil {
		return err
	}
	ln, err := c.listen()
	if err != nil {
		return err
	}
	var process *lifecycle.Process
	admin := lifecycle.NewAdmin(ln, reg, func(ctx context.Context) (map[string]error, bool) { return process.Status(ctx) })
	process = lifecycle.New(log, stopTime,
		lifecycle.Stage{Name: "admin", Run: admin.Run},
		lifecycle.Stage{Name: "tables", Eager: true, Check: endpoints.Check, Run: func(ctx context.Context) error {
			return errors.Join(endpoints.Run(ctx), endpoints.Close())
		}},
		lifecycle.Stage{Name: "deliverer", Run: d.Run, Check: d.Check},
	)
	return process.Run(ctx)
}

// listen takes a port for the admin address, and leaves it beside the state folder.
func (c *child) listen() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return ln, os.WriteFile(adminFile(c.StateDir), []byte(ln.Addr().String()), 0o600)
}

func adminFile(stateDir string) string { return filepath.Join(filepath.Dir(stateDir), "admin") }

func (c *child) deliverer(endpoints *table.Copy, log *slog.Logger, reg prometheus.Registerer) (*deliverer.Deliverer, error) {
	keys, err := seal.NewKeyring(c.SecretsKey)
	if err != nil {
		return nil, err
	}
	rows, err := clickhouse.Open(context.Background(), c.Rows)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	var mu sync.Mutex
	made := false
	return deliverer.New(deliverer.Config{
		Kafka: c.Kafka, StateDir: c.StateDir,
		Dispatch: dispatch.Config{Retries: schedule.Policy{Delays: delays, Jitter: 0.2}, Worker: c.Name},
	}, deliverer.Deps{
		Auth: httpapi.AdminKey(adminKey), Endpoints: endpoints, Keys: keys, ClickHouse: rows,
		Guard: netguard.New(netguard.Policy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}),
		Migrate: func(ctx context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if made {
				return nil
			}
			err := clickhouse.Migrate(ctx, c.Rows, log)
			made = err == nil
			return err
		},
		Log: log, Registerer: reg,
	})
}
