// Package local is the one-machine stack below `webhooks run`: an embedded Kafka broker in this process, a real ClickHouse
// in a child process (deploy/local/engine), the secrets that a first start generates, and the file that tells where
// everything listens. State lies under DATA_DIR and survives a stop and a SIGKILL; a start waits for its predecessor's
// ports and locks (deploy/local/takeover). Nothing here is used against a real cluster.
package local

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
	return replaceFile(filepath.Join(folder, "addresses.json"), append(body, '\n'))
}

// replaceFile writes a file of mode 0600 whole or not at all.
func replaceFile(path string, body []byte) error {
	partial := path + ".partial"
	if err := os.WriteFile(partial, body, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(partial, path)
}
