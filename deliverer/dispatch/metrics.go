package dispatch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/deliverer/sender"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// metrics of CONTRACT §9. Labels come from closed sets and exist from the start.
type metrics struct {
	success   prometheus.Counter
	failures  [256]prometheus.Counter // by class
	duration  prometheus.Histogram
	latency   prometheus.Histogram
	delivered prometheus.Counter
	dead      prometheus.Counter
	// gone and failing are commands to disable an endpoint, by reason.
	gone, failing prometheus.Counter
	commands      *prometheus.CounterVec
	// replayed are deliveries of replays that have ended or wait in the schedule; unread, reads of the record that failed.
	replayed, unread prometheus.Counter
}

var waitingReasons = map[webhooksv1.WaitingReason]string{
	webhooksv1.WaitingReason_WAITING_REASON_BACKOFF:   "backoff",
	webhooksv1.WaitingReason_WAITING_REASON_SATURATED: "saturated",
	webhooksv1.WaitingReason_WAITING_REASON_BREAKER:   "breaker",
	webhooksv1.WaitingReason_WAITING_REASON_ORDERED:   "ordered",
	webhooksv1.WaitingReason_WAITING_REASON_PAUSED:    "paused",
}

func newMetrics(reg prometheus.Registerer, d *Dispatcher) *metrics {
	attempts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_attempts_total", Help: "Attempts, by outcome and class of error.",
	}, []string{"outcome", "error_class"})
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_deliveries_ended_total", Help: "Deliveries that ended, by status.",
	}, []string{"status"})
	disabled := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_endpoints_disabled_total", Help: "Commands to disable an endpoint, by what it was judged for.",
	}, []string{"reason"})
	m := &metrics{
		success: attempts.WithLabelValues("success", ""),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_attempt_duration_seconds", Help: "Duration of attempts.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25},
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "webhooks_delivery_latency_seconds", Help: "From the edge's 200 to the first attempt's request.",
			Buckets: []float64{.01, .025, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		replayed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_replay_deliveries_total", Help: "Deliveries that replays have made: ended, or waiting in the retry schedule.",
		}),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_replay_read_failures_total", Help: "Reads of the record for replays that failed; they are tried again.",
		}),
		delivered: ended.WithLabelValues(schemas.DeliveryDelivered),
		dead:      ended.WithLabelValues(schemas.DeliveryDead),
		gone:      disabled.WithLabelValues(reasonGone),
		failing:   disabled.WithLabelValues(reasonFailing),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "webhooks_delivery_commands_total", Help: "Commands on deliveries and endpoints that were answered, by what came of them.",
		}, []string{"command", "result"}),
	}
	for _, name := range commandNames {
		m.commands.WithLabelValues(name, "done")
		m.commands.WithLabelValues(name, "refused")
	}
	for _, c := range sender.Classes() {
		m.failures[c] = attempts.WithLabelValues("failure", c.String())
	}
	reg.MustRegister(attempts, ended, disabled, m.duration, m.latency, m.commands, m.replayed, m.unread)
	registerGauges(reg, d)
	return m
}

// registerGauges shows what tasks hold.
func registerGauges(reg prometheus.Registerer, d *Dispatcher) {
	for i, status := range replayStatuses {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_replays", Help: "Replays that have not ended, by status.",
			ConstLabels: prometheus.Labels{"status": status},
		}, func() float64 { return d.sum(func(t *task) int64 { return t.replays[i].Load() }) }))
	}
	for reason, name := range waitingReasons {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_retry_waiting", Help: "Deliveries that wait, by reason.",
			ConstLabels: prometheus.Labels{"reason": name},
		}, func() float64 {
			return d.sum(func(t *task) int64 { return t.census.published[reason].Load() })
		}))
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_attempts_in_flight", Help: "Attempts begun and not ended.",
		}, func() float64 { return float64(d.room.begun.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_deliveries_in_hand_bytes", Help: "Memory of the records whose deliveries are in hand.",
		}, func() float64 { return float64(d.room.held.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_breakers_open", Help: "Endpoints whose circuit breaker is open.",
		}, func() float64 { return d.sum(func(t *task) int64 { return t.breakers.Load() }) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_retry_oldest_due_seconds",
			Help: "For how long the oldest due delivery has waited for its attempt, paused endpoints aside.",
		}, func() float64 { return d.longest(func(t *task) int64 { return t.oldest.Load() }) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "webhooks_retry_overdue_seconds",
			Help: "The same of endpoints whose breaker is closed: only our own limits, or the endpoint's, can hold these up.",
		}, func() float64 { return d.longest(func(t *task) int64 { return t.overdue.Load() }) }),
	)
}

func (d *Dispatcher) sum(of func(*task) int64) float64 {
	var total int64
	d.eachTask(func(t *task) { total += of(t) })
	return float64(total)
}

// longest is for how many seconds the earliest of the tasks' due times has passed; 0 is none.
func (d *Dispatcher) longest(of func(*task) int64) float64 {
	now := time.Now().UnixMilli()
	oldest := now
	d.eachTask(func(t *task) {
		if due := of(t); due != 0 {
			oldest = min(oldest, due)
		}
	})
	return float64(now-oldest) / 1000
}

// attempt counts one that is durable.
func (m *metrics) attempt(f *flight) {
	if f.result.Success() {
		m.success.Inc()
	} else {
		m.failures[f.result.Class].Inc()
	}
	m.duration.Observe(f.result.Duration.Seconds())
	if accepted := f.event.GetAcceptedUnixMs(); f.number == 1 && !f.maybe && f.test == nil && f.replay == "" && accepted != 0 {
		m.latency.Observe(f.result.Started.Sub(time.UnixMilli(accepted)).Seconds())
	}
}

// observe publishes what the metrics say of a partition's endpoints.
func (t *task) observe() {
	var broken, oldest, overdue int64
	for _, e := range t.endpoints {
		if e.control.Broken() {
			broken++
		}
		if e.head.IsZero() || !e.loaded || e.mode() == paused {
			continue
		}
		due := e.head.UnixMilli()
		oldest = sooner(oldest, due)
		if !e.control.Broken() {
			overdue = sooner(overdue, due)
		}
	}
	t.breakers.Store(broken)
	t.oldest.Store(oldest)
	t.overdue.Store(overdue)
}

// sooner is the earlier of two times in Unix ms, of which the first may be none.
func sooner(a, b int64) int64 {
	if a == 0 {
		return b
	}
	return min(a, b)
}
