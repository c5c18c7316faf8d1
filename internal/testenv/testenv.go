// Package testenv is what tests stand on: a real Apache Kafka and a real ClickHouse, each started once a test process on
// first use, with free ports and a folder of its own; a real Alertmanager for a test that asks for one; kfake for quick tests; the fixtures beside the repository; the built
// program. A test calls what it needs and cleans up nothing: servers and their folders end with the test process, even
// when that is killed. What cannot be started fails the test, it never skips it.
package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Fixture is a file of ../shared/fixtures beside the repository. Without that folder the test is skipped, or fails when
// CI is set.
func Fixture(t testing.TB, path string) []byte {
	t.Helper()
	root, err := repository()
	require.NoError(t, err)
	fixtures := filepath.Join(root, "..", "shared", "fixtures")
	if _, err := os.Stat(fixtures); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("fixtures are required in CI: %v", err)
		}
		t.Skipf("no fixtures beside the repository: %v", err)
	}
	body, err := os.ReadFile(filepath.Join(fixtures, filepath.FromSlash(path)))
	require.NoError(t, err)
	return body
}

// FixtureLines are the lines of a fixture that are not empty.
func FixtureLines(t testing.TB, path string) [][]byte {
	t.Helper()
	var lines [][]byte
	scanner := bufio.NewScanner(bytes.NewReader(Fixture(t, path)))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if line := bytes.TrimSpace(scanner.Bytes()); len(line) > 0 {
			lines = append(lines, bytes.Clone(line))
		}
	}
	require.NoError(t, scanner.Err())
	return lines
}

// repository is the folder of go.mod above the test's package.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", os.ErrNotExist
		}
		dir = parent
	}
}

// Eventually waits for a condition, looking every few milliseconds, and fails the test when it does not come in time.
// what says what was awaited.
func Eventually(t testing.TB, timeout time.Duration, cond func() bool, what ...any) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", timeout, fmt.Sprint(what...))
		}
		time.Sleep(pause)
	}
}
