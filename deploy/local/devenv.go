package local

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// secretMakers are the settings that a first start generates.
var secretMakers = map[string]func() string{
	"ADMIN_API_KEY":         func() string { return "dev_" + hex.EncodeToString(randomBytes(16)) },
	"SECRETS_KEY":           func() string { return base64.StdEncoding.EncodeToString(randomBytes(32)) },
	"STRIPE_WEBHOOK_SECRET": func() string { return "whsec_" + hex.EncodeToString(randomBytes(16)) },
}

// LoadOrCreateDevEnv reads NAME=value lines from path and adds the secrets that are not there, for this start and the
// next ones. The file is for its owner alone (mode 0600). created tells whether anything was generated.
func LoadOrCreateDevEnv(path string) (values map[string]string, created bool, err error) {
	body, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("read %s: %w", path, err)
	}
	if values, err = parseEnv(body); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", path, err)
	}
	if len(body) == 0 {
		body = []byte("# Secrets of this machine's `webhooks run`, made by its first start. Environment variables win over them.\n")
	}
	for _, name := range slices.Sorted(maps.Keys(secretMakers)) {
		if values[name] != "" {
			continue
		}
		created = true
		values[name] = secretMakers[name]()
		body = append(body, name+"="+values[name]+"\n"...)
	}
	if !created {
		return values, false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, false, fmt.Errorf("write %s: %w", path, err)
	}
	return values, true, replaceFile(path, body)
}

func parseEnv(body []byte) (map[string]string, error) {
	values := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || value == "" {
			return nil, fmt.Errorf("line %d is not NAME=value", n)
		}
		values[name] = value
	}
	return values, lines.Err()
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}
