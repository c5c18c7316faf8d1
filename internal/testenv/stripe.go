package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/cache"
)

// stripeVersion is the version of npm's stripe, Stripe's own library.
const stripeVersion = "23.1.0"

// signScript answers each line {payload, secret} with the stripe-signature header.
const signScript = `
const stripe = new (require("stripe"))("sk_test_unused");
require("readline").createInterface({input: process.stdin}).on("line", line => {
  console.log(stripe.webhooks.generateTestHeaderString(JSON.parse(line)));
});
`

// StripeSigner signs payloads with Stripe's own library for Node.js: the header stripe-signature, with the present time.
func StripeSigner(t testing.TB) func(payload []byte, secret string) string {
	t.Helper()
	folder, err := stripeLibrary()
	require.NoError(t, err)
	node := exec.Command("node", "-e", signScript)
	node.Dir = folder
	node.Stderr = os.Stderr
	in, err := node.StdinPipe()
	require.NoError(t, err)
	out, err := node.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, node.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = node.Wait()
	})
	var mu sync.Mutex
	lines := bufio.NewReader(out)
	return func(payload []byte, secret string) string {
		mu.Lock()
		defer mu.Unlock()
		require.NoError(t, json.NewEncoder(in).Encode(map[string]string{"payload": string(payload), "secret": secret}))
		header, err := lines.ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSpace(header)
	}
}

// stripeLibrary is a folder in which Node.js finds stripe.
func stripeLibrary() (string, error) {
	return cache.Folder(context.Background(), "npm-stripe-"+stripeVersion, func(ctx context.Context, folder string) error {
		npm, err := need(ctx, "npm")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, "package.json"), []byte(`{"private": true}`), 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, npm, "install", "--silent", "--no-audit", "--no-fund", "stripe@"+stripeVersion)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm install stripe: %w\n%s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}
