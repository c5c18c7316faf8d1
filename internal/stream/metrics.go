package stream

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// results of a transaction: the values of the label result.
const (
	resultCommitted = "committed"
	// resultAborted counts each abort; most are tried again as they are and then committed.
	resultAborted = "aborted"
	// resultTakenBack: aborted for good, its records are processed again.
	resultTakenBack = "taken_back"
	// resultUnknown: the answer was lost, and reading back showed a commit, which is counted too.
	resultUnknown = "unknown"
	resultFailed  = "failed"
)

type metrics struct {
	transactions map[string]prometheus.Counter
	seconds      prometheus.Observer
	inputs       prometheus.Counter
	outputs      prometheus.Counter
	rebuilds     prometheus.Counter
	partitions   prometheus.Gauge
	restoring    prometheus.Gauge
	restored     prometheus.Counter
	left         prometheus.Gauge
	restoreTime  prometheus.Counter
	wiped        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, group string, lag func() int64, waited func() time.Duration) *metrics {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"group": group}, reg)
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "webhooks_stream_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "webhooks_stream_" + name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		transactions: map[string]prometheus.Counter{},
		inputs:       counter("inputs_total", "Input records in committed transactions."),
		outputs:      counter("outputs_total", "Records produced in committed transactions, changelogs too."),
		rebuilds:     counter("session_rebuilds_total", "Sessions closed and built again after a fatal error."),
		partitions:   gauge("partitions", "Partitions whose tasks run here."),
		restoring:    gauge("partitions_restoring", "Partitions whose state is being restored."),
		restored:     counter("restore_records_total", "Changelog records read to restore state."),
		left:         gauge("restore_left_records", "Changelog offsets that restores under way have still to read."),
		restoreTime:  counter("restore_seconds_total", "Time partitions waited for their state."),
		wiped:        counter("stores_wiped_total", "Local stores found stale or foreign and rebuilt."),
	}
	tx := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_stream_transactions_total", Help: "Transactions by how they ended.",
	}, []string{"result"})
	for _, r := range []string{resultCommitted, resultAborted, resultTakenBack, resultUnknown, resultFailed} {
		m.transactions[r] = tx.WithLabelValues(r)
	}
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "webhooks_stream_transaction_seconds", Help: "From Begin to the end of End.",
		Buckets:                     []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	})
	m.seconds = seconds
	reg.MustRegister(tx, seconds, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "webhooks_stream_lag_records", Help: "Input records that wait, over the partitions owned here.",
	}, func() float64 { return float64(lag()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "webhooks_stream_lag_seconds",
		Help: "For how long the oldest input record that waits has waited, over the partitions owned here; until it has been read, for how long the partition has been.",
	}, func() float64 { return waited().Seconds() }))
	return m
}
