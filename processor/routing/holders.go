package routing

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// holdersPrefix begins the key of what is kept of an account's organizations beside its connection.
const holdersPrefix = "!holders/"

// holders is empty where nothing is kept.
func (u unit) holders(account string) (*webhooksv1.AccountHolders, error) {
	holders := &webhooksv1.AccountHolders{}
	_, err := u.get(schemas.UnroutedHeld, holdersPrefix+account, holders)
	aligned(holders)
	return holders, err
}

// aligned gives a hand-over that was noted without its beginning the earliest there is.
func aligned(holders *webhooksv1.AccountHolders) {
	for len(holders.SinceUnixMs) < len(holders.HandingOver) {
		holders.SinceUnixMs = slices.Insert(holders.SinceUnixMs, 0, 0)
	}
}

func (u unit) putHolders(account string, holders *webhooksv1.AccountHolders) error {
	u.closed.note(account, holders)
	if proto.Size(holders) == 0 {
		u.tx.Delete(schemas.UnroutedHeld, []byte(holdersPrefix+account))
		return nil
	}
	return u.put(schemas.UnroutedHeld, holdersPrefix+account, holders)
}

// await closes an account's route until the organization that this unit tells to release the account has handed it over.
func (u unit) await(account string) error {
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	holders.HandingOver, holders.SinceUnixMs = append(holders.HandingOver, u.order), append(holders.SinceUnixMs, u.tx.Now().UnixMilli())
	u.tx.Delete(schemas.Routes, []byte(account))
	return u.putHolders(account, holders)
}

// leave notes who was connected, when that ends.
func (u unit) leave(account, organization string) error {
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	holders.LastOrganizationId = organization
	return u.putHolders(account, holders)
}

// holder is who holds an account that is about to be connected: the organization that is connected, else the one that was last,
// which is forgotten by that.
func (u unit) holder(account string, current *webhooksv1.Connection) (string, error) {
	if current != nil {
		return current.OrganizationId, nil
	}
	holders, err := u.holders(account)
	last := holders.GetLastOrganizationId()
	if err != nil || last == "" {
		return "", err
	}
	holders.LastOrganizationId = ""
	return last, u.putHolders(account, holders)
}

// share notes who keeps what it knows of an account that has been learnt: those that did so far but for the one that is connected
// now, and the holder where it keeps it too.
func (u unit) share(account string, learned *webhooksv1.Connection, holder string, on terms) error {
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	keepers := slices.DeleteFunc(slices.Clone(holders.KeeperOrganizationIds), func(org string) bool {
		return org == learned.OrganizationId || org == holder
	})
	if on == aCopy {
		keepers = append(keepers, holder)
	}
	if slices.Equal(keepers, holders.KeeperOrganizationIds) {
		return nil
	}
	holders.KeeperOrganizationIds = keepers
	return u.putHolders(account, holders)
}

// adopted goes on once the last of an account's hand-overs has arrived, or has been given up. With several under way it may have gone through
// several hands, in any order.
func (u unit) adopted(cmd *webhooksv1.Command, a *webhooksv1.AccountAdopted) error {
	account := schemas.AccountKey(a.Source, a.Account)
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	at := slices.Index(holders.HandingOver, a.Order)
	if at < 0 {
		return nil
	}
	if cmd.Id == overdueID(account, a.Order) {
		u.overdue = append(u.overdue, givenUp{cmd.OrganizationId, account, a.Order, time.UnixMilli(holders.SinceUnixMs[at])})
	}
	holders.HandingOver = slices.Delete(holders.HandingOver, at, at+1)
	holders.SinceUnixMs = slices.Delete(holders.SinceUnixMs, at, at+1)
	if err := u.putHolders(account, holders); err != nil || len(holders.HandingOver) > 0 {
		return err
	}
	return u.goOn(account)
}
