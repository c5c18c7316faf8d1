// Package schemas names what the rooms share over Kafka: the topics and how records on them are addressed. Record
// formats are in webhooks/v1 (Protocol Buffers), public event types in eventtypes (JSON Schema), ClickHouse tables in
// clickhouse (SQL migrations). It holds contracts and no behaviour.
package schemas

import "time"

// Topic describes one topic as it is created. Names are without KAFKA_TOPIC_PREFIX.
type Topic struct {
	Name string
	// Partitions, when the topic does not have the plan's count.
	Partitions int32
	// Compact keeps the newest record of a key; tombstones are kept for TombstoneRetention.
	Compact bool
	// Retention deletes older segments; 0 with Compact means never, 0 without it the broker's default.
	Retention time.Duration
}

// TombstoneRetention is delete.retention.ms of compacted topics. A local store older than half of it is wiped: a key
// deleted while its disk was away would live again.
const TombstoneRetention = 7 * 24 * time.Hour

// MaxRecordBytes is max.message.bytes of every topic.
const MaxRecordBytes = 4 << 20

// MaxInboundBody is the largest body, in bytes, of an inbound event. What is left of MaxRecordBytes has room for its
// headers and for what Kafka adds, also when the router holds it or when it becomes a dead letter.
const MaxInboundBody = MaxRecordBytes - 128<<10

// MaxDedupeRetention is the longest that a source event can be remembered. It is kept by whole days, rounded up: the
// topic keeps a day more.
const MaxDedupeRetention = 32 * day

// IdempotencyRetention is how long the answer to a request with an Idempotency-Key is remembered.
const IdempotencyRetention = day

// Topics. Keyed topics have the plan's partitions and a record's partition is that of its *routing key*: the
// organization where the comment says org, the source account, or the endpoint.
const (
	Control         = "control"          // the partition plan
	Inbound         = "inbound"          // org: verified source events and commands; event id: letters of the router's
	InboundCatalog  = "inbound.catalog"  // org: product and stock traffic
	InboundUnrouted = "inbound.unrouted" // account: events of accounts without an organization, and commands on them
	InboundDead     = "inbound.dead"     // org, or event id where there is none: verified events that could not be used, and which were replayed
	Events          = "events"           // org: the canonical public log
	Deliveries      = "deliveries"       // endpoint: one event for the endpoints of a partition, or a command on one
	Retries         = "retries"          // endpoint: what waits, compacted
	DeliveriesDead  = "deliveries.dead"  // endpoint: dead letters
	CommandOutcomes = "command-outcomes" // org or account: answers to commands

	// Tables: compacted, tailed whole by the instances that serve them.
	Entitlements = "entitlements" // org
	Billing      = "billing"      // org
	Endpoints    = "endpoints"    // org
	Connections  = "connections"  // account
	Routes       = "routes"       // account
	Replays      = "replays"      // endpoint
	// EndpointHealth has breakers, and for how long endpoints have been failing.
	EndpointHealth = "endpoint-health" // endpoint

	// Private state of task groups.
	InboundSeen  = "inbound-seen"  // org, or event id where there is none: dedupe of source events
	Idempotency  = "idempotency"   // org: commands by their Idempotency-Key
	UnroutedHeld = "unrouted-held" // account: events that wait for a connection

	// Rows on their way to ClickHouse.
	Attempts     = "attempts"      // endpoint
	DeliveryRows = "delivery-rows" // endpoint (org where there is none)
	EventRows    = "event-rows"    // org
	InboundRows  = "inbound-rows"  // org, account or event id
	BillingAudit = "billing-audit" // org
	Rejections   = "rejections"    // any
)

const (
	day = 24 * time.Hour
	// rowRetention is how long ClickHouse may be away before rows are lost.
	rowRetention = 7 * day
)

// Topics lists every topic with its settings.
func Topics() []Topic {
	return []Topic{
		{Name: Control, Partitions: 1, Compact: true},
		{Name: Inbound, Retention: 7 * day},
		{Name: InboundCatalog, Retention: 7 * day},
		{Name: InboundUnrouted, Retention: 7 * day},
		{Name: InboundDead, Retention: 90 * day},
		{Name: Events, Retention: 7 * day},
		{Name: Deliveries, Retention: 7 * day},
		{Name: Retries, Compact: true},
		{Name: DeliveriesDead, Retention: 90 * day},
		{Name: CommandOutcomes, Retention: time.Hour},
		{Name: Entitlements, Compact: true},
		{Name: Billing, Compact: true},
		{Name: Endpoints, Compact: true},
		{Name: Connections, Compact: true},
		{Name: Routes, Compact: true},
		{Name: Replays, Compact: true},
		{Name: EndpointHealth, Compact: true},
		// Not compacted: a key is written once, so the cleaner would read a hundred million keys to find nothing.
		{Name: InboundSeen, Retention: MaxDedupeRetention + day},
		// The time beyond what is remembered is for clocks that differ.
		{Name: Idempotency, Compact: true, Retention: IdempotencyRetention + 2*time.Hour},
		{Name: UnroutedHeld, Compact: true},
		{Name: Attempts, Retention: rowRetention},
		{Name: DeliveryRows, Retention: rowRetention},
		{Name: EventRows, Retention: rowRetention},
		{Name: InboundRows, Retention: rowRetention},
		{Name: BillingAudit, Retention: rowRetention},
		{Name: Rejections, Retention: rowRetention},
	}
}
