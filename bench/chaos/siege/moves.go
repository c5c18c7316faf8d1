package siege

import (
	"errors"
	"fmt"
	"maps"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// handOver is a command by which an organization hands something of an account to another, or tells the account's owner that
// it has taken it over; and how often it is on the log.
type handOver struct {
	cmd   *webhooksv1.Command
	times int
}

// handOvers are those on the log, by whom each is for and its id.
type handOvers map[string]*handOver

func handOverKey(to, id string) string { return to + " " + id }

// commandOf is nil for what is none.
func commandOf(r *kgo.Record) *webhooksv1.Command {
	cmd := &webhooksv1.Command{}
	if kafka.ReadHeader(r.Headers, schemas.HeaderType) != schemas.TypeCommand || proto.Unmarshal(r.Value, cmd) != nil {
		return nil
	}
	return cmd
}

// organizationsOwn reports a command that neither an edge nor the router gives.
func organizationsOwn(cmd *webhooksv1.Command) bool {
	return cmd.GetRememberEvents() != nil || cmd.GetAccountAdopted() != nil || cmd.GetAdoptAccount().GetFromOrganizationId() != "" ||
		cmd.GetAdoptSubscription() != nil || cmd.GetReleaseSubscription().GetFromOrganizationId() != ""
}

// findHandOvers reads them, and which events are of accounts.
func (j *judge) findHandOvers() error {
	for p := range j.partitions {
		for _, topic := range [...]string{schemas.Inbound, schemas.InboundUnrouted} {
			records, err := j.log(topic, p)
			if err != nil {
				return err
			}
			for _, r := range records {
				j.findHandOver(topic, r)
			}
		}
	}
	return nil
}

func (j *judge) findHandOver(topic string, r *kgo.Record) {
	if cmd := commandOf(r); cmd == nil {
		if topic == schemas.InboundUnrouted {
			j.events[keyOf(r)] = true
		}
	} else if organizationsOwn(cmd) {
		at := handOverKey(string(r.Key), cmd.Id)
		if j.handOvers[at] == nil {
			j.handOvers[at] = &handOver{cmd: cmd}
		}
		j.handOvers[at].times++
	}
}

func keyOf(r *kgo.Record) dedupe.Key {
	header := func(key string) string { return kafka.ReadHeader(r.Headers, key) }
	return dedupe.KeyOf(header(schemas.HeaderSource), header(schemas.HeaderAccount), header(schemas.HeaderEventID))
}

// handedOver compares how often each is on the log with how often it follows.
func (j *judge) handedOver() {
	for at, h := range j.handOvers {
		if h.times != j.follow[at] {
			j.differ(at, "handed over %d times, expected %d: %v", h.times, j.follow[at], h.cmd)
		}
	}
}

// mark is where an account went that the organization had to release.
type mark struct {
	to     string
	order  int64
	learnt bool
}

// moved applies a command that tells of an account, and reports whether it was one.
func (m *model) moved(cmd *webhooksv1.Command) bool {
	switch action := cmd.Action.(type) {
	case *webhooksv1.Command_ReleaseAccount:
		m.release(cmd, action.ReleaseAccount)
	case *webhooksv1.Command_RememberEvents:
		m.remember(cmd, action.RememberEvents)
	case *webhooksv1.Command_AdoptAccount:
		m.adopt(cmd, action.AdoptAccount)
	case *webhooksv1.Command_SettleInvoice:
		settled := billing.Settle(m.state, m.name, action.SettleInvoice.InvoiceId, action.SettleInvoice.SettledUnixMs, m.plans)
		m.take(&settled)
		m.committed()
	case *webhooksv1.Command_ReleaseSubscription:
		m.part(cmd, action.ReleaseSubscription)
	case *webhooksv1.Command_AdoptSubscription:
		m.join(cmd, action.AdoptSubscription)
	default:
		return false
	}
	return true
}

// hands is what the organization must have given: it has the time at which it did.
func (m *model) hands(to, id string) *webhooksv1.Command {
	at := handOverKey(to, id)
	m.follow = append(m.follow, at)
	if h := m.handOvers[at]; h != nil {
		return h.cmd
	}
	if m.wrong == nil {
		m.wrong = fmt.Errorf("%s was not handed over", at)
	}
	return &webhooksv1.Command{}
}

func (m *model) release(cmd *webhooksv1.Command, r *webhooksv1.ReleaseAccount) {
	if m.moves++; r.Learnt {
		m.learnt++
	}
	given := m.hands(r.ToOrganizationId, id.Derive(id.Command, "adopt", cmd.Id))
	held := billing.Copy(m.state, r.Account, m.name)
	if !r.Learnt {
		var released billing.Result
		released, held = billing.Release(m.state, billing.Move{
			Organization: m.name, CustomerID: r.Account, CauseID: cmd.Id, AtUnixMS: given.IssuedUnixMs,
		}, m.plans)
		m.take(&released)
		m.committed()
	}
	want := &webhooksv1.AdoptAccount{
		Source: r.Source, Account: r.Account, MovedUnixMs: r.MovedUnixMs, Order: r.Order, FromOrganizationId: m.name,
		Subscriptions: held.Subscriptions, FailedInvoices: held.FailedInvoices,
		SettledInvoices: held.SettledInvoices, SettledUnixMs: held.SettledUnixMS,
	}
	if m.wrong == nil && !proto.Equal(given.GetAdoptAccount(), want) {
		m.wrong = fmt.Errorf("handed over by %s:\nexpected: %v\nfound: %v", cmd.Id, want, given.GetAdoptAccount())
	}
	if !r.Stays {
		m.marks[schemas.AccountKey(r.Source, r.Account)] = mark{r.ToOrganizationId, r.Order, r.Learnt}
	}
	if r.Learnt && m.near(r.ToOrganizationId) {
		return // it has what is known of events
	}
	remembered := id.Derive(id.Command, "remember", cmd.Id, "0")
	if len(m.seen) > 0 || m.handOvers[handOverKey(r.ToOrganizationId, remembered)] != nil {
		m.handsEvents(m.hands(r.ToOrganizationId, remembered).GetRememberEvents())
	}
}

// near reports an organization of the same partition.
func (m *model) near(org string) bool {
	return kafka.PartitionOf(org, m.partitions) == kafka.PartitionOf(m.name, m.partitions)
}

// handsEvents compares what is known of an account's events with what was handed over of it. That may have more: what another
// organization of the partition knows of the same account.
func (m *model) handsEvents(r *webhooksv1.RememberEvents) {
	handed, err := remembered(r)
	for key, known := range m.seen {
		if err == nil && handed[key] != known {
			err = fmt.Errorf("event %x is %d and was handed over as %d", key, known, handed[key])
		}
	}
	for key := range handed {
		if err == nil && !m.events[key] {
			err = fmt.Errorf("event %x was handed over and is none", key)
		}
	}
	if m.wrong == nil {
		m.wrong = err
	}
}

// eventBytes is what an event takes that is handed over: what its key has beside its account, the day, and what is known.
const eventBytes = len(dedupe.Key{}) - len(dedupe.Account{}) + 3

func remembered(r *webhooksv1.RememberEvents) (map[dedupe.Key]dedupe.Known, error) {
	all, account := map[dedupe.Key]dedupe.Known{}, dedupe.AccountOf(r.GetSource(), r.GetAccount())
	events := r.GetEvents()
	for ; len(events) >= eventBytes; events = events[eventBytes:] {
		var key dedupe.Key
		copy(key[copy(key[:], account[:]):], events)
		all[key] = dedupe.Known(events[eventBytes-1])
	}
	if len(events) > 0 {
		return nil, errors.New("what was handed over of events ends within one")
	}
	return all, nil
}

func (m *model) remember(cmd *webhooksv1.Command, r *webhooksv1.RememberEvents) {
	handed, err := remembered(r)
	if m.wrong == nil {
		m.wrong = err
	}
	for key, known := range handed {
		m.seen[key] = more(m.seen[key], known)
	}
	m.onward(cmd, r.Source, r.Account, r.Order)
}

// more is what is known of an event of which two know something.
func more(a, b dedupe.Known) dedupe.Known {
	if a == dedupe.New || a == dedupe.Dead && b == dedupe.Done {
		return b
	}
	return a
}

// onward gives the mark of where the account has gone since, nil for nowhere, and the command that goes on to there.
func (m *model) onward(cmd *webhooksv1.Command, source, account string, order int64) (*mark, *webhooksv1.Command) {
	if gone, moved := m.marks[schemas.AccountKey(source, account)]; moved && gone.order > order {
		return &gone, m.hands(gone.to, cmd.Id)
	}
	return nil, nil
}

func (m *model) adopt(cmd *webhooksv1.Command, a *webhooksv1.AdoptAccount) {
	account := schemas.AccountKey(a.Source, a.Account)
	gone, told := m.onward(cmd, a.Source, a.Account, a.Order)
	switch {
	case gone == nil:
		delete(m.marks, account)
		if a.FromOrganizationId == "" {
			return // the router's, which knows nothing of the account
		}
		told = m.hands(account, id.Derive(id.Command, "adopted", cmd.Id))
	case !gone.learnt:
		return
	}
	adopted := billing.Adopt(m.state, billing.Move{
		Organization: m.name, CustomerID: a.Account, CauseID: cmd.Id, AtUnixMS: told.IssuedUnixMs,
	}, billing.Holding{
		From: a.FromOrganizationId, Subscriptions: a.Subscriptions, FailedInvoices: a.FailedInvoices,
		SettledInvoices: a.SettledInvoices, SettledUnixMS: a.SettledUnixMs,
	}, m.plans)
	m.pass(cmd.Id, adopted.Words)
	m.take(&adopted)
	m.committed()
}

func (m *model) part(cmd *webhooksv1.Command, r *webhooksv1.ReleaseSubscription) {
	parted := billing.Part(m.state, m.told(cmd, r.Account), billing.Parting{
		SubscriptionID: r.SubscriptionId, CustomerID: r.Account, To: r.ToOrganizationId, Position: r.Position,
	}, m.plans)
	for _, w := range parted.Words {
		if w.State != nil {
			m.parted++
		}
	}
	m.pass(cmd.Id, parted.Words)
	m.take(&parted)
	m.committed()
}

func (m *model) join(cmd *webhooksv1.Command, a *webhooksv1.AdoptSubscription) {
	if gone, moved := m.marks[schemas.AccountKey(a.Source, a.Account)]; moved && !gone.learnt {
		m.hands(gone.to, cmd.Id)
		return
	}
	joined := billing.Join(m.state, m.told(cmd, a.Account), a.Subscription, m.plans)
	m.pass(cmd.Id, joined.Words)
	m.take(&joined)
	m.committed()
}

func (m *model) told(cmd *webhooksv1.Command, account string) billing.Move {
	return billing.Move{Organization: m.name, CustomerID: account, CauseID: cmd.Id, AtUnixMS: cmd.IssuedUnixMs}
}

// pass compares what the organization must have told others of subscriptions.
func (m *model) pass(cause string, words []billing.Word) {
	for _, w := range words {
		same := false
		if w.State != nil {
			given := m.hands(w.Organization, id.Derive(id.Command, "adopt", cause, m.name, w.State.Id))
			same = proto.Equal(given.GetAdoptSubscription().GetSubscription(), w.State)
		} else {
			given := m.hands(w.Organization, id.Derive(id.Command, "release", cause, m.name, w.Parting.SubscriptionID)).GetReleaseSubscription()
			same = given.GetToOrganizationId() == w.Parting.To && proto.Equal(given.GetPosition(), w.Parting.Position)
		}
		if m.wrong == nil && !same {
			m.wrong = fmt.Errorf("%s was not told what follows from %s: %+v", w.Organization, cause, w)
		}
	}
}

// marksAre compares the marks of a partition's organizations with those on the log.
func (j *judge) marksAre(models map[string]*model) {
	left := maps.Clone(j.marks)
	for org, m := range models {
		for account, gone := range m.marks {
			key := "moved/" + org + "/" + account
			found := &webhooksv1.MovedAccount{}
			_ = proto.Unmarshal(left[key], found)
			if found.OrganizationId != gone.to || found.Order != gone.order || found.Learnt != gone.learnt {
				j.differ(org, "%s was moved to %s, and the mark says: %v", account, gone.to, found)
			}
			delete(left, key)
		}
	}
	for key := range left {
		j.differ(key, "a mark that follows from nothing")
	}
}
