// Package inbound is the task group `inbound`: it owns everything about an organization that arrives on `inbound`.
//
// A record is a verified source event or a command of the management API. An event is dropped when it was seen before;
// otherwise it is handed to the domain it belongs to (package billing) and leaves, all in one transaction with the
// input's offset: the new state (tables `billing`, `entitlements`), what is told to merchants (`events`), the audit entry
// (`billing-audit`) and one row that says what became of it (`inbound-rows`). A command is handed to package commands
// and leaves the changed endpoints and its outcome; one with an Idempotency-Key is looked for among those that came before
// (package idempotency), and handed on where another owner carries it out. Timers of the domain are due times in the
// state itself, found by an index and applied when the runtime calls. An account that is moved to another organization is
// handed over to it.
//
// What it promises: one effect per source and event id within the dedupe time, whomever the account is moved to or learnt for
// meanwhile; nothing but a repeat is dropped without a row; a record that cannot be used goes to `inbound.dead` with its reason,
// once, stops nobody, and takes effect when it comes again after a fix. What the router cannot use comes here as a letter, by the
// event's id, so that this holds where there is no organization too. What it must not do: decide anything about billing or
// endpoints itself.
package inbound

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
)

// Config is what the operator decides.
type Config struct {
	Plans *plans.Plans
	// DedupeRetention is how long an event is recognised when it is sent again; DedupeBySource replaces it for a source.
	// It is kept by whole days, rounded up; at most schemas.MaxDedupeRetention.
	DedupeRetention time.Duration
	DedupeBySource  map[string]time.Duration
}

// Inbound makes the tasks of the group.
type Inbound struct {
	cfg      Config
	dedupe   dedupe.Config
	commands *commands.Applier
	log      *slog.Logger
	metrics  *metrics
}

// New checks the configuration.
func New(cfg Config, applier *commands.Applier, log *slog.Logger, reg prometheus.Registerer) (*Inbound, error) {
	if cfg.Plans == nil {
		return nil, errors.New("inbound: plans are required")
	}
	kept := append(slices.Collect(maps.Values(cfg.DedupeBySource)), cfg.DedupeRetention)
	if slices.Min(kept) <= 0 || slices.Max(kept) > schemas.MaxDedupeRetention {
		return nil, fmt.Errorf("inbound: DEDUPE_RETENTION must be above 0 and at most %s for every source", schemas.MaxDedupeRetention)
	}
	memory := dedupe.Config{Store: schemas.InboundSeen, Reading: make(chan struct{}, 1), Log: log}
	return &Inbound{cfg: cfg, dedupe: memory, commands: applier, log: log, metrics: newMetrics(reg)}, nil
}

// Spec is the group as the runtime takes it.
func (i *Inbound) Spec() stream.Spec {
	return stream.Spec{
		Group: schemas.GroupInbound,
		Input: schemas.Inbound,
		// The table entitlements is none of them: this task writes it and never reads it.
		Stores: []stream.StoreSpec{
			{Topic: schemas.Billing, Index: indexDue},
			{Topic: schemas.Endpoints},
			{Topic: schemas.InboundSeen, ByAge: true},
			{Topic: schemas.Idempotency, ByAge: true},
		},
		NewTask: func(p *stream.Partition) (stream.Task, error) { return newTask(i, p), nil },
	}
}

// retention is the dedupe time of a source.
func (i *Inbound) retention(source string) time.Duration {
	if own, ok := i.cfg.DedupeBySource[source]; ok {
		return own
	}
	return i.cfg.DedupeRetention
}
