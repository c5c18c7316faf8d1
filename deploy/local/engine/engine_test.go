package engine_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/engine"
)

// parentCommand makes the test program a parent that starts an engine and waits to be killed.
const parentCommand = "engine-parent"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case engine.Command:
			os.Exit(engine.Main(os.Args[2:]))
		case parentCommand:
			os.Exit(parent(os.Args[2], os.Args[3], os.Args[4]))
		}
	}
	os.Exit(m.Run())
}

func parent(folder, addr, httpAddr string) int {
	cfg := engine.Config{Folder: folder, Addr: addr, HTTPAddr: httpAddr, Database: "webhooks", Progress: os.Stderr}
	e, err := engine.Start(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(e.Addr())
	fmt.Println(e.HTTPAddr())
	_ = e.Run(context.Background())
	return 1
}

func start(t *testing.T, cfg engine.Config) *engine.Engine {
	t.Helper()
	cfg.Database, cfg.Progress = "webhooks", os.Stderr
	e, err := engine.Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Stop(context.Background())) })
	return e
}

func sql(t *testing.T, httpAddr, query string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+httpAddr+"/?database=webhooks", strings.NewReader(query))
	require.NoError(t, err)
	req.Close = true // ClickHouse waits 5 s for open connections when it stops
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", query, body)
	return strings.TrimSpace(string(body))
}

func TestRowsSurviveAStop(t *testing.T) {
	cfg := engine.Config{Folder: t.TempDir(), Addr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"}
	e := start(t, cfg)
	sql(t, e.HTTPAddr(), "CREATE TABLE kept (n UInt8) ENGINE = MergeTree ORDER BY n")
	sql(t, e.HTTPAddr(), "INSERT INTO kept VALUES (7)")
	cfg.Addr, cfg.HTTPAddr = e.Addr(), e.HTTPAddr()
	began := time.Now()
	require.NoError(t, e.Stop(t.Context()))
	require.Less(t, time.Since(began), 5*time.Second, "it drained rather than being killed")

	e = start(t, cfg)
	require.Equal(t, cfg.Addr, e.Addr())
	require.Equal(t, "7", sql(t, e.HTTPAddr(), "SELECT n FROM kept"))
}

func TestItSaysWhereTheEngineItselfListens(t *testing.T) {
	e := start(t, engine.Config{Folder: t.TempDir(), Addr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"})
	for _, protocol := range []string{"tcp_port", "http_port"} {
		port := sql(t, e.HTTPAddr(), "SELECT getServerPort('"+protocol+"')")
		require.Contains(t, e.Listeners(), "127.0.0.1:"+port, protocol)
	}
	require.Contains(t, e.Listeners(), e.Addr())
	require.Contains(t, e.Listeners(), e.HTTPAddr())
}

func TestAKilledParentLeavesItsPortsAndRowsToItsSuccessor(t *testing.T) {
	folder := t.TempDir()
	dead := exec.Command(os.Args[0], parentCommand, folder, "127.0.0.1:0", "127.0.0.1:0")
	dead.Stderr = os.Stderr
	out, err := dead.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, dead.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	cfg := engine.Config{Folder: folder, Addr: lines.Text()}
	require.True(t, lines.Scan())
	cfg.HTTPAddr = lines.Text()
	sql(t, cfg.HTTPAddr, "CREATE TABLE kept (n UInt8) ENGINE = MergeTree ORDER BY n")
	sql(t, cfg.HTTPAddr, "INSERT INTO kept VALUES (7)")

	require.NoError(t, dead.Process.Kill())
	_ = dead.Wait()

	e := start(t, cfg)
	require.Equal(t, "7", sql(t, e.HTTPAddr(), "SELECT n FROM kept"))
}

func TestAClientThatIsKilledDoesNotTakeTheEngineAlong(t *testing.T) {
	e := start(t, engine.Config{Folder: t.TempDir(), Addr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0"})
	for range 20 {
		var raw *net.TCPConn
		client, err := clickhouse.Open(&clickhouse.Options{
			Addr: []string{e.Addr()},
			DialContext: func(ctx context.Context, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
				if err == nil {
					raw = conn.(*net.TCPConn)
				}
				return conn, err
			},
		})
		require.NoError(t, err)
		require.NoError(t, client.Ping(t.Context()))
		require.NoError(t, raw.SetLinger(0)) // what the kernel does for a killed process with unread data: a reset
		require.NoError(t, raw.Close())
		_ = client.Close()
	}
	require.Equal(t, "1", sql(t, e.HTTPAddr(), "SELECT 1"))
}

func TestATakenPortIsToldWithItsSetting(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	for _, tc := range []struct {
		setting string
		cfg     engine.Config
	}{
		{"EMBEDDED_CLICKHOUSE_ADDR", engine.Config{Addr: ln.Addr().String(), HTTPAddr: "127.0.0.1:0"}},
		{"EMBEDDED_CLICKHOUSE_HTTP_ADDR", engine.Config{Addr: "127.0.0.1:0", HTTPAddr: ln.Addr().String()}},
	} {
		t.Run(tc.setting, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			tc.cfg.Folder, tc.cfg.Database = t.TempDir(), "webhooks"
			_, err := engine.Start(ctx, tc.cfg, slog.New(slog.DiscardHandler))
			require.ErrorContains(t, err, tc.setting)
		})
	}
}
