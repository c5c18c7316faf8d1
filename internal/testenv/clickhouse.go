package testenv

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/engine"
)

// ClickHouseServer is a ClickHouse on ports and data of its own.
type ClickHouseServer struct {
	*Server
	// Addr (native protocol) and HTTPAddr stay the same after a restart.
	Addr, HTTPAddr string
}

// ClickHouse is the URL of a fresh, empty database on the test process's ClickHouse, which starts with the first call.
func ClickHouse(t testing.TB) string {
	t.Helper()
	shared, err := sharedClickHouse()
	require.NoError(t, err)
	return shared.Database(t)
}

// NewClickHouse starts a server for this test alone, to be broken.
func NewClickHouse(t testing.TB) *ClickHouseServer {
	t.Helper()
	c, err := StartClickHouse(t.Context())
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// Database creates a database and returns its URL. It is dropped when the test is over.
func (c *ClickHouseServer) Database(t testing.TB) string {
	t.Helper()
	name := strings.NewReplacer("-", "_", ".", "").Replace(prefix(t))
	require.NoError(t, c.exec(t.Context(), "CREATE DATABASE `"+name+"`"))
	t.Cleanup(func() { _ = c.exec(context.Background(), "DROP DATABASE `"+name+"`") })
	return "clickhouse://" + c.Addr + "/" + name
}

func (c *ClickHouseServer) exec(ctx context.Context, sql string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.HTTPAddr, strings.NewReader(sql))
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", sql, resp.Status)
	}
	return nil
}

var sharedClickHouse = sync.OnceValues(func() (*ClickHouseServer, error) { return StartClickHouse(context.Background()) })

// StartClickHouse starts a server, also for programs that are no tests. It tries again on other ports when one was taken between its choice and the start.
func StartClickHouse(ctx context.Context) (c *ClickHouseServer, err error) {
	for range 3 {
		if c, err = tryClickHouse(ctx); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("start ClickHouse: %w", err)
}

func tryClickHouse(ctx context.Context) (*ClickHouseServer, error) {
	command, err := clickHouseCommand(ctx)
	if err != nil {
		return nil, err
	}
	folder, err := newFolder("clickhouse-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	httpAddr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(folder, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	args, err := engine.Args(data, addr, httpAddr)
	if err != nil {
		return nil, err
	}
	server, err := startServer(ctx, folder, append(command, args...), func(ctx context.Context) error {
		return engine.Ready(ctx, addr, httpAddr)
	})
	if err != nil {
		return nil, err
	}
	return &ClickHouseServer{server, addr, httpAddr}, nil
}

// clickHouseCommand is the command line of an engine that the test host runs.
func clickHouseCommand(ctx context.Context) ([]string, error) {
	scratch, err := scratch()
	if err != nil {
		return nil, err
	}
	if _, err := need(ctx, "npm"); err != nil {
		return nil, err
	}
	command, _, err := engine.Locate(ctx, []string{hostProgram(scratch.path), engine.Command}, os.Stderr)
	return command, err
}
