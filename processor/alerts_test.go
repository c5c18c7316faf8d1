package processor

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/alerts"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

// pager is whom Alertmanager notifies.
type pager struct {
	url string

	mu    sync.Mutex
	pages []string // "firing in_1"
}

func newPager(t *testing.T) *pager {
	p := &pager{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var page struct {
			Alerts []struct {
				Status string
				Labels map[string]string
			}
		}
		if json.NewDecoder(r.Body).Decode(&page) != nil {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, a := range page.Alerts {
			p.pages = append(p.pages, a.Status+" "+a.Labels["invoice_id"])
		}
	}))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func (p *pager) count(page string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.pages {
		if one == page {
			n++
		}
	}
	return n
}

// invoice sends an event of an invoice of org_1 and cus_1 as the edge does.
func (r *rig) invoice(eventID, eventType, invoice string, created int64) {
	r.produce(schemas.Inbound, org, fmt.Appendf(nil, `{"id":%q,"created":%d,"data":{"object":{"id":%q,"object":"invoice","customer":"cus_1",
		"amount_due":1999,"amount_paid":1999,"currency":"usd","attempt_count":2}}}`, eventID, created, invoice),
		append(stripeHeaders(eventID, eventType), schemas.HeaderOrganization, org)...)
}

// TestAFailedPaymentIsAlerted runs the processor beside Debian's Alertmanager, over restarts of both with and without
// their data. The pager is who sees in the end what a person would.
func TestAFailedPaymentIsAlerted(t *testing.T) {
	const interval = 500 * time.Millisecond
	page := newPager(t)
	manager := testenv.NewAlertmanager(t, page.url)
	cfg, clickhouseURL, stateDir := testenv.FakeKafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state")
	alerting := func(c *Config) { c.Alerts = alerts.Config{URLs: []string{manager.URL}, Interval: interval} }
	r := start(t, cfg, clickhouseURL, stateDir, alerting)
	active := func(want ...string) {
		t.Helper()
		var have []string
		testenv.Eventually(t, patience, func() bool {
			have = nil
			for _, a := range manager.Active(t) {
				have = append(have, a.Labels["invoice_id"])
			}
			slices.Sort(have)
			return slices.Equal(have, want)
		}, "active alerts ", want)
	}
	// stays looks for as long as several sendings take.
	stays := func(want ...string) {
		t.Helper()
		for range 8 {
			active(want...)
			time.Sleep(interval / 2)
		}
	}
	now := time.Now().Unix() - 60

	r.invoice("evt_1", billing.PaymentFailed, "in_1", now)
	r.invoice("evt_2", billing.PaymentFailed, "in_2", now+1)
	r.invoice("evt_3", billing.PaymentFailed, "in_3", now+2)
	active("in_1", "in_2", "in_3")
	first := manager.Active(t)[0]
	require.Equal(t, []string{"alertname", "customer_id", "invoice_id", "organization_id", "severity"}, slices.Sorted(maps.Keys(first.Labels)))
	require.Equal(t, []string{"InvoicePaymentFailed", "cus_1", "org_1", "warning"}, []string{
		first.Labels["alertname"], first.Labels["customer_id"], first.Labels["organization_id"], first.Labels["severity"],
	})
	require.Contains(t, first.Annotations["amount"], "1999 usd")
	require.Equal(t, "2", first.Annotations["attempts"])
	require.InDelta(t, now, first.StartsAt.Unix(), 2)

	settled := time.Now()
	r.invoice("evt_4", billing.InvoicePaid, "in_1", now+3)
	r.invoice("evt_5", billing.InvoiceVoided, "in_2", now+4)
	active("in_3")
	require.Less(t, time.Since(settled), 8*interval, "it ends because it was said to, not because its time ran out")
	testenv.Eventually(t, patience, func() bool { return page.count("resolved in_1") == 1 && page.count("resolved in_2") == 1 }, "the pager")

	// Another failure of a paid invoice, and the same one again: neither opens it.
	r.invoice("evt_6", billing.PaymentFailed, "in_1", now+5)
	r.invoice("evt_1", billing.PaymentFailed, "in_1", now)
	stays("in_3")

	manager.Forget(t)
	active("in_3")
	stays("in_3")

	for _, lost := range []bool{false, true} {
		r.stop()
		if lost {
			require.NoError(t, os.RemoveAll(stateDir))
		}
		r = start(t, cfg, clickhouseURL, stateDir, alerting)
		stays("in_3")
	}
	// Both at once: what is open is known from Kafka alone.
	r.stop()
	manager.Forget(t)
	active()
	require.NoError(t, os.RemoveAll(stateDir))
	r = start(t, cfg, clickhouseURL, stateDir, alerting)
	active("in_3")
	r.invoice("evt_7", billing.InvoiceUncollectible, "in_3", now+6)
	active()
	testenv.Eventually(t, patience, func() bool { return page.count("resolved in_3") == 1 }, "the pager")
	require.Equal(t, 1, page.count("firing in_1"), "repeats are one alert")
	require.Equal(t, 1, page.count("resolved in_1"))
}

// An Alertmanager that comes back has no alerts, but knows whom it told of one. It tells them of the end only if it hears of
// it.
func TestAnAlertmanagerThatWasAwayHearsOfTheEnd(t *testing.T) {
	const interval = 200 * time.Millisecond
	page := newPager(t)
	manager := testenv.NewAlertmanager(t, page.url)
	cfg, clickhouseURL, stateDir := testenv.FakeKafka(t), testenv.ClickHouse(t), filepath.Join(t.TempDir(), "state")
	alerting := func(c *Config) { c.Alerts = alerts.Config{URLs: []string{manager.URL}, Interval: interval} }
	r := start(t, cfg, clickhouseURL, stateDir, alerting)
	now := time.Now().Unix() - 60
	for i, invoice := range []string{"in_1", "in_2"} {
		r.invoice("evt_failed_"+invoice, billing.PaymentFailed, invoice, now)
		testenv.Eventually(t, patience, func() bool { return page.count("firing "+invoice) == 1 }, "the pager")
		require.NoError(t, manager.End())
		r.invoice("evt_paid_"+invoice, billing.InvoicePaid, invoice, now+1)
		time.Sleep(20 * interval) // longer than an open alert holds
		if i == 1 {
			r.stop()
			r = start(t, cfg, clickhouseURL, stateDir, alerting)
		}
		require.NoError(t, manager.Start(t.Context()))
		testenv.Eventually(t, patience, func() bool { return page.count("resolved "+invoice) == 1 }, "the pager hears of the end")
	}
}
