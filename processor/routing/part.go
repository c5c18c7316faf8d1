package routing

import (
	"strconv"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// part tells everybody who keeps something of a shared account that a subscription is, since the event that is about to be handed
// on, of the organization that is connected. Who knows of a newer event knows better. order tells this handing on from another
// of the same event.
func (u unit) part(connection *webhooksv1.Connection, holders *webhooksv1.AccountHolders, e *event, body []byte, order int64) error {
	if len(holders.KeeperOrganizationIds) == 0 {
		return nil
	}
	subscription, position := u.cfg.Subscription(e.source, e.eventType, e.sourceEventID, body)
	if subscription == "" {
		return nil
	}
	for _, keeper := range holders.KeeperOrganizationIds {
		r, err := cloudevent.Command(&webhooksv1.Command{
			Id:             id.Derive(id.Command, "part", e.eventID, keeper, strconv.FormatInt(order, 10)),
			OrganizationId: keeper, IssuedUnixMs: u.tx.Now().UnixMilli(),
			Action: &webhooksv1.Command_ReleaseSubscription{ReleaseSubscription: &webhooksv1.ReleaseSubscription{
				Source: connection.Source, Account: connection.Account, SubscriptionId: subscription,
				ToOrganizationId: connection.OrganizationId, Position: position,
			}},
		})
		if err != nil {
			return err
		}
		u.tx.Emit(schemas.Inbound, keeper, r)
	}
	return nil
}
