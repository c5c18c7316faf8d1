package siege

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// model is one organization, computed by one thread from its records on the log in the order they stand there: the pure
// domain, a set of the events it has seen, and nothing of the runtime. Each output is compared with the next that was
// found as it comes about.
//
// Only when a timer ran is not to be known from the log of the inputs. That is told by the committed states of the
// organization (written): where the next of them is what the timer makes of the present state, at the time that it
// names, the timer may have run there. Where it may as well have run after the next input, since that changes nothing of
// the state, both are tried (fork). Everything else must follow: each committed state must be one that the model passes
// through, in the order of both, and the last one its last.
type model struct {
	*organizationLog
	plans   *plans.Plans
	applier *commands.Applier

	// at is the next input, reached and compared how many of the committed states and of each topic's outputs are behind.
	at, reached int
	compared    map[string]int
	later       bool // the timer that may run here runs after the next input
	wrong       error

	state     billing.State
	endpoints memory
	seen      map[dedupe.Key]dedupe.Known // by the organization, or by who told it
	timers    int

	// handOvers and events are those on the log, known what the organization's partition knew of each input's event before
	// it. follow are the hand-overs that follow, marks where accounts went that were released, recognised how often an event
	// came again that others had seen.
	handOvers                 handOvers
	events                    map[dedupe.Key]bool
	known                     map[*kgo.Record]dedupe.Known
	partitions                int32
	follow                    []string
	marks                     map[string]mark
	used                      map[dedupe.Key]bool // here
	moves, learnt, recognised int
	parted                    int
}

// organizationLog is what is on the log of one organization.
type organizationLog struct {
	name    string
	inputs  []*kgo.Record
	outputs map[string][]string // by topic, in order
	written []*webhooksv1.BillingRecord
	events  []*kgo.Record
}

func newModel(l *organizationLog, p *plans.Plans, applier *commands.Applier) *model {
	return &model{
		organizationLog: l, plans: p, applier: applier,
		compared: map[string]int{}, endpoints: memory{}, seen: map[dedupe.Key]dedupe.Known{},
		marks: map[string]mark{}, used: map[dedupe.Key]bool{},
	}
}

// maxForks bounds the ways that are tried. One is right; where something is wrong, none is.
const maxForks = 300

// explain finds the way in which everything on the log follows from the inputs. Where there is none, it returns the one
// that comes farthest, with what is wrong then.
func explain(m *model) *model {
	var farthest *model
	for forks, tries := []*model{m}, 0; len(forks) > 0 && tries < maxForks; tries++ {
		m = forks[len(forks)-1]
		forks = forks[:len(forks)-1]
		for m.wrong == nil && m.at < len(m.inputs) {
			if fork := m.runTimer(); fork != nil {
				forks = append(forks, fork)
				continue
			}
			m.apply(m.inputs[m.at])
			m.at++
		}
		for m.wrong == nil && m.runTimer() != nil {
		}
		m.finish()
		if m.wrong == nil {
			return m
		}
		if farthest == nil || m.at > farthest.at {
			farthest = m
		}
	}
	return farthest
}

// runTimer runs the timer that may have run here, and returns the way on which it has not yet; nil when there is none.
func (m *model) runTimer() (fork *model) {
	if m.later || m.reached == len(m.written) {
		return nil
	}
	next, due := m.written[m.reached], m.state.Record.GetDueUnixMs()
	if due == 0 || next.EvaluatedUnixMs < due {
		return nil
	}
	r := billing.Expire(billing.State{Record: proto.CloneOf(m.state.Record)}, next.EvaluatedUnixMs, m.plans)
	if !proto.Equal(r.State.Record, next) {
		return nil
	}
	fork = m.clone()
	fork.later = true
	m.take(&r)
	m.reached++
	m.timers++
	return fork
}

func (m *model) clone() *model {
	c := *m
	c.compared, c.endpoints, c.seen = maps.Clone(m.compared), maps.Clone(m.endpoints), maps.Clone(m.seen)
	c.follow, c.marks, c.used = slices.Clone(m.follow), maps.Clone(m.marks), maps.Clone(m.used)
	c.state = billing.State{Record: proto.CloneOf(m.state.Record)}
	return &c
}

// apply is one record of the input.
func (m *model) apply(in *kgo.Record) {
	m.later = false
	header := func(key string) string { return kafka.ReadHeader(in.Headers, key) }
	if cloudevent.IsCommand(header(schemas.HeaderSource), header(schemas.HeaderType)) {
		m.command(in)
		return
	}
	e := &billing.Event{
		Organization: m.name, ID: header(schemas.HeaderID), EventID: header(schemas.HeaderEventID), Type: header(schemas.HeaderType),
		AcceptedUnixMS: cloudevent.Time([]byte(header(schemas.HeaderAcceptedAt)), in.Timestamp).UnixMilli(),
	}
	key := keyOf(in)
	before := m.known[in]
	if before != dedupe.New && !m.used[key] {
		m.recognised++
	}
	if before == dedupe.Done {
		return
	}
	outcome, reason := m.event(e, in.Value)
	known := dedupe.Done
	if outcome == schemas.OutcomeDead {
		if before == dedupe.Dead {
			return
		}
		known = dedupe.Dead
	}
	m.seen[key], m.used[key] = known, true
	row := &webhooksv1.InboundRow{
		Source: schemas.SourceStripe, SourceEventId: e.ID, EventId: e.EventID, OrganizationId: m.name,
		Account: header(schemas.HeaderAccount), Type: e.Type, Outcome: outcome, Reason: reason, ReceivedUnixMs: e.AcceptedUnixMS,
	}
	if known == dedupe.Dead {
		m.put(schemas.InboundDead, canonical(deadletters.New(schemas.Inbound, in, row, time.Time{})))
	}
	m.put(schemas.InboundRows, canonical(row))
}

// event says what becomes of one that is new.
func (m *model) event(e *billing.Event, body []byte) (outcome, reason string) {
	if !billing.Handles(e.Type) {
		return schemas.OutcomeIgnored, "unhandled_type"
	}
	if reason := billing.Decode(body, e); reason != billing.Usable {
		return schemas.OutcomeDead, string(reason)
	}
	r := billing.Apply(m.state, e, m.plans)
	m.take(&r)
	m.pass(e.EventID, r.Words)
	m.put(schemas.BillingAudit, canonical(r.Audit))
	m.committed()
	if r.Stale {
		return schemas.OutcomeStale, ""
	}
	return schemas.OutcomeProcessed, ""
}

// committed counts a committed state that is the present one.
func (m *model) committed() {
	if m.reached < len(m.written) && proto.Equal(m.written[m.reached], m.state.Record) {
		m.reached++
	}
}

// take makes a result the organization's, and its outputs.
func (m *model) take(r *billing.Result) {
	m.state = billing.State{Record: r.State.Record}
	if r.SnapshotChanged {
		m.put(schemas.Entitlements, canonical(r.State.Snapshot))
	}
	set, _ := commands.SetVersion(m.endpoints, m.name) // reads from memory what was written there
	for _, u := range r.Updates {
		m.put(schemas.Events, textOf((&cloudevent.Event{
			ID:   id.Derive(id.Event, schemas.TypeSubscriptionUpdated, m.name, u.CauseEventID),
			Type: schemas.TypeSubscriptionUpdated, Source: "/billing", Subject: u.SubscriptionID, Organization: m.name,
			OccurredUnixMS: u.OccurredUnixMS, AcceptedUnixMS: u.AcceptedUnixMS,
			CorrelationID: u.CauseEventID, CausationID: u.CauseEventID,
			CauseSource: u.Snapshot.Cause.Source, CauseEventID: u.Snapshot.Cause.EventId, EndpointSet: set, Data: u.AppendData(nil),
		}).Record()))
	}
}

// put compares an output with the next that was found.
func (m *model) put(topic, want string) {
	i, found := m.compared[topic], m.outputs[topic]
	m.compared[topic]++
	switch {
	case m.wrong != nil:
	case i >= len(found):
		m.wrong = fmt.Errorf("on %s there are %d records; missing:\n%s", topic, len(found), show(topic, want))
	case found[i] != want:
		m.wrong = fmt.Errorf("on %s record %d:\nexpected: %s\nfound: %s%s", topic, i,
			show(topic, want), show(topic, found[i]), repeated(found, i))
	}
}

// repeated says that a record is there twice.
func repeated(found []string, i int) string {
	if at := slices.Index(found[:i], found[i]); at >= 0 {
		return fmt.Sprintf("\nthe same as record %d", at)
	}
	return ""
}

// command applies one, about endpoints or about an account.
func (m *model) command(in *kgo.Record) {
	cmd := &webhooksv1.Command{}
	if err := proto.Unmarshal(in.Value, cmd); err != nil {
		m.wrong = fmt.Errorf("command at offset %d: %w", in.Offset, err)
		return
	}
	if m.moved(cmd) {
		return
	}
	r, err := m.applier.Apply(m.endpoints, cmd, time.Unix(1, 0))
	if err != nil {
		m.wrong = err
		return
	}
	m.put(schemas.CommandOutcomes, canonical(r.Outcome))
}

// finish says what is on the log that does not follow.
func (m *model) finish() {
	switch {
	case m.wrong != nil:
	case m.reached < len(m.written):
		m.wrong = fmt.Errorf("state %d of %d that were committed is none that follows from the inputs:\ncommitted: %v\nat the end: %v",
			m.reached+1, len(m.written), m.written[m.reached], m.state.Record)
	case len(m.written) == 0 && m.state.Record != nil:
		m.wrong = fmt.Errorf("no state was committed\nexpected: %v", m.state.Record)
	case len(m.written) > 0 && !proto.Equal(m.written[len(m.written)-1], m.state.Record):
		m.wrong = fmt.Errorf("the last committed state is not the one that follows from the inputs:\nexpected: %v\ncommitted: %v",
			m.state.Record, m.written[len(m.written)-1])
	case m.state.Record.GetDueUnixMs() != 0:
		m.wrong = fmt.Errorf("a timer due at %s has not run", time.UnixMilli(m.state.Record.DueUnixMs))
	}
	for topic, found := range m.outputs {
		if n := m.compared[topic]; m.wrong == nil && n < len(found) {
			m.wrong = fmt.Errorf("on %s there are %d records, expected %d; the first too many:\n%s%s", topic, len(found), n,
				show(topic, found[n]), repeated(found, n))
		}
	}
}

// memory is the state of commands.
type memory map[string][]byte

// Get implements commands.State.
func (s memory) Get(key []byte) (value []byte, ok bool, err error) {
	value, ok = s[string(key)]
	return value, ok, nil
}

// Put implements commands.State.
func (s memory) Put(key, value []byte) { s[string(key)] = value }

// Delete implements commands.State.
func (s memory) Delete(key []byte) { delete(s, string(key)) }

// Scan implements commands.State. No command of the load needs it.
func (s memory) Scan([]byte, func(key, value []byte) bool) error { return nil }

// targets are the organization's endpoints.
func (s memory) targets(org string) (all []*webhooksv1.Endpoint, err error) {
	for key, value := range s {
		if key == org {
			continue
		}
		e := &webhooksv1.Endpoint{}
		if err := proto.Unmarshal(value, e); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", key, err)
		}
		all = append(all, e)
	}
	return all, nil
}

func newApplier(keys commands.Sealer) (*commands.Applier, error) {
	return commands.New(commands.Config{EndpointsPerOrg: endpointsPerOrg, Defaults: resource.Defaults{}}, keys)
}
