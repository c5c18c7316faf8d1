package inbound

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// When the owner of an account moves its connection from one organization to another, it tells the first to release
// the account. The first takes what it knows of the account out of its state, leaves a mark, and hands it to the second
// by an adopt command, and ahead of it by remember commands which of the account's events took effect; all that in one
// transaction each, so nothing is lost or there twice. The mark sends on what still comes to the first, from an edge that
// has not seen that the route is gone: it arrives after the adopt command, since both go from one partition to one
// partition in order. The owner of the account is told when it was adopted, and holds the account's events until then: one
// that is sent again must not come to the second before it is known there.
//
// An account that was learnt, from an event that names an organization, is learnt anew when an event names another one, and
// may be paying for both. Then the first keeps what it has, and hands over a copy of what tells which events took effect: the
// settled invoices, and which of the account's events those were, where the second is of another partition; and of where it
// knows the subscriptions to be. Its mark lets what names the organization itself pass. Where an older event names the other,
// the first stays connected, and there is no mark.
//
// What comes to an organization which has had to release the account again since is sent on likewise; a later adopt command
// takes the mark away. A mark has no say over events accepted long after the move: they come because the account is
// connected here again.

// moveWindow is how long after a move an edge may still follow the old route. Its copy of the routes is seconds behind
// at most.
const moveWindow = time.Minute

// maxRemembered bounds a remember command, in bytes of events: some 20,000 small records of its receiver. Who hands an account
// over does so in one transaction, however many there are; a customer has dozens.
const maxRemembered = 256 << 10

// movedPrefix begins the keys of marks in the store `billing`. An organization's own key has no slash.
const movedPrefix = "moved/"

func movedKey(organization, source, account string) string {
	return movedPrefix + organization + "/" + source + "/" + account
}

// moves are the marks of a partition. They are few, and every event asks for one, so they are kept in memory; the
// zero value reads them when it is first asked.
type moves struct {
	marks map[string]*webhooksv1.MovedAccount
}

func (m *moves) load(tx *stream.Tx) error {
	if m.marks != nil {
		return nil
	}
	marks := map[string]*webhooksv1.MovedAccount{}
	var broken error
	err := tx.Scan(schemas.Billing, []byte(movedPrefix), nil, func(key, value []byte) bool {
		mark := &webhooksv1.MovedAccount{}
		if broken = proto.Unmarshal(value, mark); broken != nil {
			broken = fmt.Errorf("decode %s: %w", key, broken)
			return false
		}
		marks[string(key)] = mark
		return true
	})
	if err == nil {
		err = broken
	}
	if err != nil {
		return fmt.Errorf("read moved accounts: %w", err)
	}
	m.marks = marks
	return nil
}

// to is the organization that an event is to be sent on to, "" for none.
func (m *moves) to(tx *stream.Tx, e *event) (string, error) {
	if err := m.load(tx); err != nil || len(m.marks) == 0 {
		return "", err
	}
	mark := m.marks[movedKey(e.organization, e.source, e.account)]
	if mark == nil || e.acceptedAt.After(time.UnixMilli(mark.MovedUnixMs).Add(moveWindow)) {
		return "", nil
	}
	if mark.Learnt && string(e.named) == e.organization {
		return "", nil
	}
	return mark.OrganizationId, nil
}

// onward is the mark of where what is handed over by a move goes on to, nil for nowhere: the account was moved away
// again by a later one.
func (m *moves) onward(key string, order int64) *webhooksv1.MovedAccount {
	if mark := m.marks[key]; mark != nil && mark.Order > order {
		return mark
	}
	return nil
}

func (m *moves) set(tx *stream.Tx, key string, mark *webhooksv1.MovedAccount) error {
	value, err := proto.Marshal(mark)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	tx.Put(schemas.Billing, []byte(key), value)
	m.marks[key] = mark
	return nil
}

func (m *moves) clear(tx *stream.Tx, key string) {
	if m.marks[key] != nil {
		tx.Delete(schemas.Billing, []byte(key))
		delete(m.marks, key)
	}
}

// release hands an account over to the organization it was moved to.
func (t *task) release(tx *stream.Tx, e *event, cmd *webhooksv1.Command, r *webhooksv1.ReleaseAccount) (result, error) {
	if !id.ValidOrg(r.ToOrganizationId) || r.Account == "" || strings.Contains(r.Source, "/") {
		return t.bury(tx, e, reasonCommand), nil
	}
	if err := t.moved.load(tx); err != nil {
		return 0, err
	}
	key := movedKey(cmd.OrganizationId, r.Source, r.Account)
	adopt := &webhooksv1.AdoptAccount{
		Source: r.Source, Account: r.Account, MovedUnixMs: r.MovedUnixMs, Order: r.Order, FromOrganizationId: cmd.OrganizationId,
	}
	if r.Source == schemas.SourceStripe {
		state, err := stateOf(tx, cmd.OrganizationId)
		if err != nil {
			return 0, err
		}
		var released billing.Result
		held := billing.Copy(state, r.Account, cmd.OrganizationId)
		if !r.Learnt {
			released, held = billing.Release(state, moveOf(tx, cmd, r.Account), t.cfg.Plans)
		}
		adopt.Subscriptions, adopt.FailedInvoices = held.Subscriptions, held.FailedInvoices
		adopt.SettledInvoices, adopt.SettledUnixMs = held.SettledInvoices, held.SettledUnixMS
		effects, err := t.effectsOf(tx, cmd.OrganizationId, &released)
		if err != nil {
			return 0, err
		}
		t.write(tx, effects)
	}
	if !r.Stays {
		mark := &webhooksv1.MovedAccount{OrganizationId: r.ToOrganizationId, MovedUnixMs: r.MovedUnixMs, Order: r.Order, Learnt: r.Learnt}
		if err := t.moved.set(tx, key, mark); err != nil {
			return 0, err
		}
	}
	if !r.Learnt || t.partition.PartitionOf(r.ToOrganizationId) != t.partition.ID() {
		if err := t.handEvents(tx, cmd, r); err != nil {
			return 0, err
		}
	}
	t.hand(tx, &webhooksv1.Command{
		Id:             id.Derive(id.Command, "adopt", cmd.Id),
		OrganizationId: r.ToOrganizationId,
		IssuedUnixMs:   tx.Now().UnixMilli(),
		Action:         &webhooksv1.Command_AdoptAccount{AdoptAccount: adopt},
	})
	return processed, nil
}

// handEvents tells the organization that an account is handed over to what is known of its events.
func (t *task) handEvents(tx *stream.Tx, cmd *webhooksv1.Command, r *webhooksv1.ReleaseAccount) error {
	n := 0
	return t.memory.HandOver(tx, dedupe.AccountOf(r.Source, r.Account), maxRemembered, func(events []byte) {
		t.hand(tx, &webhooksv1.Command{
			Id:             id.Derive(id.Command, "remember", cmd.Id, strconv.Itoa(n)),
			OrganizationId: r.ToOrganizationId,
			IssuedUnixMs:   tx.Now().UnixMilli(),
			Action: &webhooksv1.Command_RememberEvents{RememberEvents: &webhooksv1.RememberEvents{
				Source: r.Source, Account: r.Account, Order: r.Order, Events: events,
			}},
		})
		n++
	})
}

// remember takes over what another organization knows of an account's events, also where the account has gone on: what follows
// may come when it is here again, and this still on its way round.
func (t *task) remember(tx *stream.Tx, e *event, cmd *webhooksv1.Command, r *webhooksv1.RememberEvents) (result, error) {
	if err := t.moved.load(tx); err != nil {
		return 0, err
	}
	ok, err := t.memory.TakeOver(tx, dedupe.AccountOf(r.Source, r.Account), r.Events)
	if err != nil {
		return 0, err
	}
	if !ok {
		return t.bury(tx, e, reasonCommand), nil
	}
	if gone := t.moved.onward(movedKey(cmd.OrganizationId, r.Source, r.Account), r.Order); gone != nil {
		cmd.OrganizationId = gone.OrganizationId
		t.hand(tx, cmd)
		return forwarded, nil
	}
	return processed, nil
}

// adopt takes an account over, or passes it on. An organization that was told to hand on a copy keeps the rest.
func (t *task) adopt(tx *stream.Tx, e *event, cmd *webhooksv1.Command, a *webhooksv1.AdoptAccount) (result, error) {
	if err := t.moved.load(tx); err != nil {
		return 0, err
	}
	key := movedKey(cmd.OrganizationId, a.Source, a.Account)
	switch gone := t.moved.onward(key, a.Order); {
	case gone == nil:
		t.moved.clear(tx, key)
		if a.FromOrganizationId != "" {
			if err := t.adopted(tx, cmd, a); err != nil {
				return 0, err
			}
		}
	case gone.Learnt:
		on := proto.CloneOf(cmd)
		on.OrganizationId, on.IssuedUnixMs = gone.OrganizationId, tx.Now().UnixMilli()
		on.GetAdoptAccount().Subscriptions, on.GetAdoptAccount().FailedInvoices = billing.Whereabouts(a.Subscriptions, cmd.OrganizationId), nil
		t.hand(tx, on)
	default:
		cmd.OrganizationId = gone.OrganizationId
		t.hand(tx, cmd)
		return forwarded, nil
	}
	state, err := stateOf(tx, cmd.OrganizationId)
	if err != nil {
		return 0, err
	}
	move := moveOf(tx, cmd, a.Account)
	adopted := billing.Adopt(state, move, billing.Holding{
		From: a.FromOrganizationId, Subscriptions: a.Subscriptions, FailedInvoices: a.FailedInvoices,
		SettledInvoices: a.SettledInvoices, SettledUnixMS: a.SettledUnixMs,
	}, t.cfg.Plans)
	effects, err := t.effectsOf(tx, cmd.OrganizationId, &adopted)
	if err != nil {
		return 0, err
	}
	if !effects.fit() {
		return t.bury(tx, e, reasonTooLarge), nil
	}
	t.write(tx, effects)
	t.pass(tx, word{cause: cmd.Id, from: cmd.OrganizationId, source: a.Source, account: a.Account, at: move.AtUnixMS}, adopted.Words)
	return processed, nil
}

// adopted tells the account's owner that an account has been handed over.
func (t *task) adopted(tx *stream.Tx, cmd *webhooksv1.Command, a *webhooksv1.AdoptAccount) error {
	r, err := cloudevent.Command(&webhooksv1.Command{
		Id:             id.Derive(id.Command, "adopted", cmd.Id),
		OrganizationId: cmd.OrganizationId,
		IssuedUnixMs:   tx.Now().UnixMilli(),
		Action: &webhooksv1.Command_AccountAdopted{AccountAdopted: &webhooksv1.AccountAdopted{
			Source: a.Source, Account: a.Account, Order: a.Order,
		}},
	})
	if err != nil {
		return err
	}
	account := schemas.AccountKey(a.Source, a.Account)
	r.Key = []byte(account)
	tx.Emit(schemas.InboundUnrouted, account, r)
	return nil
}

func moveOf(tx *stream.Tx, cmd *webhooksv1.Command, account string) billing.Move {
	return billing.Move{
		Organization: cmd.OrganizationId, CustomerID: account, CauseID: cmd.Id, AtUnixMS: tx.Now().UnixMilli(),
	}
}

// hand sends a command to the owner of its organization.
func (t *task) hand(tx *stream.Tx, cmd *webhooksv1.Command) {
	r, err := cloudevent.Command(cmd)
	if err != nil {
		panic("BUG: a command does not encode: " + err.Error())
	}
	tx.Emit(schemas.Inbound, cmd.OrganizationId, r)
}

// forward sends an event on to the organization that its account was moved to, and reports that it did.
func (t *task) forward(tx *stream.Tx, e *event) (gone bool, err error) {
	to, err := t.moved.to(tx, e)
	if to == "" || err != nil {
		return false, err
	}
	r := &kgo.Record{Key: []byte(to), Value: e.body, Headers: cloudevent.WithOrganization(e.record.Headers, to)}
	if !stream.Fits(r) {
		e.unusable = reasonTooLarge
		return false, nil
	}
	tx.Emit(schemas.Inbound, to, r)
	return true, nil
}
