package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local"
	"github.com/betterdata/webhooks/internal/testenv"
)

// machine is `webhooks run` on a data folder: everything in one process, with the embedded Kafka and ClickHouse.
type machine struct {
	client
	folder    string
	addresses local.Addresses
	server    *testenv.Server
}

// startMachine runs on the given listeners; the zero value lets it pick all of them. More settings may be added.
func startMachine(t *testing.T, folder string, listen local.Addresses, more ...map[string]string) *machine {
	t.Helper()
	m := &machine{folder: folder}
	pick := func(addr string) string {
		if addr == "" {
			return "127.0.0.1:0"
		}
		return addr
	}
	settings := map[string]string{
		"DATA_DIR": folder, "HTTP_ADDR": pick(listen.HTTP), "ADMIN_ADDR": pick(listen.Admin), "EMBEDDED_KAFKA_ADDR": pick(listen.Kafka),
		"EMBEDDED_CLICKHOUSE_ADDR": pick(listen.ClickHouse), "EMBEDDED_CLICKHOUSE_HTTP_ADDR": pick(listen.ClickHouseHTTP),
	}
	for _, m := range more {
		maps.Copy(settings, m)
	}
	m.server = testenv.Service(t, settings, testenv.ReadyAt(func() (string, error) {
		err := readJSON(filepath.Join(folder, "addresses.json"), &m.addresses)
		return m.addresses.Admin, err
	}), "run")
	m.start(t)
	return m
}

// start starts it, again too, and learns where it listens.
func (m *machine) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(filepath.Join(m.folder, "addresses.json")) // its predecessor's
	require.NoError(t, m.server.Start(t.Context()))
	secrets, err := os.ReadFile(filepath.Join(m.folder, "dev.env"))
	require.NoError(t, err)
	for line := range strings.Lines(string(secrets)) {
		if key, ok := strings.CutPrefix(strings.TrimSpace(line), "ADMIN_API_KEY="); ok {
			m.key = key
		}
	}
	m.url = "http://" + m.addresses.HTTP
}

func readJSON(path string, v any) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// command runs `webhooks ARG…` against the machine to its end and returns what it printed.
func (m *machine) command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Build(t), args...)
	cmd.Env = testenv.Environment(map[string]string{"DATA_DIR": m.folder})
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "webhooks %s: %s", strings.Join(args, " "), out)
	return string(out)
}

// TestRunOnOneMachine plays the session of the README against `webhooks run`, stops it as Ctrl-C does, kills it, and finds
// its state each time.
func TestRunOnOneMachine(t *testing.T) {
	const org = "acme"
	m := startMachine(t, filepath.Join(t.TempDir(), "data"), local.Addresses{})
	receiver := testenv.NewReceiver(t)
	endpoint, secret := m.endpoint(t, org, receiver.URL, "subscription.updated")

	listener := testenv.Service(t, map[string]string{"DATA_DIR": m.folder}, func(context.Context) error { return nil },
		"listen", "--org", org, "--addr", testenv.FreeAddr(t))
	require.NoError(t, listener.Start(t.Context()))
	testenv.Eventually(t, soon, func() bool { return len(m.list(t, "/v1/orgs/"+org+"/endpoints")) == 2 }, "the listener's endpoint")

	requireOwnListenersRefused(t, m, org)

	m.command(t, "send", "stripe", "subscription.created", "--org", org, "--new-ids")
	requireState(t, m, org, endpoint, 1)
	receiver.Wait(t, soon, 1)[0].Verify(t, secret)
	testenv.Eventually(t, soon, func() bool { return strings.Contains(listener.Output(), "subscription.updated") }, "the listener prints it")
	require.NoError(t, listener.Interrupt(), listener.Output())

	began := time.Now()
	require.NoError(t, m.server.Interrupt(), m.server.Output())
	require.Less(t, time.Since(began), 30*time.Second)

	// From here on with settled ports, so that a start has to wait for its predecessor's.
	m = startMachine(t, m.folder, m.addresses)
	requireState(t, m, org, endpoint, 1)
	m.command(t, "send", "stripe", "subscription.updated", "--org", org, "--new-ids")
	requireState(t, m, org, endpoint, 2)

	require.NoError(t, m.server.Kill())
	m.start(t)
	require.Contains(t, m.server.Output(), "its log is whole again", "the embedded Kafka says what a kill has done")
	requireState(t, m, org, endpoint, 2)
	m.command(t, "send", "stripe", "subscription.deleted", "--org", org, "--new-ids")
	requireState(t, m, org, endpoint, 3)
	require.Equal(t, "none", m.get(t, "/v1/orgs/"+org+"/entitlements")["status"])

	require.NoError(t, m.server.Interrupt(), m.server.Output())
	require.NoError(t, os.RemoveAll(filepath.Join(m.folder, "state")))
	m.start(t)
	requireState(t, m, org, endpoint, 3)
	require.NoError(t, m.server.Interrupt(), m.server.Output())
}

// requireOwnListenersRefused: no merchant's URL reaches what the machine itself listens on, the engine behind its relays too.
func requireOwnListenersRefused(t *testing.T, m *machine, org string) {
	t.Helper()
	at := m.addresses
	own := []string{at.HTTP, at.Admin, at.Kafka, at.ClickHouse, at.ClickHouseHTTP}
	rows := openClickHouse(t, "clickhouse://"+at.ClickHouse+"/webhooks")
	for _, protocol := range []string{"tcp_port", "http_port"} {
		own = append(own, fmt.Sprint("127.0.0.1:", count(t, rows, "getServerPort('"+protocol+"')")))
	}
	for _, addr := range own {
		status, answer := m.call(t, http.MethodPost, "/v1/orgs/"+org+"/endpoints", map[string]any{
			"url": "http://" + addr + "/?query=SELECT+1", "eventTypes": []string{"*"},
		})
		require.Equal(t, http.StatusUnprocessableEntity, status, addr)
		require.Equal(t, "url_not_allowed", answer["code"], addr)
	}
}

// TestRunOnAClusterOfOnesOwn has nothing embedded, and an Alertmanager to tell.
func TestRunOnAClusterOfOnesOwn(t *testing.T) {
	cluster, clickHouse := testenv.Kafka(t), testenv.ClickHouse(t)
	alertmanager := testenv.NewReceiver(t)
	m := startMachine(t, filepath.Join(t.TempDir(), "data"), local.Addresses{}, map[string]string{
		"KAFKA_BROKERS": strings.Join(cluster.Brokers, ","), "KAFKA_TOPIC_PREFIX": cluster.TopicPrefix,
		"KAFKA_PARTITIONS": strconv.Itoa(int(cluster.Partitions)), "KAFKA_REPLICATION_FACTOR": strconv.Itoa(int(cluster.ReplicationFactor)),
		"CLICKHOUSE_URL": clickHouse, "ALERTMANAGER_URL": alertmanager.URL,
	})
	require.NoDirExists(t, filepath.Join(m.folder, "kafka"))
	require.NoDirExists(t, filepath.Join(m.folder, "clickhouse"))
	receiver := testenv.NewReceiver(t)
	_, secret := m.endpoint(t, "acme", receiver.URL, "subscription.updated")
	m.command(t, "send", "stripe", "subscription.created", "--org", "acme", "--new-ids")
	receiver.Wait(t, soon, 1)[0].Verify(t, secret)
	rows := openClickHouse(t, clickHouse)
	testenv.Eventually(t, soon, func() bool { return count(t, rows, "(SELECT count() FROM delivery_attempts)") == 1 }, "the attempt's row")
	m.command(t, "send", "stripe", "invoice.payment_failed", "--org", "acme", "--new-ids")
	require.Contains(t, string(alertmanager.Wait(t, soon, 1)[0].Body), `"alertname":"InvoicePaymentFailed"`)
	require.NoError(t, m.server.Interrupt(), m.server.Output())
}

// requireState waits until n subscription events have taken effect and been delivered to the endpoint, by the API and by
// SQL over ClickHouse's HTTP, as the README shows it.
func requireState(t *testing.T, m *machine, org, endpoint string, n int) {
	t.Helper()
	testenv.Eventually(t, soon, func() bool {
		version, _ := m.get(t, "/v1/orgs/"+org+"/entitlements")["version"].(float64)
		return int(version) == n
	}, "entitlements of version ", n)
	deliveries := "/v1/orgs/" + org + "/deliveries?status=delivered&endpointId=" + endpoint
	testenv.Eventually(t, soon, func() bool {
		status, answer := m.call(t, http.MethodGet, deliveries, nil)
		data, _ := answer["data"].([]any)
		return status == http.StatusOK && len(data) == n
	}, n, " deliveries")
	rows := openClickHouse(t, "clickhouse://"+m.addresses.ClickHouse+"/webhooks")
	// Each table has its own sink: the attempt's row may come after the delivery's.
	testenv.Eventually(t, soon, func() bool {
		return count(t, rows, "(SELECT uniqExact(attempt_id) FROM delivery_attempts WHERE endpoint_id = $1)", endpoint) == n
	}, n, " attempts")
	require.Equal(t, n, count(t, rows, "(SELECT count() FROM delivery_attempts WHERE endpoint_id = $1)", endpoint))
}
