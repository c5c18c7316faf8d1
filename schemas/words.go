package schemas

// Statuses of a delivery: rows of `deliveries` and `delivery_attempts`, and the API.
const (
	DeliveryWaiting   = "waiting"
	DeliveryDelivered = "delivered"
	DeliveryDead      = "dead"
	DeliveryUnmatched = "unmatched"
)

// Statuses of a replay.
const (
	ReplayRunning  = "running"
	ReplayPaused   = "paused"
	ReplayDone     = "done"
	ReplayCanceled = "canceled"
)

// Which events of its range a replay delivers (`only`).
const (
	// ReplayFailed: those whose deliveries to the endpoint are dead, and none is delivered or waits.
	ReplayFailed = "failed"
	// ReplayMissing: those that have no delivery to the endpoint and match what it subscribes to now.
	ReplayMissing = "missing"
	// ReplayUndelivered is both.
	ReplayUndelivered = "undelivered"
	// ReplayAll: those that have a delivery to the endpoint, or match.
	ReplayAll = "all"
)

// Outcomes of an inbound event: rows of `inbound_events`.
const (
	OutcomeProcessed = "processed"
	OutcomeStale     = "stale"
	OutcomeDuplicate = "duplicate"
	OutcomeIgnored   = "ignored"
	OutcomeUnrouted  = "unrouted"
	OutcomeDead      = "dead"
)

// Public event types that we make; eventtypes has all, with their schemas.
const (
	TypeSubscriptionUpdated = "subscription.updated"
	TypeEndpointDisabled    = "endpoint.disabled"
	TypeDeliveryExhausted   = "delivery.exhausted"
)

// OrderingOrganization is the ordering of an endpoint to which everything goes in one order.
const OrderingOrganization = "organization"

// Operational reports that an event type tells about the deliveries themselves. Such events go only to who names their
// type, or its beginning, and none follows from the delivery of another.
func Operational(eventType string) bool {
	return eventType == TypeEndpointDisabled || eventType == TypeDeliveryExhausted
}

// EndpointKey is the key of an endpoint on Endpoints. The organization alone is the key of its EndpointSet.
func EndpointKey(organization, endpoint string) []byte { return []byte(organization + "/" + endpoint) }

// ReplayKey is the key of a replay on Replays.
func ReplayKey(organization, replay string) []byte { return []byte(organization + "/" + replay) }

// AccountKey is the key of a source's account on Connections and Routes, and its routing key on InboundUnrouted.
func AccountKey(source, account string) string { return source + "/" + account }
