package testenv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/takeover"
)

// Server is a process that a test may break. It ends with the test process, and its folder with it.
type Server struct {
	ready  func(ctx context.Context) error
	output string

	mu    sync.Mutex
	in    io.WriteCloser
	lines *bufio.Reader
}

// scratchFolder is this test process's folder: the host program, the built product, a folder for each server.
type scratchFolder struct {
	path string
	// remover is a host without a server: it removes the folder when this process ends.
	remover *Server
}

var scratch = sync.OnceValues(func() (scratchFolder, error) {
	folder, err := os.MkdirTemp("", "webhooks-test-")
	if err != nil {
		return scratchFolder{}, err
	}
	program := hostProgram(folder)
	if err := goBuild(program, "github.com/betterdata/webhooks/internal/testenv/host"); err != nil {
		return scratchFolder{}, err
	}
	remover, err := newServer(program, folder, nil, nil, nil)
	return scratchFolder{folder, remover}, err
})

// hostProgram is the built command internal/testenv/host.
func hostProgram(scratch string) string { return filepath.Join(scratch, "host") }

// newFolder is a folder for one server.
func newFolder(pattern string) (string, error) {
	root, err := scratch()
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(root.path, pattern)
}

// goBuild builds a program of this module without the race detector.
func goBuild(program, pkg string) error {
	out, err := exec.Command("go", "build", "-o", program, pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// startServer starts command in a folder that newFolder made. On an error nothing is left of it.
func startServer(ctx context.Context, folder string, command []string, ready func(ctx context.Context) error) (*Server, error) {
	server, err := newServer(hostProgram(filepath.Dir(folder)), folder, nil, command, ready)
	if err != nil {
		return nil, err
	}
	if err := server.Start(ctx); err != nil {
		server.Close()
		return nil, err
	}
	return server, nil
}

// Process makes a server of any command, also for programs that are no tests: Start starts it and does not wait for it,
// Close ends it. command is told the server's folder, which is removed at the end.
func Process(command func(folder string) (env, command []string)) (*Server, error) {
	folder, err := newFolder("process-")
	if err != nil {
		return nil, err
	}
	env, args := command(folder)
	return newServer(hostProgram(filepath.Dir(folder)), folder, env, args, func(context.Context) error { return nil })
}

// newServer makes a host process for command, which Start starts. folder is removed when this process ends. A nil
// environment is this process's.
func newServer(program, folder string, env, command []string, ready func(ctx context.Context) error) (*Server, error) {
	s := &Server{ready: ready, output: filepath.Join(folder, "output.log")}
	host := exec.Command(program, append([]string{"-folder", folder, "-output", s.output}, command...)...)
	host.Stderr = os.Stderr
	host.Env = env
	var err error
	if s.in, err = host.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := host.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.lines = bufio.NewReader(out)
	return s, host.Start()
}

// Start starts the server on its ports and data and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	if err := s.say("start"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	answers := make(chan error, 1)
	go func() { answers <- s.ready(ctx) }()
	for {
		select {
		case err := <-answers:
			return s.withOutput(err)
		case <-time.After(200 * time.Millisecond):
			if err := s.say("alive"); err != nil {
				return s.withOutput(err)
			}
		}
	}
}

func (s *Server) withOutput(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\n%s", err, tail(s.Output()))
}

// Output is all that the server has printed.
func (s *Server) Output() string {
	out, _ := os.ReadFile(s.output)
	return string(out)
}

func tail(s string) string { return s[max(0, len(s)-4000):] }

// Kill is SIGKILL. It is an error when the server had ended by itself before.
func (s *Server) Kill() error { return s.say("kill") }

// End is SIGTERM; it returns when the server is gone, with an error unless it exited with 0.
func (s *Server) End() error { return s.say("end") }

// Interrupt is End with SIGINT, as Ctrl-C sends it.
func (s *Server) Interrupt() error { return s.say("interrupt") }

// Stop is SIGSTOP: connections stay open, and nothing answers.
func (s *Server) Stop() error { return s.say("stop") }

// Cont is SIGCONT.
func (s *Server) Cont() error { return s.say("cont") }

// Restart is Kill, then Start on the same ports and data.
func (s *Server) Restart(ctx context.Context) error {
	return errors.Join(s.Kill(), s.Start(ctx))
}

// Close ends the host, which kills the server and removes its folder. Who does not call it has that when its process ends.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.in.Close()
	_, _ = io.Copy(io.Discard, s.lines)
}

func (s *Server) say(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		return fmt.Errorf("%s server: %w", line, err)
	}
	answer, err := s.lines.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s server: its host is gone: %w", line, err)
	}
	if answer = strings.TrimSpace(answer); answer != "ok" {
		return fmt.Errorf("%s server: %s", line, answer)
	}
	return nil
}

// FreeAddr is a free address of this machine.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, err := freeAddr()
	require.NoError(t, err)
	return addr
}

func freeAddr() (string, error) { return takeover.FreeAddr("127.0.0.1") }
