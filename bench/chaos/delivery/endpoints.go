package delivery

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// kind is how an endpoint behaves, or what is done to it.
type kind int

const (
	// prompt answers 200 at once. Throughput and times are of these.
	prompt kind = iota
	// flaky fails in every way, now and then.
	flaky
	// hanging answers one request in eight only after its time-out.
	hanging
	// down answers 500 for some seconds of each dozen, so that its breaker opens.
	down
	// hangsUp answers and closes the connection without having said so: the next request meets a stale one.
	hangsUp
	// gone answers 410 now and then. It is disabled when the deliverer asks for it, and enabled again later.
	gone
	// limited takes fewer requests a second than it is sent.
	limited
	// switched is paused and resumed, disabled and enabled.
	switched
	// doomed is deleted in the course of the run.
	doomed
	kinds
)

// kindOf spreads the kinds: half of all are prompt.
func kindOf(n int) kind {
	if n%2 == 0 {
		return prompt
	}
	return flaky + kind(n/2%int(kinds-1))
}

const (
	// timeoutMS is of every endpoint but those that are prompt: these must not fail for want of a processor.
	timeoutMS       = 1500
	promptTimeoutMS = 15_000
	// limitedRate is requests a second to one that is limited.
	limitedRate = 4
)

// endpoint is a merchant's, as its organization's owner has it. Only load changes it.
type endpoint struct {
	kind      kind
	record    *webhooksv1.Endpoint
	partition int32
	deleted   bool
}

// organization has endpoints, and the version of their set.
type organization struct {
	name      string
	endpoints []*endpoint
	set       uint64
}

// newEndpoint is the n-th of all. receiver is where its receiver listens.
func newEndpoint(n int, org, receiver string, keys *seal.Keyring, now time.Time) (*endpoint, error) {
	endpointID := id.New(id.Endpoint)
	sealed, err := keys.Seal([]byte(signing.NewSecret()), seal.EndpointSecret(endpointID))
	if err != nil {
		return nil, err
	}
	e := &endpoint{kind: kindOf(n), record: &webhooksv1.Endpoint{
		Id: endpointID, OrganizationId: org, Url: receiver + "/" + endpointID, Enabled: true, EventTypes: []string{"*"},
		Concurrency: 8, TimeoutMs: timeoutMS, Signatures: []string{"v1"}, Secrets: []*webhooksv1.SigningSecret{{SealedSecret: sealed}},
		CreatedUnixMs: now.UnixMilli(), UpdatedUnixMs: now.UnixMilli(),
	}}
	switch e.kind {
	case prompt:
		e.record.TimeoutMs = promptTimeoutMS
	case limited:
		e.record.RateLimit = proto.Float64(limitedRate)
	}
	return e, nil
}

// change lets an organization's owner change an endpoint: the endpoint, then the set's version, in one partition.
func (l *load) change(o *organization, e *endpoint, fn func(*webhooksv1.Endpoint)) {
	fn(e.record)
	e.record.Version++
	l.put(o, e, e.record)
}

// remove deletes an endpoint.
func (l *load) remove(o *organization, e *endpoint) {
	e.deleted = true
	l.put(o, e, nil)
}

func (l *load) put(o *organization, e *endpoint, record *webhooksv1.Endpoint) {
	o.set++
	var m proto.Message
	if record != nil {
		m = record
	}
	l.write(schemas.Endpoints, l.cluster.PartitionOf(o.name), string(schemas.EndpointKey(o.name, e.record.Id)), m)
	l.write(schemas.Endpoints, l.cluster.PartitionOf(o.name), o.name, &webhooksv1.EndpointSet{
		Version: o.set, Endpoints: uint32(len(o.endpoints)),
	})
}

// obey disables an endpoint that is gone, unless it has changed since it was judged, and notes when to enable it again.
func (l *load) obey(command *webhooksv1.Command, now time.Time) {
	d := command.GetDisableEndpoint()
	e := l.byID[d.GetEndpointId()]
	if e == nil || e.deleted || !e.record.Enabled || e.record.Version != d.GetJudgedVersion() {
		return
	}
	o := l.orgs[command.GetOrganizationId()]
	l.change(o, e, func(r *webhooksv1.Endpoint) { r.Enabled, r.DisabledReason = false, d.GetReason() })
	l.later = append(l.later, later{now.Add(3 * time.Second), func() { l.enable(o, e) }})
}

func (l *load) enable(o *organization, e *endpoint) {
	if !e.deleted {
		l.change(o, e, func(r *webhooksv1.Endpoint) { r.Enabled, r.DisabledReason, r.Paused = true, "", false })
	}
}

// meddle does something to an endpoint, as its merchant would, and notes when to undo it.
func (l *load) meddle(now time.Time) {
	o := l.list[l.rng.IntN(len(l.list))]
	e := o.endpoints[l.rng.IntN(len(o.endpoints))]
	switch {
	case e.kind == doomed && !e.deleted && l.rng.IntN(4) == 0:
		l.remove(o, e)
	case e.kind == switched && e.record.Enabled && !e.record.Paused:
		pause := l.rng.IntN(2) == 0
		l.change(o, e, func(r *webhooksv1.Endpoint) { r.Paused, r.Enabled = pause, !pause })
		l.later = append(l.later, later{now.Add(time.Duration(1+l.rng.IntN(4)) * time.Second), func() { l.enable(o, e) }})
	}
}

// later is something to be undone.
type later struct {
	at time.Time
	do func()
}

// undo does what is due; all of it when the run is over.
func (l *load) undo(now time.Time, all bool) {
	kept := l.later[:0]
	for _, u := range l.later {
		if all || !u.at.After(now) {
			u.do()
			continue
		}
		kept = append(kept, u)
	}
	l.later = kept
}

func (k kind) String() string {
	names := [...]string{"prompt", "flaky", "hanging", "down", "hangs up", "gone", "limited", "switched", "doomed"}
	if k < 0 || int(k) >= len(names) {
		return fmt.Sprint("kind ", int(k))
	}
	return names[k]
}
