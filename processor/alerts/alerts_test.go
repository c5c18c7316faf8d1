package alerts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/testenv"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	patience      = 10 * time.Second
	notifications = "webhooks_alert_notifications_total"
)

// table is a copy of the table that a test changes.
type table struct {
	fn    func(key, value []byte)
	stale atomic.Bool
}

func (c *table) OnChange(fn func(key, value []byte)) { c.fn = fn }

func (c *table) WaitAllCurrent(context.Context) error {
	if c.stale.Load() {
		return errors.New("the copy is behind")
	}
	return nil
}

// taker is an Alertmanager that takes everything, or answers as it is told.
type taker struct {
	*httptest.Server
	status atomic.Int32

	mu       sync.Mutex
	requests [][]alert
	auth     string
}

func newTaker(t *testing.T) *taker {
	s := &taker{}
	s.status.Store(http.StatusOK)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var alerts []alert
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &alerts) != nil || r.URL.Path != "/prefix/api/v2/alerts" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.requests = append(s.requests, alerts)
		s.auth = r.Header.Get("Authorization")
		w.WriteHeader(int(s.status.Load()))
		fmt.Fprint(w, "what is wrong")
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *taker) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// rig is a running Alerts.
type rig struct {
	billing *table
	log     *buffer
	reg     *prometheus.Registry
}

func run(t *testing.T, billing *table, interval time.Duration, urls ...string) rig {
	r := rig{billing, &buffer{}, prometheus.NewRegistry()}
	a, err := New(Config{URLs: urls, Interval: interval}, billing, slog.New(slog.NewTextHandler(r.log, nil)), r.reg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return r
}

// metric is the value of a counter by its result, or of the gauge, which has none.
func (r rig) metric(t *testing.T, name string, result ...string) float64 {
	families, err := r.reg.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			if family.GetName() == name && slices.Equal(labels, result) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	require.Fail(t, "no such metric", name, result)
	return 0
}

func TestAlertsAreSentOnChangeAndAgain(t *testing.T) {
	manager := newTaker(t)
	r := run(t, &table{}, time.Second, strings.Replace(manager.URL, "http://", "http://ops:hunter2@", 1)+"/prefix/")
	r.billing.fn([]byte(org), record(t, open("in_1")))
	testenv.Eventually(t, patience, func() bool { return manager.count() >= 3 }, "sent again")

	manager.mu.Lock()
	defer manager.mu.Unlock()
	require.Equal(t, "Basic b3BzOmh1bnRlcjI=", manager.auth)
	sent := manager.requests[0]
	require.Len(t, sent, 1)
	require.Equal(t, map[string]string{
		"alertname": "InvoicePaymentFailed", "severity": "warning", "organization_id": org, "customer_id": "cus_1", "invoice_id": "in_1",
	}, sent[0].Labels)
	require.Equal(t, start.Add(-time.Hour).UTC(), sent[0].StartsAt)
	require.InDelta(t, 10, time.Until(sent[0].EndsAt).Seconds(), 5, "it holds for ten intervals")
	require.NotContains(t, r.log.String(), "hunter2")
	require.NotContains(t, r.log.String(), "ops")
}

func TestAStaleCopySendsNothing(t *testing.T) {
	manager, billing := newTaker(t), &table{}
	billing.stale.Store(true)
	r := run(t, billing, 50*time.Millisecond, manager.URL+"/prefix")
	billing.fn([]byte(org), record(t, open("in_1")))
	testenv.Eventually(t, patience, func() bool { return strings.Contains(r.log.String(), "the copy is behind") }, "a word about it")
	time.Sleep(time.Second)
	require.Zero(t, manager.count())

	billing.fn([]byte(org), record(t, ended("in_1", 0)))
	billing.fn([]byte("org_2"), record(t, open("in_2")))
	billing.stale.Store(false)
	testenv.Eventually(t, patience, func() bool { return manager.count() > 0 }, "it is current")
	manager.mu.Lock()
	defer manager.mu.Unlock()
	require.Equal(t, "in_2", manager.requests[0][0].Labels["invoice_id"])
	require.Len(t, manager.requests[0], 1, "what was open and paid meanwhile is told by nobody")
	require.Equal(t, 1, strings.Count(r.log.String(), "the copy is behind"))
}

func TestAnAlertmanagerThatFailsKeepsNobodyWaiting(t *testing.T) {
	broken, sound := newTaker(t), newTaker(t)
	broken.status.Store(http.StatusServiceUnavailable)
	r := run(t, &table{}, 50*time.Millisecond, "http://127.0.0.1:1", broken.URL+"/prefix", sound.URL+"/prefix")
	r.billing.fn([]byte(org), record(t, open("in_1")))
	testenv.Eventually(t, patience, func() bool { return sound.count() >= 5 && broken.count() >= 5 }, "each round")
	require.Equal(t, 1, strings.Count(r.log.String(), "what is wrong"), "once, not each time: %s", r.log)
	require.Equal(t, 1, strings.Count(r.log.String(), "connection refused"), "%s", r.log)
	require.Positive(t, r.metric(t, notifications, "failed"))
	require.Positive(t, r.metric(t, notifications, "sent"))

	broken.status.Store(http.StatusOK)
	testenv.Eventually(t, patience, func() bool { return strings.Contains(r.log.String(), "takes alerts again") }, "a word about it")
}

func TestRequestsAreBounded(t *testing.T) {
	manager, billing := newTaker(t), &table{}
	billing.stale.Store(true)
	r := run(t, billing, time.Minute, manager.URL+"/prefix")
	for i := range 1200 {
		billing.fn(fmt.Append(nil, "org_", i), record(t, open("in_1")))
	}
	billing.stale.Store(false)
	testenv.Eventually(t, patience, func() bool { return r.metric(t, notifications, "sent") == 1200 }, "all are sent")
	require.Equal(t, 3, manager.count())
	require.Equal(t, float64(1200), r.metric(t, "webhooks_alerts_open"))
}

func TestAnEndIsNeverBeforeItsStart(t *testing.T) {
	f := ended("in_1", -2*time.Hour)
	a := alertOf(&told{organization: org, invoice: f, ended: time.UnixMilli(f.EndedUnixMs)}, start)
	require.Equal(t, a.StartsAt, a.EndsAt)
}

// Whoever was away may still have told somebody that an alert is open.
func TestHowLongAnEndIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		interval, ago time.Duration
		told          bool
	}{
		"of a moment ago":              {time.Minute, time.Second, true},
		"of yesterday":                 {time.Minute, 23 * time.Hour, true},
		"of the day before":            {time.Minute, 25 * time.Hour, false},
		"for fifteen long intervals":   {3 * time.Hour, 44 * time.Hour, true},
		"and no longer":                {3 * time.Hour, 46 * time.Hour, false},
		"for a day of short intervals": {time.Second, 23 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := New(Config{URLs: []string{"http://a"}, Interval: c.interval}, &table{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			require.NoError(t, err)
			f := &webhooksv1.FailedInvoice{InvoiceId: "in_1", FirstFailedUnixMs: 1, EndedUnixMs: ms(-c.ago)}
			require.Equal(t, c.told, a.board.apply([]byte(org), record(t, f), start))
			require.Equal(t, c.told, len(a.board.take(start, true)) == 1)
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, urls := range [][]string{nil, {"http://ops:hunter2@%zz"}, {"alertmanager"}} {
		_, err := New(Config{URLs: urls}, &table{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
