package siege

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// account is what the router makes of one account's records on `inbound.unrouted`, in their order.
type account struct {
	key        string
	connection *webhooksv1.Connection
	// last held the account before it was disconnected.
	last string
	// keepers are those beside the connected one that the account was learnt for.
	keepers []string
	// held are the events that wait, handingOver the hand-overs that they wait for.
	held        []heldBack
	handingOver []int64
	// told is what each organization was given: events, and what became of the account.
	told           map[string][]string
	rows, outcomes []string
	// letters are of what names no account.
	letters []string
	// answers are those of organizations, which are none of the load.
	answers int
}

// heldBack is an event that waits: its id and the source's, the organization that it names, the subscription that it is of, the
// invoice that it settles, and when it occurred.
type heldBack struct {
	id, source, named, subscription, settles string
	occurred                                 int64
}

// apply is one record.
func (a *account) apply(r *kgo.Record) error {
	header := func(key string) string { return kafka.ReadHeader(r.Headers, key) }
	if cloudevent.IsCommand(header(schemas.HeaderSource), header(schemas.HeaderType)) {
		cmd := &webhooksv1.Command{}
		if err := proto.Unmarshal(r.Value, cmd); err != nil {
			return fmt.Errorf("command at offset %d: %w", r.Offset, err)
		}
		if adopted := cmd.GetAccountAdopted(); adopted != nil {
			a.answers++
			if at := slices.Index(a.handingOver, adopted.Order); at >= 0 {
				a.handingOver = slices.Delete(a.handingOver, at, at+1)
			}
			a.handOn(r.Offset + 1)
			return nil
		}
		if cmd.GetDeleteConnection() != nil {
			a.disconnect(cmd)
		} else {
			a.connect(cmd, r.Offset+1)
		}
		return nil
	}
	row, named := a.row(header, r), header(schemas.HeaderNamedOrganization)
	event := heldBack{id: header(schemas.HeaderEventID), source: header(schemas.HeaderID), named: named}
	event.occurred = cloudevent.Time([]byte(header(schemas.HeaderTime)), time.UnixMilli(0)).UnixMilli()
	event.settles, _ = billing.SettledBy(schemas.SourceStripe, header(schemas.HeaderType), event.source, r.Value)
	event.subscription, _ = billing.SubscriptionOf(schemas.SourceStripe, header(schemas.HeaderType), event.source, r.Value)
	switch {
	case a.connection != nil:
		a.hold(event, row, r.Offset+1)
	case !billing.Handles(header(schemas.HeaderType)):
		row.Outcome, row.Reason = schemas.OutcomeIgnored, "unhandled_type"
		a.rows = append(a.rows, canonical(row))
	case header(schemas.HeaderAccount) == "":
		a.letters = append(a.letters, letterOf(r, row))
	case named != "":
		a.take(named, r.Offset+1)
		a.connection = a.learnt(event)
		a.hold(event, row, r.Offset+1)
	default:
		a.hold(event, row, r.Offset+1)
	}
	return nil
}

// learnt is the connection that an event teaches.
func (a *account) learnt(e heldBack) *webhooksv1.Connection {
	source, account, _ := strings.Cut(a.key, "/")
	return &webhooksv1.Connection{
		Id: id.Derive(id.Connection, a.key, e.id), OrganizationId: e.named, Source: source, Account: account,
		Learned: true, Status: resource.ConnectionActive, TaughtUnixMs: e.occurred, TaughtSourceEventId: e.source,
	}
}

// copy leaves what is known of the account with who is connected.
func (a *account) copy(to string, order int64, how string) {
	a.tell(a.connection.OrganizationId, fmt.Sprintf("release %s to %s, order %d, a copy%s", a.key, to, order, how))
	a.handingOver = append(a.handingOver, order)
}

// waits reports that an event has to, for an organization that has to be told what is known first; and notes what a newer one
// teaches.
func (a *account) waits(e heldBack, order int64) bool {
	c := a.connection
	if !c.Learned || e.named == "" {
		return false
	}
	newer := cmp.Or(cmp.Compare(e.occurred, c.TaughtUnixMs), cmp.Compare(e.source, c.TaughtSourceEventId)) > 0
	switch {
	case e.named == c.OrganizationId:
		if newer {
			c.TaughtUnixMs, c.TaughtSourceEventId = e.occurred, e.source
		}
		return false
	case newer:
		a.copy(e.named, order, "")
		a.keepers = append(slices.DeleteFunc(a.keepers, func(org string) bool { return org == e.named }), c.OrganizationId)
		a.connection = a.learnt(e)
		return true
	case !slices.Contains(a.keepers, e.named):
		a.copy(e.named, order, ", and stays")
		a.keepers = append(a.keepers, e.named)
		return true
	}
	return false
}

// take gives the account to an organization, all of it from who holds it or held it last.
func (a *account) take(org string, order int64) {
	switch holder := cmp.Or(a.connection.GetOrganizationId(), a.last); holder {
	case org: // it has the account still
	case "":
		a.tell(org, "adopt "+a.key)
	default:
		a.release(holder, org, order)
	}
	a.last, a.keepers = "", slices.DeleteFunc(a.keepers, func(keeper string) bool { return keeper == org })
}

func (a *account) release(holder, to string, order int64) {
	a.tell(holder, fmt.Sprintf("release %s to %s, order %d", a.key, to, order))
	a.handingOver = append(a.handingOver, order)
}

// gather takes the account from who keeps it, for one that is connected by API.
func (a *account) gather(to string, order int64) {
	for _, keeper := range a.keepers {
		a.release(keeper, to, order)
	}
	a.keepers = nil
}

// hold lets an event wait where it has to, and says so.
func (a *account) hold(event heldBack, row *webhooksv1.InboundRow, order int64) {
	a.held = append(a.held, event)
	if a.handOn(order); len(a.held) > 0 {
		row.Outcome = schemas.OutcomeUnrouted
		a.rows = append(a.rows, canonical(row))
	}
}

func (a *account) tell(org string, what ...string) { a.told[org] = append(a.told[org], what...) }

// handOn gives what is held to who it is for, while all of the account is there: up to an event that waits for that.
func (a *account) handOn(order int64) {
	for len(a.handingOver) == 0 && a.connection != nil && len(a.held) > 0 {
		e := a.held[0]
		if a.waits(e, order) {
			return
		}
		to := a.connection.OrganizationId
		if a.connection.Learned {
			to = cmp.Or(e.named, to)
		}
		for _, other := range append([]string{a.connection.OrganizationId}, a.keepers...) {
			switch {
			case len(a.keepers) == 0 || other == to:
			case e.subscription != "":
				a.tell(other, fmt.Sprintf("%s of %s is of %s since %s", e.subscription, a.key, to, e.source))
			case e.settles != "":
				a.tell(other, fmt.Sprintf("%s of %s is settled", e.settles, a.key))
			}
		}
		a.tell(to, e.id)
		a.held = a.held[1:]
	}
}

func (a *account) row(header func(string) string, r *kgo.Record) *webhooksv1.InboundRow {
	return &webhooksv1.InboundRow{
		Source: schemas.SourceStripe, SourceEventId: header(schemas.HeaderID), EventId: header(schemas.HeaderEventID),
		Account: header(schemas.HeaderAccount), Type: header(schemas.HeaderType),
		ReceivedUnixMs: cloudevent.Time([]byte(header(schemas.HeaderAcceptedAt)), r.Timestamp).UnixMilli(),
	}
}

func (a *account) connect(cmd *webhooksv1.Command, order int64) {
	if a.connection.GetOrganizationId() != cmd.OrganizationId {
		a.take(cmd.OrganizationId, order)
		a.connection = proto.CloneOf(cmd.GetCreateConnection().Connection)
		a.connection.OrganizationId = cmd.OrganizationId
	}
	a.gather(cmd.OrganizationId, order)
	a.connection.Learned, a.connection.TaughtUnixMs, a.connection.TaughtSourceEventId = false, 0, "" // who asks for what was learnt has it by API
	a.outcomes = append(a.outcomes, canonical(&webhooksv1.CommandOutcome{
		CommandId: cmd.Id, Result: &webhooksv1.CommandOutcome_Connection{Connection: a.connection},
	}))
	a.handOn(order)
}

// disconnect takes the connection away, if it is the one that is meant.
func (a *account) disconnect(cmd *webhooksv1.Command) {
	outcome := &webhooksv1.CommandOutcome{CommandId: cmd.Id, Result: &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}}
	if a.connection == nil || a.connection.Id != cmd.GetDeleteConnection().ConnectionId || a.connection.OrganizationId != cmd.OrganizationId {
		outcome.Result = &webhooksv1.CommandOutcome_Refusal{Refusal: resource.Refusal(httpapi.NotFound())}
	} else {
		a.connection, a.last = nil, a.connection.OrganizationId
	}
	a.outcomes = append(a.outcomes, canonical(outcome))
}

// accounts judges the tables of a partition's accounts, and says what the router must have written elsewhere.
func (j *judge) accounts(p int32) error {
	byAccount, err := j.byKey(schemas.InboundUnrouted, p)
	if err != nil {
		return err
	}
	connections, err := j.newest(schemas.Connections, p)
	if err != nil {
		return err
	}
	routes, err := j.newest(schemas.Routes, p)
	if err != nil {
		return err
	}
	held, err := j.newest(schemas.UnroutedHeld, p)
	if err != nil {
		return err
	}
	total := 0
	for key, records := range byAccount {
		a := &account{key: key, told: map[string][]string{}}
		for _, r := range records {
			if err := a.apply(r); err != nil {
				return err
			}
		}
		total += len(records) - a.answers
		j.account(a, connections, routes, held)
	}
	j.accepted(schemas.InboundUnrouted, p, total)
	for topic, left := range map[string]map[string][]byte{
		schemas.Connections: connections, schemas.Routes: routes, schemas.UnroutedHeld: held,
	} {
		for key := range left {
			j.differ(key, "on %s, expected nothing", topic)
		}
	}
	return nil
}

// newest are the values of a table.
func (j *judge) newest(topic string, p int32) (map[string][]byte, error) {
	records, err := j.log(topic, p)
	table := map[string][]byte{}
	for _, r := range records {
		if table[string(r.Key)] = r.Value; r.Value == nil {
			delete(table, string(r.Key))
		}
	}
	j.compared[topic] += len(table)
	return table, err
}

func (j *judge) account(a *account, connections, routes, held map[string][]byte) {
	for _, row := range a.rows {
		j.expect(schemas.InboundRows, row)
	}
	for _, outcome := range a.outcomes {
		j.expect(schemas.CommandOutcomes, outcome)
	}
	for _, letter := range a.letters {
		j.expect(schemas.Inbound, letter)
	}
	var waits []string
	for key, value := range held {
		if len(key) == len(a.key)+1+20 && key[:len(a.key)+1] == a.key+"/" {
			waits = append(waits, key[len(a.key)+1:]+" "+heldEvent(value))
			delete(held, key)
		}
	}
	slices.Sort(waits)
	for i := range waits {
		waits[i] = waits[i][21:]
	}
	var want []string
	for _, e := range a.held {
		want = append(want, e.id)
	}
	j.sequence(a.key, schemas.UnroutedHeld, want, waits)
	maps.Copy(j.forwarded, a.told)
	holders := &webhooksv1.AccountHolders{}
	_ = proto.Unmarshal(held["!holders/"+a.key], holders)
	delete(held, "!holders/"+a.key)
	if expected := (&webhooksv1.AccountHolders{LastOrganizationId: a.last, KeeperOrganizationIds: a.keepers}); !proto.Equal(holders, expected) {
		j.differ(a.key, "on %s:\nexpected: %v\nfound: %v", schemas.UnroutedHeld, expected, holders)
	}
	if a.connection == nil {
		return
	}
	connection, route := &webhooksv1.Connection{}, &webhooksv1.Route{}
	_, _ = proto.Unmarshal(connections[a.key], connection), proto.Unmarshal(routes[a.key], route)
	if canonical(connection) != canonical(a.connection) {
		j.differ(a.key, "on %s:\nexpected: %v\nfound: %v", schemas.Connections, a.connection, connection)
	}
	leads := a.connection.OrganizationId
	if len(a.keepers) > 0 {
		leads = "" // edges follow none
	}
	if route.OrganizationId != leads || route.Learned != a.connection.Learned {
		j.differ(a.key, "on %s, which should lead as its connection does: %v", schemas.Routes, route)
	}
	delete(connections, a.key)
	delete(routes, a.key)
}

func heldEvent(value []byte) string {
	held := &webhooksv1.HeldEvent{}
	_ = proto.Unmarshal(value, held)
	for _, h := range held.Headers {
		if string(h.Key) == schemas.HeaderEventID {
			return string(h.Value)
		}
	}
	return "an event without id"
}

// expect notes an output of the router's, which is read with those of organizations.
func (j *judge) expect(topic, text string) { j.routed[topic+"\x00"+text]++ }

// routers crosses one off.
func (j *judge) routers(topic, text string) {
	j.compared[topic]++
	at := topic + "\x00" + text
	if j.routed[at]--; j.routed[at] < 0 {
		j.differ("router", "on %s, unexpected or there twice:\n%s", topic, show(topic, text))
	}
}

// unwritten tells what the router should have written and has not.
func (j *judge) unwritten() {
	for at, n := range j.routed {
		if topic, text, _ := strings.Cut(at, "\x00"); n > 0 {
			j.differ("router", "missing on %s:\n%s", topic, show(topic, text))
		}
	}
}

// forwardedTo compares what the router has handed to an organization, in order: what it says of the account, and the account's
// events. It gives how many of the inputs are not the load's.
func (j *judge) forwardedTo(org string, inputs []*kgo.Record) (n int) {
	want, routed := j.forwarded[org]
	var got []string
	for _, r := range inputs {
		switch cmd := commandOf(r); {
		case cmd == nil && routed:
			got = append(got, kafka.ReadHeader(r.Headers, schemas.HeaderEventID))
		case cmd == nil:
		case organizationsOwn(cmd):
			n++
		case cmd.GetAdoptAccount() != nil:
			got = append(got, "adopt "+schemas.AccountKey(cmd.GetAdoptAccount().Source, cmd.GetAdoptAccount().Account))
		case cmd.GetReleaseAccount() != nil:
			r := cmd.GetReleaseAccount()
			line := fmt.Sprintf("release %s to %s, order %d", schemas.AccountKey(r.Source, r.Account), r.ToOrganizationId, r.Order)
			if r.Learnt {
				line += ", a copy"
			}
			if r.Stays {
				line += ", and stays"
			}
			got = append(got, line)
		case cmd.GetSettleInvoice() != nil:
			s := cmd.GetSettleInvoice()
			got = append(got, fmt.Sprintf("%s of %s is settled", s.InvoiceId, schemas.AccountKey(s.Source, s.Account)))
		case cmd.GetReleaseSubscription() != nil:
			r := cmd.GetReleaseSubscription()
			got = append(got, fmt.Sprintf("%s of %s is of %s since %s", r.SubscriptionId, schemas.AccountKey(r.Source, r.Account),
				r.ToOrganizationId, r.Position.GetEventId()))
		}
	}
	delete(j.forwarded, org)
	j.sequence(org, schemas.Inbound, want, got)
	return n + len(got)
}
