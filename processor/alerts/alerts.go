// Package alerts tells Alertmanagers of failed payments: one alert InvoicePaymentFailed for each open invoice of the table
// `billing`.
//
//	the copy of `billing` → board (what is open, what ended lately) → POST /api/v2/alerts, each Alertmanager
//
// Alertmanager keeps no alerts over its restart and expects them to be sent again and again, so every open one is sent
// each interval, and at once when something changes. What has ended is sent with its end for a day more: an Alertmanager
// that was away in the meantime has no alert left, but may have told somebody that there is one, and remembers that it
// did. Every instance of the processor sends everything: the labels say which invoice it is, and Alertmanager takes equal
// ones for one alert. So there is no leader, and nothing to keep but what the table has.
//
// What it promises: an open invoice's alert is active in every Alertmanager that is reached, from a second after the
// table has it, and ended a second after its settlement; a restart of either side, with or without its data, changes
// nothing of that. An instance that cannot prove its copy current sends nothing: it could open what is paid.
//
// An open alert says that it ends in some intervals, and each sending moves that on. Without it Alertmanager's own
// resolve_timeout would decide, which is meant for alerts without an end. A while is left to a processor that restarts
// or is cut off from Kafka: an alert that ends because nobody watches looks as if the invoice were paid, while one that
// stays a little after its payment costs nothing, for its end is sent as soon as a processor is there again. And it
// does end: for what nobody has watched for longer, nobody can speak.
//
// An Alertmanager that is away is told with the next interval. One that refuses an alert (400, 413, 422) is told all others:
// the refused one is found by halves, counted and logged, and tried again behind them.
//
// What it must not do: keep a processor from its work, or from being ready, because an Alertmanager is away.
package alerts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what the operator decides.
type Config struct {
	// URLs of the Alertmanagers, without /api/v2/alerts; a user and password in one are used and never shown.
	URLs []string
	// Interval is how often open alerts are sent again; 1 m when 0.
	Interval time.Duration
}

// Billing is the local copy of the table `billing` (*table.Copy).
type Billing interface {
	// OnChange registers fn for every record there is and every change.
	OnChange(fn func(key, value []byte))
	// WaitAllCurrent returns once fn was called for every change made before.
	WaitAllCurrent(ctx context.Context) error
}

const (
	defaultInterval = time.Minute
	// lease is for how many intervals an open alert holds without being sent again.
	lease = 10
	// farewell is for how long after a settlement its end is sent, by whichever process, and for how long by one that told
	// it was open after it heard of the settlement. Alertmanager remembers for longer whom it notified (data.retention,
	// 120h), and is told for as long as it may have been away. With a long interval it is minFarewell of them, which is
	// longer than the lease: whom no end has reached by then has seen the alert end by itself.
	farewell    = 24 * time.Hour
	minFarewell = 15
	// gather is how long what changes is collected before it is sent.
	gather = 500 * time.Millisecond
	// proofWait bounds one try to prove the copy current: a proof that took longer would be of what was true then.
	proofWait = 10 * time.Second
	// proofPause is between such tries.
	proofPause = time.Second
)

// Alerts sends the alerts of one process.
type Alerts struct {
	interval time.Duration
	billing  Billing
	board    *board
	managers []*manager
	changed  chan struct{}
	log      *slog.Logger
}

// New makes an Alerts. It must be called before the copy runs.
func New(cfg Config, billing Billing, log *slog.Logger, reg prometheus.Registerer) (*Alerts, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("alerts: at least one Alertmanager is required")
	}
	a := &Alerts{interval: cfg.Interval, billing: billing, changed: make(chan struct{}, 1), log: log}
	if a.interval == 0 {
		a.interval = defaultInterval
	}
	a.board = newBoard(max(farewell, minFarewell*a.interval))
	m := newMetrics(reg, a.board.countOpen)
	for _, text := range cfg.URLs {
		manager, err := newManager(text, log, m)
		if err != nil {
			return nil, fmt.Errorf("alerts: %w", err)
		}
		a.managers = append(a.managers, manager)
	}
	billing.OnChange(func(key, value []byte) {
		if !a.board.apply(key, value, time.Now()) {
			return
		}
		select {
		case a.changed <- struct{}{}:
		default:
		}
	})
	return a, nil
}

// Check is always nil: what the processor does for merchants does not need an Alertmanager.
func (a *Alerts) Check(context.Context) error { return nil }

// Run sends until ctx ends.
func (a *Alerts) Run(ctx context.Context) error {
	for _, m := range a.managers {
		a.log.Info("failed payments are told to an Alertmanager", "alertmanager", m.name, "interval", a.interval.String())
	}
	again := time.NewTicker(a.interval)
	defer again.Stop()
	for everything := true; a.awaitProof(ctx); {
		now := time.Now()
		a.send(ctx, a.board.take(now, everything), now.Add(lease*a.interval))
		select {
		case <-ctx.Done():
		case <-again.C:
			everything = true
		case <-a.changed:
			everything = false
			pause(ctx, gather)
		}
	}
	return nil
}

// awaitProof returns once the copy holds all that was committed a moment ago; false when ctx ended first. What changes
// in the meantime is collected.
func (a *Alerts) awaitProof(ctx context.Context) bool {
	for said := false; ctx.Err() == nil; pause(ctx, proofPause) {
		bounded, cancel := context.WithTimeout(ctx, proofWait)
		err := a.billing.WaitAllCurrent(bounded)
		cancel()
		switch {
		case err == nil:
			if said {
				a.log.Info("alerts are sent again")
			}
			return ctx.Err() == nil
		case ctx.Err() == nil && !said:
			said = true
			a.log.Warn("no alerts are sent until the copy of the table is current", "table", "billing", "error", err)
		}
	}
	return false
}

// send tells every Alertmanager, side by side. What cannot be sent is sent with the next interval.
func (a *Alerts) send(ctx context.Context, list []*told, holds time.Time) {
	if len(list) == 0 {
		return
	}
	alerts := alertsOf(list, holds)
	var sending sync.WaitGroup
	for _, m := range a.managers {
		sending.Go(func() { m.send(ctx, alerts) })
	}
	sending.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

type metrics struct{ sent, refused, failed prometheus.Counter }

func newMetrics(reg prometheus.Registerer, open func() int) *metrics {
	notifications := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_alert_notifications_total",
		Help: "Alerts of failed payments given to an Alertmanager, repeats too, by whether it took them.",
	}, []string{"result"})
	reg.MustRegister(notifications, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "webhooks_alerts_open",
		Help: "Invoices whose payment failed and that are not settled.",
	}, func() float64 { return float64(open()) }))
	return &metrics{
		sent: notifications.WithLabelValues("sent"), refused: notifications.WithLabelValues("refused"),
		failed: notifications.WithLabelValues("failed"),
	}
}
