package testenv

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promtool runs Prometheus's own checker to its end and fails the test with what it says.
func Promtool(t testing.TB, args ...string) {
	t.Helper()
	program, err := need(t.Context(), "promtool")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.NoError(t, err, "promtool %v: %s", args, out)
}

// Prometheus is Debian's, on an address and data of its own.
type Prometheus struct {
	*Server
	url string
}

// Series is one series of a query's answer, by its labels.
type Series struct {
	Metric map[string]string
}

const prometheusConfig = `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs: [{job_name: webhooks, static_configs: [{targets: [%q]}]}]
`

// NewPrometheus starts a Prometheus for this test alone, which scrapes target every second and evaluates the rules of a file.
func NewPrometheus(t testing.TB, target, rules string) *Prometheus {
	t.Helper()
	program, err := need(t.Context(), "prometheus")
	require.NoError(t, err)
	folder, err := newFolder("prometheus-")
	require.NoError(t, err)
	rules, err = filepath.Abs(rules)
	require.NoError(t, err)
	config := filepath.Join(folder, "prometheus.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, rules, target), 0o600))
	addr := FreeAddr(t)
	p := &Prometheus{url: "http://" + addr}
	p.Server, err = startServer(t.Context(), folder, []string{
		program, "--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(folder, "data"), "--web.listen-address=" + addr,
	}, readyAt(p.url+"/-/ready"))
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// Query is what an expression is now; an expression that is wrong fails the test.
func (p *Prometheus) Query(t testing.TB, expr string) []Series {
	t.Helper()
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(expr))
	require.NoError(t, err)
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
	require.Empty(t, answer.Error, expr)
	var series []Series
	if answer.Data.ResultType == "vector" {
		require.NoError(t, json.Unmarshal(answer.Data.Result, &series))
	}
	return series
}
