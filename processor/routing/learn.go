package routing

import (
	"cmp"
	"slices"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// terms are those on which an account is handed over.
type terms uint8

const (
	// wholly: who had it keeps nothing.
	wholly terms = iota
	// aCopy: who had it keeps what it has, and is connected no more.
	aCopy
	// introduced: who has it stays connected, and lets another know.
	introduced
)

// direct says whom the next event of a connected account is for, and lets the others know what concerns them. It is "" where
// the event has to wait, for the account is handed over first. order is as in part.
//
// What was made by API has all events. Of what was learnt, those that name an organization are that one's. A newer one than the
// one that taught the account teaches it anew; an older one, or one that is sent again, does not, so that who has those that
// name nobody does not depend on how they arrive.
func (u unit) direct(e *event, connection *webhooksv1.Connection, holders *webhooksv1.AccountHolders, body []byte, order int64) (string, error) {
	org, newer := connection.OrganizationId, teaches(e, connection)
	if connection.Learned && e.named != "" {
		org = e.named
	}
	switch {
	case org == connection.OrganizationId:
		// Unless the account is shared, edges send events that name the connected organization directly to it, not through us.
		if newer {
			taught(connection, e)
			if err := u.put(schemas.Connections, e.key(), connection); err != nil {
				return "", err
			}
		}
	case newer:
		_, err := u.learn(e, connection.OrganizationId, aCopy)
		return "", err
	case !slices.Contains(holders.KeeperOrganizationIds, org):
		return "", u.introduce(e, connection)
	}
	return org, u.part(org, connection, holders, e, body, order)
}

// teaches reports that an event says whose a learnt account is, and is newer than what is known of that.
func teaches(e *event, connection *webhooksv1.Connection) bool {
	return connection.Learned && e.named != "" && cmp.Or(
		cmp.Compare(e.occurredUnixMS, connection.TaughtUnixMs),
		cmp.Compare(e.sourceEventID, connection.TaughtSourceEventId),
	) > 0
}

func taught(connection *webhooksv1.Connection, e *event) {
	connection.TaughtUnixMs, connection.TaughtSourceEventId = e.occurredUnixMS, e.sourceEventID
}

// learn connects the account to the organization that its event names, and has it handed over by the one that holds it, "" for
// none.
//
// One that keeps what it has hands over a copy of what tells the events that took effect there, for those that name nobody
// come to the other from now on; and of where it knows the subscriptions to be, for an older event of one must not seem to be
// its newest. An account is learnt anew only once everybody before has handed over what they know: so who keeps something of it
// knew, when it came to that, of all that had taken effect.
func (u unit) learn(e *event, holder string, on terms) (*webhooksv1.Connection, error) {
	u.counts[resultLearned]++
	account := e.key()
	learned := &webhooksv1.Connection{
		Id: id.Derive(id.Connection, account, e.eventID), OrganizationId: e.named, Source: e.source, Account: e.account,
		Learned: true, Status: resource.ConnectionActive, CreatedUnixMs: u.tx.Now().UnixMilli(),
	}
	taught(learned, e)
	if err := u.put(schemas.Connections, account, learned); err != nil {
		return nil, err
	}
	if err := u.tell(&webhooksv1.Command{Id: e.eventID}, learned, holder, on); err != nil {
		return nil, err
	}
	return learned, u.share(account, learned, holder, on)
}

// introduce has an organization that an older event names told what is known of the account, before it gets the event. Who is
// connected stays so.
func (u unit) introduce(e *event, connection *webhooksv1.Connection) error {
	account, to := e.key(), &webhooksv1.Connection{OrganizationId: e.named, Source: e.source, Account: e.account}
	if err := u.tell(&webhooksv1.Command{Id: e.eventID}, to, connection.OrganizationId, introduced); err != nil {
		return err
	}
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	holders.KeeperOrganizationIds = append(holders.KeeperOrganizationIds, e.named)
	return u.putHolders(account, holders)
}
