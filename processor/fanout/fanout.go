// Package fanout is the task of the group `fan-out`: it decides which of its organization's endpoints each event goes
// to.
//
// An event in gives, in one transaction: at most one record a partition of `deliveries` (more only where thousands of
// endpoints want it) with the endpoints there that match; a row of `deliveries` for each of them, or, when none is
// enabled and matches, rows that say so; and a row of `events`. The body that merchants receive is built here, once
// (internal/outbound).
//
// The endpoints come from the local copy of the table `endpoints`. An event made in its organization's own partition
// says which version of the organization's endpoint set it was made under, and fan-out holds it until its copy has that
// one: an endpoint that was created before an event gets it. Until then its partition takes no more events, so that none
// overtakes it; other partitions go on. An organization's endpoints are decoded once and kept until one changes; what an
// event costs does not depend on other organizations' endpoints.
package fanout

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
)

// Endpoints is the local copy of the table `endpoints` (*table.Copy).
type Endpoints interface {
	Get(key []byte) (value []byte, ok bool, err error)
	Scan(prefix []byte, fn func(key, value []byte) bool) error
	// OnChange registers fn for every change, called after the change can be read.
	OnChange(fn func(key, value []byte))
}

// Fanout makes the group's tasks.
type Fanout struct {
	matcher *matcher
	log     *slog.Logger
	metrics *metrics
}

// New makes a Fanout. It must be called before the copy runs.
func New(endpoints Endpoints, log *slog.Logger, reg prometheus.Registerer) (*Fanout, error) {
	filters, err := eventfilter.NewCompiler()
	if err != nil {
		return nil, fmt.Errorf("fan-out: %w", err)
	}
	m := newMetrics(reg)
	return &Fanout{matcher: newMatcher(endpoints, filters, log, m), log: log, metrics: m}, nil
}

// window bounds the events of a partition that may be open: what one transaction takes, and then those held.
const window = 256

// Spec is what the stream runtime runs.
func (f *Fanout) Spec() stream.Spec {
	return stream.Spec{
		Group:  schemas.GroupFanOut,
		Input:  schemas.Events,
		Window: window,
		NewTask: func(p *stream.Partition) (stream.Task, error) {
			return &task{Fanout: f, partition: p}, nil
		},
	}
}

type metrics struct {
	matched, unmatched, dead           prometheus.Counter
	deliveries, filterErrors, unusable prometheus.Counter
	waits                              prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "webhooks_fanout_events_total",
		Help: "Events by whether an enabled endpoint wanted them.",
	}, []string{"result"})
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "webhooks_fanout_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	reg.MustRegister(events)
	return &metrics{
		matched: events.WithLabelValues("matched"), unmatched: events.WithLabelValues("unmatched"), dead: events.WithLabelValues("dead"),
		deliveries:   counter("deliveries_total", "Deliveries made."),
		filterErrors: counter("filter_errors_total", "Filters that failed on an event, which counts as no match."),
		unusable:     counter("unusable_filters_total", "Stored filters that do not compile, by decoding of their endpoint; they match nothing."),
		waits:        counter("waits_total", "Events that waited for the copy of the endpoints."),
	}
}
