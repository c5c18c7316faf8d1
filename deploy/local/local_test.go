package local_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local"
)

func TestAFirstStartMakesTheSecretsAndTheNextKeepsThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "dev.env")
	first, created, err := local.LoadOrCreateDevEnv(path)
	require.NoError(t, err)
	require.True(t, created)
	key, err := base64.StdEncoding.DecodeString(first["SECRETS_KEY"])
	require.NoError(t, err)
	require.Len(t, key, 32)
	require.NotEmpty(t, first["ADMIN_API_KEY"])
	require.NotEmpty(t, first["STRIPE_WEBHOOK_SECRET"])
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	second, created, err := local.LoadOrCreateDevEnv(path)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, first, second)
}

func TestWhatTheUserPutIntoDevEnvStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev.env")
	require.NoError(t, os.WriteFile(path, []byte("# mine\nADMIN_API_KEY=chosen\nOTHER=a=b\n"), 0o600))
	values, created, err := local.LoadOrCreateDevEnv(path)
	require.NoError(t, err)
	require.True(t, created, "the two others were made")
	require.Equal(t, "chosen", values["ADMIN_API_KEY"])
	require.Equal(t, "a=b", values["OTHER"])
	body, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(body), "# mine\nADMIN_API_KEY=chosen\nOTHER=a=b\n")
}

func TestABrokenDevEnvNamesItsLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev.env")
	require.NoError(t, os.WriteFile(path, []byte("A=1\nADMIN_API_KEY=\n"), 0o600))
	_, _, err := local.LoadOrCreateDevEnv(path)
	require.ErrorContains(t, err, "line 2")
}

func TestAddressesAreReadableJSON(t *testing.T) {
	folder := t.TempDir()
	want := local.Addresses{HTTP: "127.0.0.1:1", Admin: "127.0.0.1:2", Kafka: "127.0.0.1:3", ClickHouse: "127.0.0.1:4", ClickHouseHTTP: "127.0.0.1:5"}
	require.NoError(t, local.WriteAddresses(folder, want))
	body, err := os.ReadFile(filepath.Join(folder, "addresses.json"))
	require.NoError(t, err)
	var got map[string]string
	require.NoError(t, json.Unmarshal(body, &got))
	require.Equal(t, map[string]string{
		"http": "127.0.0.1:1", "admin": "127.0.0.1:2", "kafka": "127.0.0.1:3", "clickhouse": "127.0.0.1:4", "clickhouseHttp": "127.0.0.1:5",
	}, got)
}
