// Package local is the one-machine stack below `webhooks run`: an embedded Kafka broker in this process, a real ClickHouse
// in a child process (deploy/local/engine), the secrets that a first start generates, and the file that tells where
// everything listens. State lies under DATA_DIR and survives a stop and a SIGKILL; a start waits for its predecessor's
// ports and locks (deploy/local/takeover). Nothing here is used against a real cluster.
package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files of DATA_DIR.
const (
	AddressesFile = "addresses.json"
	DevEnvFile    = "dev.env"
)

// Addresses is the content of DATA_DIR/addresses.json: where a running system listens, each as "host:port".
type Addresses struct {
	HTTP           string `json:"http"`
	Admin          string `json:"admin"`
	Kafka          string `json:"kafka"`
	ClickHouse     string `json:"clickhouse"`
	ClickHouseHTTP string `json:"clickhouseHttp"`
}

// WriteAddresses replaces folder/addresses.json in one step, so that a reader never sees half of it.
func WriteAddresses(folder string, a Addresses) error {
	body, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(folder, AddressesFile), append(body, '\n'))
}

// ReadAddresses reads folder/addresses.json.
func ReadAddresses(folder string) (a Addresses, err error) {
	path := filepath.Join(folder, AddressesFile)
	body, err := os.ReadFile(path)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("read %s: %w", path, err)
	}
	return a, nil
}

// ReadDevEnv reads folder/dev.env; without the file there are no values.
func ReadDevEnv(folder string) (map[string]string, error) {
	path := filepath.Join(folder, DevEnvFile)
	body, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	values, err := parseEnv(body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return values, nil
}

// replaceFile writes a file of mode 0600 whole or not at all.
func replaceFile(path string, body []byte) error {
	partial := path + ".partial"
	if err := os.WriteFile(partial, body, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(partial, path)
}
