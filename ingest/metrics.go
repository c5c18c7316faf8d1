package ingest

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/ingest/rejections"
	"github.com/betterdata/webhooks/ingest/source"
)

// management is the label of requests that no platform sends: the API and the page.
const management = "management"

// metrics are the edge's, their label values made beforehand: nothing from outside becomes one.
type metrics struct {
	requests map[string]*[maxStatus]prometheus.Counter
	rejected map[string]map[source.Reason]prometheus.Counter
	ignored  map[string]prometheus.Counter
	duration prometheus.Observer
}

const maxStatus = 600

func newMetrics(reg prometheus.Registerer, sources []string, held func() float64) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_ingest_requests_total", Help: "Requests answered, by source and status code.",
	}, []string{"source", "code"})
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_ingest_rejected_total", Help: "Webhook requests refused, by source and reason.",
	}, []string{"source", "reason"})
	ignored := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_ingest_ignored_total", Help: "Verified events that take no effect because they are of the other livemode.",
	}, []string{"source"})
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "webhooks_ingest_request_duration_seconds", Help: "From a webhook request's headers read to its answer made.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	})
	heldBytes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "webhooks_ingest_held_bytes", Help: "Bodies in memory: being read or waiting for Kafka.",
	}, held)
	reg.MustRegister(requests, rejected, ignored, duration, heldBytes)
	m := &metrics{
		requests: map[string]*[maxStatus]prometheus.Counter{}, rejected: map[string]map[source.Reason]prometheus.Counter{},
		ignored: map[string]prometheus.Counter{}, duration: duration,
	}
	for _, name := range append([]string{rejections.Unknown}, sources...) {
		m.ignored[name] = ignored.WithLabelValues(name)
		m.rejected[name] = map[source.Reason]prometheus.Counter{}
		m.requests[name] = statusCounters(requests, name, http.StatusOK, http.StatusInternalServerError)
		for _, reason := range source.Reasons() {
			m.rejected[name][reason] = rejected.WithLabelValues(name, string(reason))
			m.requests[name][reason.Status()] = requests.WithLabelValues(name, strconv.Itoa(reason.Status()))
		}
	}
	m.requests[management] = statusCounters(requests, management, http.StatusOK, http.StatusCreated, http.StatusAccepted,
		http.StatusNoContent, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
		http.StatusMethodNotAllowed, http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusInternalServerError,
		http.StatusServiceUnavailable)
	return m
}

// statusCounters makes the counters of the codes that a source's requests are answered with; others share one.
func statusCounters(requests *prometheus.CounterVec, name string, codes ...int) *[maxStatus]prometheus.Counter {
	counters := new([maxStatus]prometheus.Counter)
	other := requests.WithLabelValues(name, "other")
	for code := range counters {
		counters[code] = other
	}
	for _, code := range codes {
		counters[code] = requests.WithLabelValues(name, strconv.Itoa(code))
	}
	return counters
}

func (m *metrics) answered(name string, code int) {
	m.requests[name][min(max(code, 0), maxStatus-1)].Inc()
}
