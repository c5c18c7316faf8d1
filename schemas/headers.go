package schemas

// Headers of `inbound*` and `events` records: the CloudEvents Kafka binding, binary mode, plus extension attributes.
// An inbound webhook's value is the raw body that was verified, byte for byte; an event's value is its data as JSON.
const (
	HeaderSpecVersion = "ce_specversion" // "1.0"
	HeaderID          = "ce_id"          // inbound: the source's event id; events: evt_…; commands: the command id
	HeaderSource      = "ce_source"      // inbound: the source's name; events: a source URI-reference
	HeaderType        = "ce_type"        // the source's or the public event type; TypeCommand for commands
	HeaderTime        = "ce_time"        // RFC 3339, when it occurred
	HeaderSubject     = "ce_subject"
	HeaderContentType = "content-type"

	// Extensions.
	HeaderEventID           = "ce_eventid"           // inbound: our evt_… of the source event
	HeaderAccount           = "ce_account"           // inbound: the source's account (cus_…), may be empty
	HeaderOrganization      = "ce_organization"      // the org, where it is known
	HeaderNamedOrganization = "ce_namedorganization" // inbound: the org that the event itself names, in its metadata for instance
	HeaderIgnored           = "ce_ignored"           // inbound: why the event must not take effect, "livemode"
	HeaderAcceptedAt        = "ce_acceptedat"        // RFC 3339 with milliseconds: when the edge took it
	HeaderCorrelationID     = "ce_correlationid"     // events
	HeaderCausationID       = "ce_causationid"       // events: our id of the cause
	HeaderCauseSource       = "ce_causesource"       // events: the source of the cause
	HeaderCauseEventID      = "ce_causeeventid"      // events: its id there
	HeaderEndpointSet       = "ce_endpointset"       // events made in the org's partition: version of its endpoint set, decimal
	HeaderRetained          = "ce_retained"          // inbound: "held" when the router handed it on
	ContentTypeJSON         = "application/json"
	ContentTypeProtobuf     = "application/x-protobuf"
	SpecVersion             = "1.0"
	TypeCommand             = "command"
	TypeDeadLetter          = "dead-letter" // inbound, from SourceManagement: a letter of the router's, on its way to inbound.dead
	SourceManagement        = "management"
	SourceStripe            = "stripe"
)
