package sink

import "github.com/prometheus/client_golang/prometheus"

// Results of a batch.
const (
	// resultInserted: the INSERT was acknowledged.
	resultInserted = "inserted"
	// resultFound: it was not, and its rows were found in the table.
	resultFound = "found"
	// resultAbsent: it was not, and nothing of it was found; it is inserted again.
	resultAbsent = "absent"
	// resultStopped: some of its rows were found, or too many.
	resultStopped = "stopped"
)

type metrics struct {
	batches map[string]prometheus.Counter
	inserts prometheus.Counter
	rows    prometheus.Counter
	dead    prometheus.Counter
}

// newMetrics registers a sink's metrics; the table's name tells sinks in one process apart.
func newMetrics(reg prometheus.Registerer, table string, lag, age, stopped func() float64) *metrics {
	labels := prometheus.Labels{"table": table}
	counter := func(name, help string, labels prometheus.Labels) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	m := &metrics{
		batches: map[string]prometheus.Counter{},
		inserts: counter("webhooks_sink_inserts_total", "INSERTs sent, each of one batch or of those of several partitions.", labels),
		rows:    counter("webhooks_sink_rows_total", "Rows that reached the table.", labels),
		dead:    counter("webhooks_sink_dead_rows_total", "Records that could not be decoded and have no row.", labels),
	}
	for _, result := range []string{resultInserted, resultFound, resultAbsent, resultStopped} {
		m.batches[result] = counter("webhooks_sink_batches_total", "Batches by what became of their INSERT.",
			prometheus.Labels{"table": table, "result": result})
	}
	gauge("webhooks_sink_lag_records", "Offsets of all partitions that are not known to be in the table yet. "+
		"Each instance exports the whole group's: take the maximum over instances, not the sum.", lag)
	gauge("webhooks_sink_age_seconds", "For how long the oldest record held by this instance has waited since it was read; "+
		"before the instance can read, for how long there has been something to read.", age)
	gauge("webhooks_sink_stopped_partitions", "Partitions stopped because the table disagrees with the log; the log says what to do.", stopped)
	return m
}
