package inbound

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/idempotency"
	"github.com/betterdata/webhooks/schemas"
)

// result is what became of a record.
type result int

const (
	processed result = iota
	stale
	duplicate
	ignored
	dead
	refused
	forwarded
	results
)

// names are the labels; refused is a command's, forwarded an event's whose account was moved.
var names = [results]string{
	schemas.OutcomeProcessed, schemas.OutcomeStale, schemas.OutcomeDuplicate, schemas.OutcomeIgnored, schemas.OutcomeDead,
	"refused", "forwarded",
}

// otherType stands for the types that are not handled: a label never comes from outside.
const otherType = "other"

// counted are the values of the label type.
var counted = append(billing.Types(), schemas.TypeCommand, otherType)

func countedAs(eventType string) int {
	if at := slices.Index(counted, eventType); at >= 0 {
		return at
	}
	return len(counted) - 1
}

// idempotentNames are the labels of the verdicts that are counted.
var idempotentNames = map[idempotency.Verdict]string{
	idempotency.Replayed: "replayed", idempotency.Reused: "reused", idempotency.InProgress: "in_progress",
}

type metrics struct {
	// events by place in counted and result.
	events          [][results]prometheus.Counter
	paymentFailures prometheus.Counter
	unmappedPrices  prometheus.Counter
	subscriptions   prometheus.Counter
	idempotent      map[idempotency.Verdict]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_processor_events_total",
		Help: "Inbound records by what became of them.",
	}, []string{"type", "result"})
	m := &metrics{
		paymentFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_billing_payment_failures_total",
			Help: "invoice.payment_failed events that took effect.",
		}),
		unmappedPrices: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_billing_unmapped_prices_total",
			Help: "Prices in subscription events that are in no plan of PLANS_FILE.",
		}),
		subscriptions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "webhooks_billing_subscriptions_moved_total",
			Help: "Subscriptions that an event took from one organization to another.",
		}),
	}
	for _, eventType := range counted {
		var row [results]prometheus.Counter
		for r, name := range names {
			row[r] = events.WithLabelValues(eventType, name)
		}
		m.events = append(m.events, row)
	}
	idempotent := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_idempotent_answers_total",
		Help: "Management requests whose Idempotency-Key was known, by how they were answered.",
	}, []string{"result"})
	m.idempotent = map[idempotency.Verdict]prometheus.Counter{}
	for verdict, name := range idempotentNames {
		m.idempotent[verdict] = idempotent.WithLabelValues(name)
	}
	reg.MustRegister(events, m.paymentFailures, m.unmappedPrices, m.subscriptions, idempotent)
	return m
}

// tally counts a transaction's work until it is known to be committed.
type tally struct {
	events          [][results]int
	paymentFailures int
	unmappedPrices  int
	subscriptions   int
	idempotent      map[idempotency.Verdict]int
}

func newTally() tally {
	return tally{events: make([][results]int, len(counted)), idempotent: map[idempotency.Verdict]int{}}
}

func (t *tally) count(eventType string, r result) { t.events[countedAs(eventType)][r]++ }

// flush adds what was counted to the metrics.
func (t *tally) flush(m *metrics) {
	for i, row := range t.events {
		for r, n := range row {
			if n > 0 {
				m.events[i][r].Add(float64(n))
			}
		}
	}
	m.paymentFailures.Add(float64(t.paymentFailures))
	m.unmappedPrices.Add(float64(t.unmappedPrices))
	m.subscriptions.Add(float64(t.subscriptions))
	for verdict, n := range t.idempotent {
		m.idempotent[verdict].Add(float64(n))
	}
	t.reset()
}

func (t *tally) reset() {
	clear(t.events)
	clear(t.idempotent)
	t.paymentFailures, t.unmappedPrices, t.subscriptions = 0, 0, 0
}
