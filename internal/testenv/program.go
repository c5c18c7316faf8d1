package testenv

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var built = sync.OnceValues(func() (string, error) {
	folder, err := scratch()
	if err != nil {
		return "", err
	}
	program := filepath.Join(folder.path, "webhooks")
	return program, goBuild(program, "github.com/betterdata/webhooks")
})

// Build is the path of the program, built once a test process, without the race detector.
func Build(t testing.TB) string {
	t.Helper()
	program, err := built()
	require.NoError(t, err)
	return program
}

// Environment is what a process of the program gets beside its settings: none of this process's settings.
func Environment(settings map[string]string) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	return env
}

// Service makes a process of the built program, `webhooks ARG…`, which Start starts; it is ready when ready returns nil.
// When the test has failed, the end of what it printed is logged.
func Service(t testing.TB, settings map[string]string, ready func(ctx context.Context) error, args ...string) *Server {
	t.Helper()
	program := Build(t)
	folder, err := newFolder(args[0] + "-")
	require.NoError(t, err)
	s, err := newServer(hostProgram(filepath.Dir(program)), folder, Environment(settings), append([]string{program}, args...), ready)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of what `webhooks %s` printed:\n%s", args[0], tail(s.Output()))
		}
		s.Close()
	})
	return s
}

// ReadyAt waits until /readyz of an admin address answers 200.
func ReadyAt(addr func() (string, error)) func(ctx context.Context) error {
	return answering(func() (string, error) {
		admin, err := addr()
		return "http://" + admin + "/readyz", err
	})
}

// readyAt waits until a URL answers 200.
func readyAt(url string) func(ctx context.Context) error {
	return answering(func() (string, error) { return url, nil })
}

// answering waits until there is a URL and it answers 200.
func answering(url func() (string, error)) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		for {
			at, err := url()
			if err == nil {
				err = get(ctx, at)
			}
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("not ready: %w", err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
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
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
