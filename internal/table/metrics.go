package table

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	applied prometheus.Counter
}

// newMetrics registers a copy's metrics; the table's name tells copies in one process apart.
func newMetrics(reg prometheus.Registerer, table string, age func() time.Duration) *metrics {
	labels := prometheus.Labels{"table": table}
	m := &metrics{applied: prometheus.NewCounter(prometheus.CounterOpts{
		Name:        "webhooks_table_records_applied_total",
		Help:        "Records applied to the local copy of a table.",
		ConstLabels: labels,
	})}
	reg.MustRegister(m.applied, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "webhooks_table_age_seconds",
		Help:        "For how long the local copy of a table may have missed changes.",
		ConstLabels: labels,
	}, func() float64 { return age().Seconds() }))
	return m
}
