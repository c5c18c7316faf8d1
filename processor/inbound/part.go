package inbound

import (
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// The owner of a shared account tells the organizations that know of it, ahead of an event, that the event settles an invoice, or
// whose a subscription is since. They agree on it by the event's position, whatever comes first where, and pass on to each other
// what they know. The time of it all is that of who told first, so that it does not depend on who comes to it when.

// maxPassed bounds how often a state is passed on: it goes to where the one before knows the subscription to be, by a newer
// event each time, and there are few organizations.
const maxPassed = 16

// releaseSubscription takes the news that a subscription is another organization's.
func (t *task) releaseSubscription(tx *stream.Tx, e *event, cmd *webhooksv1.Command, r *webhooksv1.ReleaseSubscription) (result, error) {
	if !id.ValidOrg(r.ToOrganizationId) || r.SubscriptionId == "" || r.Position == nil {
		return t.bury(tx, e, reasonCommand), nil
	}
	state, err := stateOf(tx, cmd.OrganizationId)
	if err != nil {
		return 0, err
	}
	parted := billing.Part(state, toldOf(cmd, r.Account), billing.Parting{
		SubscriptionID: r.SubscriptionId, CustomerID: r.Account, To: r.ToOrganizationId, Position: r.Position,
	}, t.cfg.Plans)
	if len(parted.Words) > 0 && parted.Words[0].State != nil {
		t.tally.subscriptions++
		t.log.Info("a subscription goes to another organization, which an event of it names", "org", cmd.OrganizationId,
			"to", r.ToOrganizationId, "account", r.Account, "subscription", r.SubscriptionId)
	}
	return t.tell(tx, e, word{cause: cmd.Id, from: cmd.OrganizationId, source: r.Source, account: r.Account, at: cmd.IssuedUnixMs}, &parted)
}

// adoptSubscription takes over what another organization knew of a subscription. It goes on to where all of the account was
// moved to.
func (t *task) adoptSubscription(tx *stream.Tx, e *event, cmd *webhooksv1.Command, a *webhooksv1.AdoptSubscription) (result, error) {
	if a.Subscription.GetId() == "" || a.Subscription.Position == nil {
		return t.bury(tx, e, reasonCommand), nil
	}
	if err := t.moved.load(tx); err != nil {
		return 0, err
	}
	if a.Passed++; a.Passed > maxPassed {
		t.log.Error("a subscription's state finds nobody whose it is", "org", cmd.OrganizationId, "account", a.Account,
			"subscription", a.Subscription.Id)
		return t.bury(tx, e, reasonCommand), nil
	}
	if gone := t.moved.marks[movedKey(cmd.OrganizationId, a.Source, a.Account)]; gone != nil && !gone.Learnt {
		cmd.OrganizationId = gone.OrganizationId
		t.hand(tx, cmd)
		return forwarded, nil
	}
	state, err := stateOf(tx, cmd.OrganizationId)
	if err != nil {
		return 0, err
	}
	joined := billing.Join(state, toldOf(cmd, a.Account), a.Subscription, t.cfg.Plans)
	return t.tell(tx, e, word{
		cause: cmd.Id, from: cmd.OrganizationId, source: a.Source, account: a.Account, at: cmd.IssuedUnixMs, passed: a.Passed,
	}, &joined)
}

// settleInvoice takes the news that an invoice was settled by an event of another organization.
func (t *task) settleInvoice(tx *stream.Tx, e *event, cmd *webhooksv1.Command, s *webhooksv1.SettleInvoice) (result, error) {
	if s.InvoiceId == "" {
		return t.bury(tx, e, reasonCommand), nil
	}
	state, err := stateOf(tx, cmd.OrganizationId)
	if err != nil {
		return 0, err
	}
	settled := billing.Settle(state, cmd.OrganizationId, s.InvoiceId, s.SettledUnixMs, t.cfg.Plans)
	return t.tell(tx, e, word{from: cmd.OrganizationId}, &settled)
}

func toldOf(cmd *webhooksv1.Command, account string) billing.Move {
	return billing.Move{Organization: cmd.OrganizationId, CustomerID: account, CauseID: cmd.Id, AtUnixMS: cmd.IssuedUnixMs}
}

// tell writes what a command has led to.
func (t *task) tell(tx *stream.Tx, e *event, of word, r *billing.Result) (result, error) {
	effects, err := t.effectsOf(tx, of.from, r)
	if err != nil {
		return 0, err
	}
	if !effects.fit() {
		return t.bury(tx, e, reasonTooLarge), nil
	}
	t.write(tx, effects)
	t.pass(tx, of, r.Words)
	return processed, nil
}

// word is what is common to all that follows from something: its id, the organization, the account and the time.
type word struct {
	cause, from, source, account string
	at                           int64
	// passed is how often it was passed on so far.
	passed uint32
}

// pass tells other organizations of an account's subscriptions.
func (t *task) pass(tx *stream.Tx, of word, words []billing.Word) {
	for _, w := range words {
		told := &webhooksv1.Command{OrganizationId: w.Organization, IssuedUnixMs: of.at}
		if w.State != nil {
			told.Id = id.Derive(id.Command, "adopt", of.cause, of.from, w.State.Id)
			told.Action = &webhooksv1.Command_AdoptSubscription{AdoptSubscription: &webhooksv1.AdoptSubscription{
				Source: of.source, Account: of.account, Subscription: w.State, Passed: of.passed,
			}}
		} else {
			told.Id = id.Derive(id.Command, "release", of.cause, of.from, w.Parting.SubscriptionID)
			told.Action = &webhooksv1.Command_ReleaseSubscription{ReleaseSubscription: &webhooksv1.ReleaseSubscription{
				Source: of.source, Account: of.account, SubscriptionId: w.Parting.SubscriptionID, ToOrganizationId: w.Parting.To,
				Position: w.Parting.Position, FromOrganizationId: of.from,
			}}
		}
		t.hand(tx, told)
	}
}
