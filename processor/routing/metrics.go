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
	// handingOver counts accounts, overdue hand-overs.
	handingOver prometheus.Gauge
	overdue     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_router_events_total",
		Help: "Events of accounts without a route, by what became of them. A held event counts again when it is handed on; " +
			"one that cannot be used counts as forwarded, to who buries it and counts it dead.",
	}, []string{"result"})
	m := &metrics{
		handingOver: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "webhooks_router_handing_over",
			Help: "Accounts whose events wait until one organization has handed them over to another. It takes seconds.",
		}),
		overdue: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_router_hand_overs_overdue_total",
			Help: "Hand-overs of accounts that were not heard of for hours and are waited for no more.",
		}),
	}
	for r, name := range resultNames {
		m.events[r] = events.WithLabelValues(name)
	}
	reg.MustRegister(events, m.handingOver, m.overdue)
	return m
}

func (m *metrics) add(counts *[results]int) {
	for r, n := range counts {
		if n > 0 {
			m.events[r].Add(float64(n))
		}
	}
}
