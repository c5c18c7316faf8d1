package siege

import (
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/fanout"
	"github.com/betterdata/webhooks/processor/inbound"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/processor/routing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// paper is a log in memory, which can be tampered with.
type paper map[string]map[int32][]*kgo.Record

func (l paper) add(topic string, partition int32, r *kgo.Record) {
	if l[topic] == nil {
		l[topic] = map[int32][]*kgo.Record{}
	}
	r.Offset = int64(len(l[topic][partition]))
	l[topic][partition] = append(l[topic][partition], r)
}

func (l paper) addAll(out streamtest.Outputs) {
	for _, p := range out {
		l.add(p.Topic, p.Partition, p.Record)
	}
}

func (l paper) read(topic string, partition int32) ([]*kgo.Record, error) {
	return l[topic][partition], nil
}

// copyOf lets a case tamper without the others.
func (l paper) copyOf() paper {
	c := paper{}
	for topic, partitions := range l {
		c[topic] = map[int32][]*kgo.Record{}
		for p, records := range partitions {
			c[topic][p] = slices.Clone(records)
		}
	}
	return c
}

// endpointTable is the fan-out's copy of the table, complete before the first event.
type endpointTable map[string][]byte

func (e endpointTable) Get(key []byte) ([]byte, bool, error) {
	value, ok := e[string(key)]
	return value, ok, nil
}

func (e endpointTable) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	for _, key := range slices.Sorted(maps.Keys(e)) {
		if strings.HasPrefix(key, string(prefix)) && !fn([]byte(key), e[key]) {
			return nil
		}
	}
	return nil
}

func (e endpointTable) OnChange(func(key, value []byte)) {}

// written is a run of the real tasks, one after the other and without Kafka, over the histories of some organizations of
// partition 0. now is moved by hand, so that timers run between the inputs.
func written(t *testing.T, applier *commands.Applier, orgs []*organization) paper {
	t.Helper()
	l, log := paper{}, slog.New(slog.DiscardHandler)
	handles := func(_, eventType string) bool { return billing.Handles(eventType) }
	router, err := routing.New(routing.Config{Handles: handles, Subscription: billing.SubscriptionOf, Settled: billing.SettledBy}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	cfg := inbound.Config{Plans: plans.Builtin(), DedupeRetention: dedupeRetention}
	in, err := inbound.New(cfg, applier, log, prometheus.NewRegistry())
	require.NoError(t, err)
	accounts, organizations := streamtest.New(t, router.Spec()), streamtest.New(t, in.Spec())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// goOn gives the tasks what they send each other. All is of partition 0.
	goOn := func(out streamtest.Outputs) {
		for len(out) > 0 {
			p := out[0]
			out = out[1:]
			l.add(p.Topic, p.Partition, p.Record)
			switch p.Topic {
			case schemas.Inbound:
				out = append(out, organizations.Process(p.Record)...)
			case schemas.InboundUnrouted:
				out = append(out, accounts.Process(p.Record)...)
			}
		}
	}
	give := func(o *organization, m *message) {
		if o.way == nameless && m.command == nil && kafka.PartitionOf(eventID(m.id), streamtest.Partitions) != 0 {
			return // its letter is of another partition
		}
		now = now.Add(37 * time.Millisecond)
		accounts.Now, organizations.Now = now, now
		r := record(o, m, now)
		r.Key = []byte(o.name)
		if o.way == direct || m.command.GetCreateEndpoint() != nil {
			l.add(schemas.Inbound, 0, r)
			l.addAll(organizations.Process(r))
			return
		}
		r.Key = []byte(o.account())
		l.add(schemas.InboundUnrouted, 0, r)
		goOn(accounts.Process(r))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 * len(orgs) {
		o := orgs[rng.IntN(len(orgs))]
		give(o, o.next(now))
	}
	for _, o := range orgs {
		for _, m := range o.last() {
			give(o, m)
		}
	}
	l.addAll(organizations.Advance(now.Add(time.Minute)))
	table := endpointTable{}
	for _, r := range l[schemas.Endpoints][0] {
		table[string(r.Key)] = r.Value
	}
	out, err := fanout.New(table, log, prometheus.NewRegistry())
	require.NoError(t, err)
	spread := streamtest.New(t, out.Spec())
	spread.Commit() // the claim
	for _, r := range l[schemas.Events][0] {
		l.addAll(spread.Process(&kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers}))
	}
	return l
}

// someOrganizations are of partition 0, as are the accounts of those that have one and have to be connected.
func someOrganizations() (orgs []*organization) {
	found := map[way]int{}
	for n := 0; len(orgs) < 10; n++ {
		o := newOrganization(n, rand.New(rand.NewPCG(1, uint64(n))))
		elsewhere := func(key string) bool { return kafka.PartitionOf(key, streamtest.Partitions) != 0 }
		if elsewhere(o.name) || o.way != direct && o.way != nameless && elsewhere(o.account()) ||
			(o.way == moving || o.way == shared) && slices.ContainsFunc(o.holders(), elsewhere) {
			continue
		}
		if found[o.way]++; found[o.way] <= map[way]int{direct: 4, connected: 1, learnt: 1, stranger: 1, moving: 1, shared: 1, nameless: 1}[o.way] {
			orgs = append(orgs, o)
		}
	}
	return orgs
}

func TestTheJudgeSeesWhatIsWrong(t *testing.T) {
	keys, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	applier, err := newApplier(keys)
	require.NoError(t, err)
	whole := written(t, applier, someOrganizations())
	accepted := map[string]int{
		schemas.InboundUnrouted: len(whole[schemas.InboundUnrouted][0]), schemas.Inbound: len(whole[schemas.Inbound][0]),
	}
	for _, topic := range [...]string{schemas.Inbound, schemas.InboundUnrouted} {
		for _, r := range whole[topic][0] {
			if handedOn(topic, r) {
				accepted[topic]--
			}
		}
	}
	verdictOn := func(l paper) *verdict {
		v, err := newJudge(l.read, func(topic string, p int32) int {
			if p != 0 {
				return 0
			}
			return accepted[topic]
		}, streamtest.Partitions, applier).run()
		require.NoError(t, err)
		return v
	}
	v := verdictOn(whole)
	require.Empty(t, v.differences, "nothing is wrong")
	require.Positive(t, v.timers, "timers ran")
	require.Positive(t, v.learnt, "accounts were learnt anew")
	require.Positive(t, v.parted, "subscriptions went to other organizations")
	everywhere := append([]string{
		schemas.Billing, schemas.InboundSeen, schemas.EventRows, schemas.Deliveries, schemas.DeliveryRows,
		schemas.Inbound, schemas.InboundUnrouted,
	}, perOrganization...)
	for _, topic := range everywhere {
		t.Run("lost on "+topic, func(t *testing.T) {
			l := whole.copyOf()
			p, records := some(t, l, topic)
			// The last: of states and of events that are remembered it is one that no later one hides.
			l[topic][p] = records[:len(records)-1]
			require.Positive(t, verdictOn(l).count)
		})
		if topic == schemas.Billing {
			continue // a state that is written twice is the same state
		}
		t.Run("doubled on "+topic, func(t *testing.T) {
			l := whole.copyOf()
			p, records := some(t, l, topic)
			l[topic][p] = append(records, records[len(records)/2])
			require.Positive(t, verdictOn(l).count)
		})
	}
	for name, tamper := range map[string]func(t *testing.T, l paper){
		"a state of another plan":             alter(schemas.Billing, func(m *webhooksv1.BillingRecord) { m.Plan = "OTHER" }),
		"an entry with another version":       alter(schemas.BillingAudit, func(m *webhooksv1.BillingAuditRow) { m.SnapshotVersion++ }),
		"a row with another outcome":          alter(schemas.InboundRows, func(m *webhooksv1.InboundRow) { m.Outcome = schemas.OutcomeIgnored }),
		"a snapshot with another version":     alter(schemas.Entitlements, func(m *webhooksv1.TenantCapabilitySnapshot) { m.Version-- }),
		"a delivery without a target":         alter(schemas.Deliveries, func(m *webhooksv1.Deliveries) { m.Targets = nil }),
		"an event row that matched otherwise": alter(schemas.EventRows, func(m *webhooksv1.EventRow) { m.Matched++ }),
		"an account of another organization":  alter(schemas.Connections, func(m *webhooksv1.Connection) { m.OrganizationId = "org_other" }),
		"a route that leads elsewhere":        alter(schemas.Routes, func(m *webhooksv1.Route) { m.OrganizationId = "org_other" }),
		"a letter of another place":           alter(schemas.InboundDead, func(m *webhooksv1.DeadInbound) { m.Offset++ }),
		"a letter of another partition":       alter(schemas.InboundDead, func(m *webhooksv1.DeadInbound) { m.Partition++ }),
		"a letter without a header":           alter(schemas.InboundDead, func(m *webhooksv1.DeadInbound) { m.Headers = m.Headers[1:] }),
		"a letter with another key":           alter(schemas.InboundDead, func(m *webhooksv1.DeadInbound) { m.Key = nil }),
		"a held event that is gone":           func(t *testing.T, l paper) { l[schemas.UnroutedHeld] = nil },
		"an event that was not handed over": func(t *testing.T, l paper) {
			records := slices.Clone(l[schemas.Inbound][0])
			at := slices.IndexFunc(records, func(r *kgo.Record) bool { return commandOf(r).GetRememberEvents() != nil })
			require.GreaterOrEqual(t, at, 0)
			cmd, without := commandOf(records[at]), *records[at]
			cmd.GetRememberEvents().Events = cmd.GetRememberEvents().Events[eventBytes:]
			var err error
			without.Value, err = proto.Marshal(cmd)
			require.NoError(t, err)
			records[at], l[schemas.Inbound][0] = &without, records
		},
		"an event of no account that is buried again": func(t *testing.T, l paper) {
			at := slices.IndexFunc(l[schemas.InboundDead][0], func(r *kgo.Record) bool { return owner(schemas.InboundDead, r) == "" })
			require.GreaterOrEqual(t, at, 0)
			l[schemas.InboundDead][0] = append(l[schemas.InboundDead][0], l[schemas.InboundDead][0][at])
		},
		"one whose letter the router did not hand on": func(t *testing.T, l paper) {
			at := slices.IndexFunc(l[schemas.Inbound][0], func(r *kgo.Record) bool { return handedOnLetter(r) != nil })
			require.GreaterOrEqual(t, at, 0)
			l[schemas.Inbound][0] = slices.Delete(l[schemas.Inbound][0], at, at+1)
		},
		"events of an organization in another order": func(t *testing.T, l paper) {
			p, records := some(t, l, schemas.Events)
			org := records[0].Key
			second := slices.IndexFunc(records[1:], func(r *kgo.Record) bool { return string(r.Key) == string(org) }) + 1
			require.Positive(t, second)
			l[schemas.Events][p][0], l[schemas.Events][p][second] = records[second], records[0]
		},
		"a timer that ran twice": func(t *testing.T, l paper) {
			p, records := some(t, l, schemas.Events)
			timers := slices.IndexFunc(records, isTimers)
			require.GreaterOrEqual(t, timers, 0)
			l[schemas.Events][p] = slices.Insert(records, timers, records[timers])
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := whole.copyOf()
			tamper(t, l)
			require.Positive(t, verdictOn(l).count)
		})
	}
}

// handedOn reports that an input comes from a task and not from the load.
func handedOn(topic string, r *kgo.Record) bool {
	if cmd := commandOf(r); cmd != nil {
		return organizationsOwn(cmd) || cmd.GetAdoptAccount() != nil || cmd.GetReleaseAccount() != nil || cmd.GetSettleInvoice() != nil ||
			cmd.GetReleaseSubscription() != nil
	}
	if topic == schemas.InboundUnrouted || handedOnLetter(r) != nil {
		return topic == schemas.Inbound
	}
	n, _ := numberOf(kafka.ReadHeader(r.Headers, schemas.HeaderOrganization))
	return wayOf(n) != direct
}

// some are a topic's records of the first partition that has any.
func some(t *testing.T, l paper, topic string) (int32, []*kgo.Record) {
	t.Helper()
	for p := range int32(streamtest.Partitions) {
		if records := l[topic][p]; len(records) > 0 {
			return p, records
		}
	}
	require.Fail(t, "nothing on "+topic)
	return 0, nil
}

// alter changes the last record of a topic.
func alter[T any, M interface {
	*T
	proto.Message
}](topic string, change func(M)) func(*testing.T, paper) {
	return func(t *testing.T, l paper) {
		p, records := some(t, l, topic)
		last, m := *records[len(records)-1], M(new(T))
		require.NoError(t, proto.Unmarshal(last.Value, m))
		change(m)
		var err error
		last.Value, err = proto.Marshal(m)
		require.NoError(t, err)
		l[topic][p][len(records)-1] = &last
	}
}
