// Package engine runs a real ClickHouse on one machine without an installation: a clickhouse program from PATH, else the
// same engine as a shared library from npm, in a child process that serves the native and the HTTP protocol and ends with
// its parent, however that ends.
//
// Start locks the data folder, waits for a predecessor's ports, starts the child (this program again with Command, which
// must lead to Main) and returns when ClickHouse answers. Rows that were acknowledged survive a SIGKILL of parent or child.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/betterdata/webhooks/deploy/local/takeover"
)

// Command is the hidden subcommand that a program hands to Main.
const Command = "clickhouse-engine"

// startTimeout bounds the wait for the first answer: a large store is loaded before the ports open.
const startTimeout = 60 * time.Second

// Config says where the engine lives.
type Config struct {
	// Folder holds the data. It is locked while the engine runs.
	Folder string
	// Addr (native protocol) and HTTPAddr are "host:port" with the same host; port 0 picks a free one.
	Addr, HTTPAddr string
	// Database is created when absent.
	Database string
	// Child is the command line that leads to Main; empty: this program with Command.
	Child []string
	// Progress gets a line while the engine is fetched the first time; nil: none.
	Progress io.Writer
}

// Engine is a running ClickHouse.
type Engine struct {
	cfg    Config
	inner  innerPorts
	child  *exec.Cmd
	alive  io.Closer // the child's standard input: closing it asks the child to end
	exited chan struct{}
	err    error // the child's, once exited is closed
}

// Start returns when ClickHouse answers and the database is there. The child outlives ctx: Stop or Run ends it.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Engine, error) {
	command, source, err := Locate(ctx, cfg.Child, cfg.Progress)
	if err != nil {
		return nil, err
	}
	folder, err := filepath.Abs(cfg.Folder)
	if err != nil {
		return nil, err
	}
	cfg.Folder = folder
	lock, err := takeover.LockFolder(ctx, cfg.Folder, "DATA_DIR")
	if err != nil {
		return nil, err
	}
	// The child inherits the lock, so that it ends with the child and not before.
	defer lock.Close()
	if err := cfg.resolve(ctx); err != nil {
		return nil, err
	}
	inner, err := freeInnerPorts()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, inner: inner, exited: make(chan struct{})}
	if err := e.start(command, lock); err != nil {
		return nil, err
	}
	if err := e.await(ctx); err != nil {
		return nil, errors.Join(err, e.Stop(context.WithoutCancel(ctx)))
	}
	log.Info("clickhouse runs", "addr", cfg.Addr, "http", cfg.HTTPAddr, "engine", source, "folder", cfg.Folder)
	return e, nil
}

// resolve replaces the addresses by the ones to serve on, once they are free.
func (c *Config) resolve(ctx context.Context) error {
	native, err := takeover.Listen(ctx, c.Addr, "EMBEDDED_CLICKHOUSE_ADDR")
	if err != nil {
		return err
	}
	defer native.Close()
	web, err := takeover.Listen(ctx, c.HTTPAddr, "EMBEDDED_CLICKHOUSE_HTTP_ADDR")
	if err != nil {
		return err
	}
	defer web.Close()
	c.Addr, c.HTTPAddr = native.Addr().String(), web.Addr().String()
	if !native.Addr().(*net.TCPAddr).IP.Equal(web.Addr().(*net.TCPAddr).IP) {
		return fmt.Errorf("EMBEDDED_CLICKHOUSE_ADDR %s and EMBEDDED_CLICKHOUSE_HTTP_ADDR %s must have one host", c.Addr, c.HTTPAddr)
	}
	return nil
}

// Locate finds the engine, fetching it when it must, and returns the command line to which Args are added, and which
// engine it is.
func Locate(ctx context.Context, child []string, progress io.Writer) (command []string, source string, err error) {
	if progress == nil {
		progress = io.Discard
	}
	if len(child) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, "", fmt.Errorf("find this program: %w", err)
		}
		child = []string{self, Command}
	}
	path, why := program(ctx)
	if path != "" {
		return append(child, "-program="+path), path, nil
	}
	lib, err := library(ctx, progress)
	if err != nil {
		return nil, "", err
	}
	return append(child, "-library="+lib), fmt.Sprintf("npm %s (clickhouse program: %s)", libraryVersion, why), nil
}

// Args are the arguments of Main that say what to serve where.
func Args(folder, addr, httpAddr string) ([]string, error) {
	host, tcpPort, err := split(addr)
	if err != nil {
		return nil, err
	}
	_, httpPort, err := split(httpAddr)
	if err != nil {
		return nil, err
	}
	return []string{
		"-folder=" + folder, "-host=" + host, fmt.Sprintf("-tcp-port=%d", tcpPort), fmt.Sprintf("-http-port=%d", httpPort),
	}, nil
}

func split(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(p)
	return host, port, err
}

func (e *Engine) start(command []string, lock *os.File) error {
	args, err := Args(e.cfg.Folder, e.cfg.Addr, e.cfg.HTTPAddr)
	if err != nil {
		return err
	}
	output, err := os.Create(e.outputPath())
	if err != nil {
		return err
	}
	defer output.Close()
	args = append(args, e.inner.args()...)
	e.child = exec.Command(command[0], append(command[1:], args...)...)
	e.child.Stdout, e.child.Stderr = output, output
	e.child.ExtraFiles = []*os.File{lock}
	// A group of its own: Ctrl-C in a terminal is for the parent, which stops the engine last.
	e.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if e.alive, err = e.child.StdinPipe(); err != nil {
		return err
	}
	if err := e.child.Start(); err != nil {
		return fmt.Errorf("start the ClickHouse engine: %w", err)
	}
	go func() {
		e.err = e.child.Wait()
		close(e.exited)
	}()
	return nil
}

func (e *Engine) outputPath() string { return filepath.Join(e.cfg.Folder, "engine.log") }

// await returns once both protocols answer and the database exists.
func (e *Engine) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	go func() {
		select {
		case <-e.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := Ready(ctx, e.cfg.Addr, e.cfg.HTTPAddr)
	if err == nil {
		err = query(ctx, e.cfg.HTTPAddr, "CREATE DATABASE IF NOT EXISTS `"+e.cfg.Database+"`")
	}
	if err == nil {
		return nil
	}
	tail, _ := os.ReadFile(e.outputPath())
	tail = tail[max(0, len(tail)-2000):]
	return fmt.Errorf("the ClickHouse engine did not start (%s): %w\n%s", e.outputPath(), err, strings.TrimSpace(string(tail)))
}

// Ready returns when a server answers on both addresses, or ctx ends.
func Ready(ctx context.Context, addr, httpAddr string) error {
	for {
		err := query(ctx, httpAddr, "SELECT 1")
		if err == nil {
			var conn net.Conn
			if conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer from ClickHouse on %s: %w", httpAddr, err)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func query(ctx context.Context, httpAddr, sql string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+httpAddr, strings.NewReader(sql))
	if err != nil {
		return err
	}
	// No kept connection: it would be left to the successor of a server that was killed.
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return err
}

// Addr is where the native protocol is served.
func (e *Engine) Addr() string { return e.cfg.Addr }

// HTTPAddr is where HTTP is served.
func (e *Engine) HTTPAddr() string { return e.cfg.HTTPAddr }

// Listeners are the addresses that the child listens on: where it serves, and where the engine itself does, behind the relays. A
// clickhouse program needs none of the latter; two free ports are kept for them all the same.
func (e *Engine) Listeners() []string {
	return []string{e.cfg.Addr, e.cfg.HTTPAddr, e.inner.addr(e.inner.tcp), e.inner.addr(e.inner.http)}
}

// URL is how clickhouse-go reaches the database.
func (e *Engine) URL() string { return "clickhouse://" + e.cfg.Addr + "/" + e.cfg.Database }

// Run blocks until ctx ends, then stops the engine; an engine that ends by itself is an error.
func (e *Engine) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout+time.Second)
		defer cancel()
		return e.Stop(stopping)
	case <-e.exited:
		return fmt.Errorf("the ClickHouse engine ended by itself (see %s): %v", e.outputPath(), e.err)
	}
}

// Stop lets the engine finish and waits for it. When ctx ends first it is killed; acknowledged rows are safe then too.
func (e *Engine) Stop(ctx context.Context) error {
	_ = e.alive.Close()
	select {
	case <-e.exited:
	case <-ctx.Done():
		_ = e.child.Process.Kill()
		<-e.exited
	}
	return nil
}
