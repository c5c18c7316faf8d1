package routing

import (
	"strconv"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// part tells all others who know something of a shared account what concerns them of an event that is about to be handed on to one
// organization. order tells this handing on from another of the same event.
func (u unit) part(to string, connection *webhooksv1.Connection, holders *webhooksv1.AccountHolders, e *event, body []byte, order int64) error {
	if len(holders.KeeperOrganizationIds) == 0 {
		return nil
	}
	news := u.news(to, e, body)
	if news == nil {
		return nil
	}
	for _, other := range append([]string{connection.OrganizationId}, holders.KeeperOrganizationIds...) {
		if other == to {
			continue
		}
		news.Id = id.Derive(id.Command, "part", e.eventID, other, strconv.FormatInt(order, 10))
		news.OrganizationId = other
		r, err := cloudevent.Command(news)
		if err != nil {
			return err
		}
		u.tx.Emit(schemas.Inbound, other, r)
	}
	return nil
}

// news is what others are told of an event, nil for nothing: that a subscription is, since then, of the organization that gets the
// event, where who knows of a newer one knows better; or that an invoice is settled, whose failure may have come to them.
func (u unit) news(to string, e *event, body []byte) *webhooksv1.Command {
	news := &webhooksv1.Command{IssuedUnixMs: u.tx.Now().UnixMilli()}
	if subscription, position := u.cfg.Subscription(e.source, e.eventType, e.sourceEventID, body); subscription != "" {
		news.Action = &webhooksv1.Command_ReleaseSubscription{ReleaseSubscription: &webhooksv1.ReleaseSubscription{
			Source: e.source, Account: e.account, SubscriptionId: subscription, ToOrganizationId: to, Position: position,
		}}
		return news
	}
	if invoice, at := u.cfg.Settled(e.source, e.eventType, e.sourceEventID, body); invoice != "" {
		news.Action = &webhooksv1.Command_SettleInvoice{SettleInvoice: &webhooksv1.SettleInvoice{
			Source: e.source, Account: e.account, InvoiceId: invoice, SettledUnixMs: at,
		}}
		return news
	}
	return nil
}
