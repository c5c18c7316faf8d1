package routing

import "github.com/prometheus/client_golang/prometheus"

// result is what became of an event.
type result int

const (
	resultHeld result = iota
	resultForwarded
	resultHandedOn
	resultLearned
	resultIgnored
	resultDead
	results
)

var resultNames = [results]string{"held", "forwarded", "handed_on", "learned", "ignored", "dead"}

type metrics struct {
	events [results]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_router_events_total",
		Help: "Events of accounts without a route, by what became of them. A held event counts again when it is handed on.",
	}, []string{"result"})
	m := &metrics{}
	for r, name := range resultNames {
		m.events[r] = events.WithLabelValues(name)
	}
	reg.MustRegister(events)
	return m
}

func (m *metrics) add(counts *[results]int) {
	for r, n := range counts {
		if n > 0 {
			m.events[r].Add(float64(n))
		}
	}
}
