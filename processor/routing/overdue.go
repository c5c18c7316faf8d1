package routing

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
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
	// told are those whose overdue hand-overs are given up by a command that has not come back yet, as far as this owner knows.
	told map[string]bool
}

// recall reads the closed accounts from what is committed.
func (c *closed) recall(scan func(fn func(key, value []byte) bool) error) error {
	c.since, c.next, c.told = map[string]int64{}, time.Time{}, map[string]bool{}
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
	delete(c.told, account)
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

// givenUp is a hand-over that is waited for no more.
type givenUp struct {
	organization, account string
	order                 int64
	since                 time.Time
}

// giveUp has the hand-overs that are overdue given up, and asks to be called when the next one is. The router tells that itself
// on its own topic: so it comes behind the answers that are there already, and what begins then has an order of its own, which
// no answer to what was given up can be taken for.
func (u unit) giveUp(now time.Time) error {
	c := &u.closed
	if c.began.IsZero() {
		c.began = now
	}
	if len(c.since) == 0 || now.Before(c.next) {
		return nil
	}
	c.next = time.Time{}
	next := time.Time{}
	for account, since := range c.since {
		switch at := c.limit(since); {
		case c.told[account]:
		case now.Before(at):
			if next.IsZero() || at.Before(next) {
				next = at
			}
		case u.spent.givenUp >= maxGivenUp:
			return nil // the next transaction goes on
		default:
			if err := u.giveUpOn(account, now); err != nil {
				return fmt.Errorf("end the hand-over of %s: %w", account, err)
			}
		}
	}
	if c.next = next; !next.IsZero() {
		u.partition.WakeAt(next)
	}
	return nil
}

// giveUpOn tells that the account is waited for no more, once for each of its hand-overs that are overdue.
func (u unit) giveUpOn(account string, now time.Time) error {
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	connection, err := u.connection(account)
	if err != nil {
		return err
	}
	source, name, _ := strings.Cut(account, "/") // no source's name has a slash
	for i, order := range holders.HandingOver {
		if now.Before(u.closed.limit(holders.SinceUnixMs[i])) {
			continue
		}
		r, err := cloudevent.Command(&webhooksv1.Command{
			Id:             overdueID(account, order),
			OrganizationId: cmp.Or(connection.GetOrganizationId(), holders.LastOrganizationId),
			IssuedUnixMs:   now.UnixMilli(),
			Action: &webhooksv1.Command_AccountAdopted{AccountAdopted: &webhooksv1.AccountAdopted{
				Source: source, Account: name, Order: order,
			}},
		})
		if err != nil {
			return err
		}
		r.Key = []byte(account)
		u.tx.Emit(schemas.InboundUnrouted, account, r)
		u.spent.givenUp++
	}
	u.closed.told[account] = true
	return nil
}

// overdueID is the id of the command that ends a hand-over which nobody has answered. No answer has it.
func overdueID(account string, order int64) string {
	return id.Derive(id.Command, "overdue", account, strconv.FormatInt(order, 10))
}

// tellOverdue says which hand-overs the transaction, which is committed, has given up.
func (t *task) tellOverdue() {
	t.metrics.overdue.Add(float64(len(t.overdue)))
	for _, g := range t.overdue {
		t.log.Error("an account was not handed over in time; its events go on, and one that is sent again may count twice",
			"org", g.organization, "account", g.account, "order", g.order, "since", g.since.UTC())
	}
}
