package siege

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/bench/chaos/fire"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// log gives the committed records of a partition of a topic, in their order.
type log func(topic string, partition int32) ([]*kgo.Record, error)

// verdict is what the judge found.
type verdict struct {
	// compared counts outputs by topic.
	compared             map[string]int
	inputs, orgs, timers int
	// moves of accounts, those that were learnt, and how often an event came to an organization that another one had seen.
	moves, learnt, recognised int
	// parted counts the subscriptions that an event took to another organization.
	parted int
	// differences are told one by one, so many of them, but all are counted.
	differences []string
	count       int
}

// tellAtMost bounds the differences that are told.
const tellAtMost = 20

func (v *verdict) differ(org, format string, args ...any) {
	if v.count++; v.count <= tellAtMost {
		v.differences = append(v.differences, org+": "+fmt.Sprintf(format, args...))
	}
}

// judge compares what is on the log with what the model makes of the inputs that stand there.
type judge struct {
	*verdict
	partitions int32
	log        log
	// written is how many records of a partition the load knows to be accepted.
	written func(topic string, partition int32) int
	plans   *plans.Plans
	applier *commands.Applier

	// deliveries and rows that fan-out must have made, by delivery id, and how it says that nobody wanted an event.
	deliveries, rows map[string]string
	// forwarded is what the router must hand to an organization, in order; routed is what else it must write, by topic and
	// text, and how often.
	forwarded map[string][]string
	routed    map[string]int
	// handOvers are what organizations handed to each other, follow how often each follows from what they were told; events
	// are those of accounts, and marks those of organizations that released one.
	handOvers handOvers
	follow    map[string]int
	events    map[dedupe.Key]bool
	marks     map[string][]byte
}

func newJudge(l log, written func(topic string, partition int32) int, partitions int32, applier *commands.Applier) *judge {
	return &judge{
		verdict: &verdict{compared: map[string]int{}}, partitions: partitions, log: l, written: written,
		plans: plans.Builtin(), applier: applier,
		deliveries: map[string]string{}, rows: map[string]string{},
		forwarded: map[string][]string{}, routed: map[string]int{},
		handOvers: handOvers{}, follow: map[string]int{}, events: map[dedupe.Key]bool{},
	}
}

// run judges partition by partition: first the router, which writes to all partitions, then what belongs to organizations,
// then what fan-out has spread over the endpoints.
func (j *judge) run() (*verdict, error) {
	if err := j.findHandOvers(); err != nil {
		return nil, err
	}
	for p := range j.partitions {
		if err := j.accounts(p); err != nil {
			return nil, err
		}
	}
	for p := range j.partitions {
		if err := j.organizations(p); err != nil {
			return nil, err
		}
	}
	for p := range j.partitions {
		if err := j.spread(p); err != nil {
			return nil, err
		}
	}
	j.unwritten()
	j.handedOver()
	for org := range j.forwarded {
		j.differ(org, "none of its account's events has reached it")
	}
	j.missing(schemas.Deliveries, j.deliveries)
	j.missing(schemas.DeliveryRows, j.rows)
	return j.verdict, nil
}

func (j *judge) missing(topic string, expected map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(expected)) {
		j.differ(key, "missing on %s:\n%s", topic, expected[key])
	}
}

// byKey reads a partition's records by their key.
func (j *judge) byKey(topic string, p int32) (map[string][]*kgo.Record, error) {
	all, err := j.log(topic, p)
	by := map[string][]*kgo.Record{}
	for _, r := range all {
		by[string(r.Key)] = append(by[string(r.Key)], r)
	}
	return by, err
}

// perOrganization are the topics whose records are compared in the organization's order.
var perOrganization = []string{
	schemas.InboundRows, schemas.InboundDead, schemas.BillingAudit, schemas.Events, schemas.Entitlements, schemas.CommandOutcomes,
}

// organizations judges those of a partition.
func (j *judge) organizations(p int32) error {
	all := map[string]*organizationLog{}
	of := func(org string) *organizationLog {
		if all[org] == nil {
			all[org] = &organizationLog{name: org, outputs: map[string][]string{}}
		}
		return all[org]
	}
	inputs, err := j.log(schemas.Inbound, p)
	if err != nil {
		return err
	}
	inputs, buried := j.letters(inputs)
	for _, r := range inputs {
		f := of(string(r.Key))
		f.inputs = append(f.inputs, r)
	}
	for _, topic := range perOrganization {
		records, err := j.log(topic, p)
		if err != nil {
			return err
		}
		for _, r := range records {
			org, t := owner(topic, r), text(topic, r)
			if org == "" {
				j.routers(topic, t)
				continue
			}
			f := of(org)
			f.outputs[topic] = append(f.outputs[topic], t)
			if topic == schemas.Events {
				f.events = append(f.events, r)
			}
		}
	}
	if err := j.states(p, of); err != nil {
		return err
	}
	seen, endpoints, err := j.keyed(p)
	if err != nil {
		return err
	}
	known := known(inputs)
	models, forwarded := map[string]*model{}, 0
	for _, org := range slices.Sorted(maps.Keys(all)) {
		models[org] = j.organization(all[org], known, endpoints)
		forwarded += j.forwardedTo(org, all[org].inputs)
	}
	j.accepted(schemas.Inbound, p, len(inputs)-forwarded)
	j.marksAre(models)
	j.remembered(models, buried, seen)
	for _, left := range [...]map[string]int{seen, endpoints} {
		for key, n := range left {
			j.differ("partition "+fmt.Sprint(p), "a key that follows from no input, %d times: %q", n, key)
		}
	}
	return j.fanOut(p, all, models)
}

// known is what was known before each of a partition's events of that event: its organizations have one memory.
func known(inputs []*kgo.Record) map[*kgo.Record]dedupe.Known {
	before, memory := map[*kgo.Record]dedupe.Known{}, map[dedupe.Key]dedupe.Known{}
	for _, in := range inputs {
		if cmd := commandOf(in); cmd != nil {
			handed, _ := remembered(cmd.GetRememberEvents()) // what cannot be read is told by the model
			for key, is := range handed {
				memory[key] = more(memory[key], is)
			}
			continue
		}
		key, is := keyOf(in), dedupe.Done
		before[in] = memory[key]
		e := &billing.Event{Type: kafka.ReadHeader(in.Headers, schemas.HeaderType)}
		if billing.Handles(e.Type) && billing.Decode(in.Value, e) != billing.Usable {
			is = dedupe.Dead
		}
		memory[key] = more(memory[key], is)
	}
	return before
}

// owner is the organization of an output, "" where it is the router's.
func owner(topic string, r *kgo.Record) string {
	switch topic {
	case schemas.InboundRows:
		m := &webhooksv1.InboundRow{}
		_ = proto.Unmarshal(r.Value, m)
		return m.OrganizationId
	case schemas.InboundDead:
		m := &webhooksv1.DeadInbound{}
		_ = proto.Unmarshal(r.Value, m)
		return m.GetEvent().GetOrganizationId()
	case schemas.BillingAudit, schemas.Events, schemas.Entitlements:
		return string(r.Key)
	}
	m := &webhooksv1.CommandOutcome{}
	_ = proto.Unmarshal(r.Value, m)
	return m.GetEndpoint().GetOrganizationId()
}

// remembered crosses off what was remembered: each event once, though several organizations of a partition may know of it.
func (j *judge) remembered(models map[string]*model, buried []dedupe.Key, seen map[string]int) {
	known := map[dedupe.Key]string{}
	for _, key := range buried {
		known[key] = "router"
	}
	for org, m := range models {
		for key := range m.seen {
			known[key] = org
		}
	}
	for key, org := range known {
		if n := seen[string(key[:])]; n != 1 {
			j.differ(org, "event %x was remembered %d times, expected once", key, n)
		}
		delete(seen, string(key[:]))
	}
}

// states reads every state that was committed: no cleaner has been at work in a run of minutes.
func (j *judge) states(p int32, of func(org string) *organizationLog) error {
	records, err := j.log(schemas.Billing, p)
	if err != nil {
		return err
	}
	j.marks = map[string][]byte{}
	for _, r := range records {
		if key := string(r.Key); strings.HasPrefix(key, "moved/") {
			if j.marks[key] = r.Value; r.Value == nil {
				delete(j.marks, key)
			}
			continue
		}
		state := &webhooksv1.BillingRecord{}
		if err := proto.Unmarshal(r.Value, state); err != nil {
			return fmt.Errorf("billing record at offset %d of partition %d: %w", r.Offset, p, err)
		}
		f := of(string(r.Key))
		f.written = append(f.written, state)
	}
	j.compared[schemas.Billing] += len(records)
	return nil
}

// keyed reads what is only looked up: how often each event was remembered, and the newest of each endpoint.
func (j *judge) keyed(p int32) (seen, endpoints map[string]int, err error) {
	seen, endpoints = map[string]int{}, map[string]int{}
	records, err := j.byKey(schemas.InboundSeen, p)
	if err != nil {
		return nil, nil, err
	}
	for key, all := range records {
		seen[key[max(0, len(key)-len(dedupe.Key{})):]] += len(all)
	}
	j.compared[schemas.InboundSeen] += len(records)
	if records, err = j.byKey(schemas.Endpoints, p); err != nil {
		return nil, nil, err
	}
	for key, all := range records {
		newest := all[len(all)-1].Value
		if org, _, is := strings.Cut(key, "/"); is && org != "" {
			newest = []byte(endpointText(newest))
		}
		endpoints[key+"\x00"+string(newest)]++
	}
	j.compared[schemas.Endpoints] += len(records)
	return seen, endpoints, nil
}

func endpointText(value []byte) string {
	e := &webhooksv1.Endpoint{}
	if err := proto.Unmarshal(value, e); err != nil {
		return "cannot be decoded: " + err.Error()
	}
	return canonical(e)
}

// organization lets the model work and compares.
func (j *judge) organization(l *organizationLog, known map[*kgo.Record]dedupe.Known, endpoints map[string]int) *model {
	j.orgs++
	m := newModel(l, j.plans, j.applier)
	m.handOvers, m.events, m.known, m.partitions = j.handOvers, j.events, known, j.partitions
	m = explain(m)
	if m.wrong != nil {
		j.differ(l.name, "%v", m.wrong)
	}
	j.timers, j.moves, j.learnt, j.recognised = j.timers+m.timers, j.moves+m.moves, j.learnt+m.learnt, j.recognised+m.recognised
	j.parted += m.parted
	for _, at := range m.follow {
		j.follow[at]++
	}
	for topic, found := range l.outputs {
		j.compared[topic] += len(found)
	}
	for key, value := range m.endpoints {
		if key != l.name {
			value = []byte(endpointText(value))
		}
		at := key + "\x00" + string(value)
		if endpoints[at] == 0 {
			j.differ(l.name, "on %s %s is not as expected", schemas.Endpoints, key)
		}
		delete(endpoints, at)
	}
	return m
}

// accepted compares how much of the load is on the log with what was acknowledged.
func (j *judge) accepted(topic string, p int32, n int) {
	j.inputs += n
	if want := j.written(topic, p); n != want {
		j.differ(fmt.Sprintf("%s/%d", topic, p), "%d records of the load, %d were acknowledged", n, want)
	}
}

// sequence compares the outputs of one topic, in their order.
func (j *judge) sequence(of, topic string, want, got []string) {
	j.compared[topic] += len(got)
	for i := range max(len(want), len(got)) {
		wanted, is := "nothing", "nothing"
		if i < len(want) {
			wanted = show(topic, want[i])
		}
		if i < len(got) {
			is = show(topic, got[i]) + repeated(got, i)
		}
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			j.differ(of, "on %s record %d of %d, expected %d:\nexpected: %s\nfound: %s", topic, i, len(got), len(want), wanted, is)
			return
		}
	}
}

// fanOut says what the events of a partition must have led to, and compares the rows of the events.
func (j *judge) fanOut(p int32, all map[string]*organizationLog, models map[string]*model) error {
	rows, err := j.byKey(schemas.EventRows, p)
	if err != nil {
		return err
	}
	for org, f := range all {
		targets, err := models[org].endpoints.targets(org)
		if err != nil {
			return err
		}
		for _, r := range f.events {
			x := expectedOf(r, targets)
			id := x.event.ID
			j.sequence(org+" "+id, schemas.EventRows, []string{x.eventRow()}, texts(schemas.EventRows, rows[id]))
			delete(rows, id)
			maps.Copy(j.rows, x.rows())
			maps.Copy(j.deliveries, x.deliveries(j.partitions))
		}
	}
	for id, extra := range rows {
		j.differ(id, "%d records on %s, expected none", len(extra), schemas.EventRows)
	}
	return nil
}

func texts(topic string, records []*kgo.Record) (all []string) {
	for _, r := range records {
		all = append(all, text(topic, r))
	}
	return all
}

// spread crosses off what fan-out has written.
func (j *judge) spread(p int32) error {
	records, err := j.log(schemas.Deliveries, p)
	if err != nil {
		return err
	}
	for _, r := range records {
		d := &webhooksv1.Deliveries{}
		if err := proto.Unmarshal(r.Value, d); err != nil {
			return fmt.Errorf("deliveries at offset %d of partition %d: %w", r.Offset, p, err)
		}
		j.cross(schemas.Deliveries, deliveriesKey(d.GetEvent().GetId(), p), canonicalDeliveries(d), j.deliveries)
	}
	if records, err = j.log(schemas.DeliveryRows, p); err != nil {
		return err
	}
	for _, r := range records {
		j.cross(schemas.DeliveryRows, string(r.Key), text(schemas.DeliveryRows, r), j.rows)
	}
	return nil
}

// cross takes a record from what is expected. What is not, or not any more, is there too often.
func (j *judge) cross(topic, key, got string, expected map[string]string) {
	j.compared[topic]++
	want, is := expected[key]
	delete(expected, key)
	switch {
	case !is:
		j.differ(key, "on %s, unexpected or there twice:\n%s", topic, show(topic, got))
	case want != got:
		j.differ(key, "on %s:\nexpected: %s\nfound: %s", topic, show(topic, want), show(topic, got))
	}
}

// canonicalDeliveries is a record without its body's spacing: the body is JSON, which is compared by its members.
func canonicalDeliveries(d *webhooksv1.Deliveries) string {
	d = proto.CloneOf(d)
	var members map[string]json.RawMessage
	if json.Unmarshal(d.GetEvent().GetBody(), &members) == nil {
		d.Event.Body, _ = json.Marshal(members)
	}
	return canonical(d)
}

// logOf reads a cluster.
func logOf(ctx context.Context, cluster *fire.Cluster) log {
	return func(topic string, partition int32) ([]*kgo.Record, error) {
		return cluster.ReadAll(ctx, topic, partition)
	}
}
