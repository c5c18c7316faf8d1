package testenv

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Alertmanager is Debian's, on an address and data of its own.
type Alertmanager struct {
	*Server
	URL string

	data string
}

// Alert is an alert that an Alertmanager holds for active.
type Alert struct {
	Labels, Annotations map[string]string
	StartsAt, EndsAt    time.Time
}

// alertmanagerConfig groups by invoice and notifies a webhook at once.
const alertmanagerConfig = `
route: {receiver: test, group_by: [invoice_id], group_wait: 100ms, group_interval: 200ms, repeat_interval: 1h}
receivers: [{name: test, webhook_configs: [{url: %q, send_resolved: true}]}]
`

// NewAlertmanager starts an Alertmanager for this test alone, which notifies the webhook.
func NewAlertmanager(t testing.TB, webhook string) *Alertmanager {
	t.Helper()
	program, err := need(t.Context(), "prometheus-alertmanager")
	require.NoError(t, err)
	folder, err := newFolder("alertmanager-")
	require.NoError(t, err)
	config := filepath.Join(folder, "alertmanager.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, alertmanagerConfig, webhook), 0o600))
	addr := FreeAddr(t)
	a := &Alertmanager{URL: "http://" + addr, data: filepath.Join(folder, "data")}
	a.Server, err = startServer(t.Context(), folder, []string{
		program, "--config.file=" + config, "--storage.path=" + a.data, "--web.listen-address=" + addr, "--cluster.listen-address=",
	}, readyAt(a.URL+"/-/ready"))
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return a
}

// Forget kills it, deletes its data and starts it again.
func (a *Alertmanager) Forget(t testing.TB) {
	t.Helper()
	require.NoError(t, a.Kill())
	require.NoError(t, os.RemoveAll(a.data))
	require.NoError(t, a.Start(t.Context()))
}

// Active are the alerts that have not ended.
func (a *Alertmanager) Active(t testing.TB) (list []Alert) {
	t.Helper()
	resp, err := http.Get(a.URL + "/api/v2/alerts")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&list))
	return list
}
