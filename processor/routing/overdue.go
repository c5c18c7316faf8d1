package routing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// handOverLimit is how long an account waits to be handed over. That takes two transactions of organizations' owners, so
// what takes longer is an owner that stands still, which somebody is awake about within hours, or an answer that is lost,
// which ought not to be. Beyond it the account's events are worth more than that none of those sent again counts twice:
// Stripe itself gives up after three days.
const handOverLimit = 12 * time.Hour

// handOverPatience is how long it waits at least once its owner is there: after a night on which everything stood still
// the organizations' owners have their turn first.
const handOverPatience = time.Hour

// closed are the accounts that wait to be handed over, by when the first of their hand-overs began, in milliseconds: a copy
// of what the store says.
type closed struct {
	since map[string]int64
	// began is when this owner first had a say, zero until then; next is when the next account may be overdue, or earlier.
	began, next time.Time
}

// recall reads the closed accounts from what is committed.
func (c *closed) recall(scan func(fn func(key, value []byte) bool) error) error {
	c.since, c.next = map[string]int64{}, time.Time{}
	var broken error
	err := scan(func(key, value []byte) bool {
		holders := &webhooksv1.AccountHolders{}
		if broken = proto.Unmarshal(value, holders); broken != nil {
			broken = fmt.Errorf("decode %s: %w", key, broken)
			return false
		}
		aligned(holders)
		c.note(strings.TrimPrefix(string(key), holdersPrefix), holders)
		return true
	})
	if err == nil {
		err = broken
	}
	return err
}

func (c *closed) has(account string) bool {
	_, is := c.since[account]
	return is
}

func (c *closed) note(account string, holders *webhooksv1.AccountHolders) {
	if len(holders.HandingOver) == 0 {
		delete(c.since, account)
		return
	}
	c.since[account] = slices.Min(holders.SinceUnixMs)
	c.next = time.Time{}
}

// limit is when an account that waits since then is overdue.
func (c *closed) limit(since int64) time.Time {
	at := time.UnixMilli(since).Add(handOverLimit)
	if patient := c.began.Add(handOverPatience); patient.After(at) {
		return patient
	}
	return at
}

// giveUp ends the waiting of accounts whose hand-over is overdue, and asks to be called when the next one is.
func (u unit) giveUp(now time.Time) error {
	c := &u.closed
	if c.began.IsZero() {
		c.began = now
	}
	if len(c.since) == 0 || now.Before(c.next) {
		return nil
	}
	for account, since := range c.since {
		if now.Before(c.limit(since)) {
			continue
		}
		if err := u.giveUpOn(account, now); err != nil {
			return fmt.Errorf("end the hand-over of %s: %w", account, err)
		}
	}
	c.next = time.Time{}
	for _, since := range c.since {
		if at := c.limit(since); c.next.IsZero() || at.Before(c.next) {
			c.next = at
		}
	}
	if !c.next.IsZero() {
		u.partition.WakeAt(c.next)
	}
	return nil
}

// giveUpOn goes on with an account as if what is overdue had been handed over.
func (u unit) giveUpOn(account string, now time.Time) error {
	for {
		holders, err := u.holders(account)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(holders.SinceUnixMs, func(since int64) bool { return !now.Before(u.closed.limit(since)) })
		if at < 0 {
			return nil
		}
		connection, err := u.connection(account)
		if err != nil {
			return err
		}
		u.overdue++
		u.log.Error("an account was not handed over in time; its events go on, and one that is sent again may count twice",
			"org", cmp.Or(connection.GetOrganizationId(), holders.LastOrganizationId), "account", account, "order", holders.HandingOver[at],
			"since", time.UnixMilli(holders.SinceUnixMs[at]).UTC())
		u.order = holders.HandingOver[at]
		if err := u.ended(account, holders, at); err != nil {
			return err
		}
	}
}
