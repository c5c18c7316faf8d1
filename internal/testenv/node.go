package testenv

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/cache"
)

// startNode runs a script in Node.js, which finds the npm packages (name@version) given, until the test ends: then its
// standard input does.
func startNode(t testing.TB, script string, packages ...string) (in io.Writer, out *bufio.Reader) {
	t.Helper()
	folder, err := npmPackages(packages...)
	require.NoError(t, err)
	node := exec.Command("node", "-e", script)
	node.Dir = folder
	node.Stderr = os.Stderr
	stdin, err := node.StdinPipe()
	require.NoError(t, err)
	stdout, err := node.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, node.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = node.Wait()
	})
	return stdin, bufio.NewReader(stdout)
}

// npmPackages is a folder in which Node.js finds packages. They are fetched once and kept in the user's cache.
func npmPackages(packages ...string) (string, error) {
	name := "npm-" + strings.ReplaceAll(strings.Join(packages, "-"), "@", "-")
	return cache.Folder(context.Background(), name, func(ctx context.Context, folder string) error {
		npm, err := need(ctx, "npm")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, "package.json"), []byte(`{"private": true}`), 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, npm, append([]string{"install", "--silent", "--no-audit", "--no-fund"}, packages...)...)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm install %s: %w\n%s", strings.Join(packages, " "), err, bytes.TrimSpace(out))
		}
		return nil
	})
}
