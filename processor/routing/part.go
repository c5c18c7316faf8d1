package routing

import (
	"strconv"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// part tells all others who know something of a shared account that a subscription is, since the event that is about to be
// handed on, of the organization that gets it. Who knows of a newer event knows better. order tells this handing on from
// another of the same event.
func (u unit) part(to string, connection *webhooksv1.Connection, holders *webhooksv1.AccountHolders, e *event, body []byte, order int64) error {
	if len(holders.KeeperOrganizationIds) == 0 {
		return nil
	}
	subscription, position := u.cfg.Subscription(e.source, e.eventType, e.sourceEventID, body)
	if subscription == "" {
		return nil
	}
	for _, other := range append([]string{connection.OrganizationId}, holders.KeeperOrganizationIds...) {
		if other == to {
			continue
		}
		r, err := cloudevent.Command(&webhooksv1.Command{
			Id:             id.Derive(id.Command, "part", e.eventID, other, strconv.FormatInt(order, 10)),
			OrganizationId: other, IssuedUnixMs: u.tx.Now().UnixMilli(),
			Action: &webhooksv1.Command_ReleaseSubscription{ReleaseSubscription: &webhooksv1.ReleaseSubscription{
				Source: connection.Source, Account: connection.Account, SubscriptionId: subscription,
				ToOrganizationId: to, Position: position,
			}},
		})
		if err != nil {
			return err
		}
		u.tx.Emit(schemas.Inbound, other, r)
	}
	return nil
}
