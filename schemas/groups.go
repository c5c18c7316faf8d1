package schemas

// Consumer groups, without KAFKA_TOPIC_PREFIX. A name is permanent: the group's committed offsets, and the folder of its
// local state, are found by it.
const (
	GroupInbound   = "inbound"   // Inbound: events and commands of organizations
	GroupRouter    = "router"    // InboundUnrouted: events and commands of accounts
	GroupFanOut    = "fan-out"   // Events: which endpoints hear of what
	GroupDeliverer = "deliverer" // Deliveries: attempts
	// GroupSinkPrefix and a ClickHouse table's name are the group that fills the table, from the table's row topic.
	GroupSinkPrefix = "sink."
)
