// Package settings is every command of the program and every setting it takes. A setting is an environment variable and
// a flag of one name (HTTP_ADDR, --http-addr); the flag wins. A secret can also stand in a file (ADMIN_API_KEY_FILE).
// What is set but empty is refused, so is what does not parse or is missing, in one line that names the setting.
//
// The structs say what each command uses; --help lists exactly that. No other package reads the environment or flags:
// the rooms get plain configuration.
package settings

import (
	"net/netip"
	"time"

	"github.com/betterdata/webhooks/internal/kafka"
)

// CLI is the command line. Tags of ours: `must` names a setting that a service cannot do without, with the reason;
// `run` says what `webhooks run` does when it is unset; `secret` marks one that has a twin with the suffix -file. The
// variables ${host} and ${cidrs} are those of the command, see variables.
type CLI struct {
	Run       Run       `cmd:"" help:"Run the whole system on this machine, in the foreground."`
	Ingest    Ingest    `cmd:"" help:"Run the edge: it takes webhooks and every write, and is the public address."`
	Processor Processor `cmd:"" help:"Run the processor: it applies events, keeps billing and entitlements, and fans out."`
	Deliverer Deliverer `cmd:"" help:"Run the deliverer: it sends to merchants' endpoints, retries and records."`
	Listen    Listen    `cmd:"" help:"Receive webhooks: verify their signatures, print them, answer as told."`
	Send      struct {
		Stripe SendStripe `cmd:"" help:"Sign events as Stripe does and post them."`
	} `cmd:"" help:"Send events as a platform would."`
	DeadLetters struct {
		List   ListDeadLetters   `cmd:"" help:"Print dead letters, one JSON object a line."`
		Replay ReplayDeadLetters `cmd:"" help:"Give dead letters back to the processor, each once."`
	} `cmd:"" help:"Look at inbound events that could not be used, and replay them after a fix."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// Run is `webhooks run`.
type Run struct {
	Process
	HTTP
	Edge
	Keys
	SealKeys
	Stripe
	Kafka
	ClickHouse
	Embedded
	Plans
	Alerting
	Dedupe
	State
	EndpointLimits
	EndpointDefaults
	Guard
	Delivery
}

// Ingest is `webhooks ingest`.
type Ingest struct {
	Process
	HTTP
	Edge
	Upstreams
	Keys
	SealKeys
	Stripe
	Kafka
	EndpointDefaults
	Guard
}

// Processor is `webhooks processor`.
type Processor struct {
	Process
	HTTP
	Keys
	SealKeys
	Kafka
	ClickHouse
	Plans
	Alerting
	Dedupe
	State
	EndpointLimits
	EndpointDefaults
}

// Deliverer is `webhooks deliverer`.
type Deliverer struct {
	Process
	HTTP
	Keys
	SealKeys
	Kafka
	ClickHouse
	EndpointDefaults
	Guard
	Delivery
}

// Process is what every service has.
type Process struct {
	AdminAddr       Addr     `group:"Process" name:"admin-addr" env:"ADMIN_ADDR" default:"${host}:8081" placeholder:"HOST:PORT" help:"Listener of /metrics, /healthz, /readyz and /debug/pprof."`
	DataDir         string   `group:"Process" name:"data-dir" env:"DATA_DIR" default:"./.data" placeholder:"FOLDER" help:"Local state. Its folder state/ is a cache and may be deleted."`
	LogLevel        string   `group:"Process" name:"log-level" env:"LOG_LEVEL" default:"info" enum:"debug,info,warn,error" placeholder:"LEVEL" help:"The least level that is logged: debug, info, warn or error."`
	LogFormat       string   `group:"Process" name:"log-format" env:"LOG_FORMAT" default:"json" enum:"json,text" placeholder:"FORMAT" help:"json or text."`
	ShutdownTimeout Positive `group:"Process" name:"shutdown-timeout" env:"SHUTDOWN_TIMEOUT" default:"30s" placeholder:"DURATION" help:"The longest that a stop may take to drain."`
}

// HTTP is the listener of a service's API.
type HTTP struct {
	HTTPAddr Addr `group:"HTTP" name:"http-addr" env:"HTTP_ADDR" default:"${host}:8080" placeholder:"HOST:PORT" help:"Listener of the API."`
}

// Edge is what only the public address has.
type Edge struct {
	PublicURL    BaseURL `group:"HTTP" name:"public-url" env:"PUBLIC_URL" placeholder:"URL" help:"How clients reach the API, for links. Unset: http:// and HTTP_ADDR."`
	MaxBodyBytes int     `group:"HTTP" name:"max-body-bytes" env:"MAX_BODY_BYTES" default:"1048576" placeholder:"BYTES" help:"The largest webhook body that is taken, up to 4063232."`
}

// Upstreams answer reads when the services run apart.
type Upstreams struct {
	ProcessorURL BaseURL `group:"HTTP" name:"processor-url" env:"PROCESSOR_URL" placeholder:"URL" help:"Where processors answer reads of entitlements, billing, endpoints and connections. Unset: those reads answer 503."`
	DelivererURL BaseURL `group:"HTTP" name:"deliverer-url" env:"DELIVERER_URL" placeholder:"URL" help:"Where deliverers answer reads of deliveries and events. Unset: those reads, and retries, answer 503."`
}

// Keys open the management API.
type Keys struct {
	AdminAPIKey     Secret `group:"Secrets" name:"admin-api-key" env:"ADMIN_API_KEY" secret:"" must:"it opens the management API" run:"Unset: generated into DATA_DIR/dev.env." placeholder:"KEY" help:"Bearer key that may do everything."`
	AdminAPIKeyFile string `group:"Secrets" name:"admin-api-key-file" env:"ADMIN_API_KEY_FILE" placeholder:"FILE" help:"File that holds ADMIN_API_KEY instead."`
}

// SealKeys seal what must not stand in clear text on a topic.
type SealKeys struct {
	SecretsKey     SecretsKey `group:"Secrets" name:"secrets-key" env:"SECRETS_KEY" secret:"" must:"endpoint secrets are sealed with it; make one with: openssl rand -base64 32" run:"Unset: generated into DATA_DIR/dev.env." placeholder:"BASE64" help:"Base64 of 32 bytes that seal endpoint secrets. Several, separated by commas, while rotating: the first seals, all open."`
	SecretsKeyFile string     `group:"Secrets" name:"secrets-key-file" env:"SECRETS_KEY_FILE" placeholder:"FILE" help:"File that holds SECRETS_KEY instead."`
}

// Stripe is what Stripe's webhooks are verified with.
type Stripe struct {
	StripeWebhookSecret     Secrets `group:"Secrets" name:"stripe-webhook-secret" env:"STRIPE_WEBHOOK_SECRET" secret:"" must:"Stripe's events are verified with it; Stripe shows it beside the endpoint, whsec_…" run:"Unset: generated into DATA_DIR/dev.env." placeholder:"SECRET" help:"Signing secret of Stripe's webhooks. Several, separated by commas, while rotating."`
	StripeWebhookSecretFile string  `group:"Secrets" name:"stripe-webhook-secret-file" env:"STRIPE_WEBHOOK_SECRET_FILE" placeholder:"FILE" help:"File that holds STRIPE_WEBHOOK_SECRET instead."`
	StripeLivemode          string  `group:"Sources" name:"stripe-livemode" env:"STRIPE_LIVEMODE" default:"any" enum:"any,live,test" placeholder:"MODE" help:"Events of which mode take effect: any, live or test. The others are answered 200 and ignored."`
}

// Kafka is the cluster.
type Kafka struct {
	KafkaBrokers           Brokers     `group:"Kafka" name:"kafka-brokers" env:"KAFKA_BROKERS" must:"the services meet over Kafka" run:"Unset: an embedded broker." placeholder:"HOST:PORT" help:"Brokers to ask first, separated by commas."`
	KafkaTopicPrefix       TopicPrefix `group:"Kafka" name:"kafka-topic-prefix" env:"KAFKA_TOPIC_PREFIX" placeholder:"PREFIX" help:"Stands before every topic, group and transactional id. Unset: nothing."`
	KafkaPartitions        *int32      `group:"Kafka" name:"kafka-partitions" env:"KAFKA_PARTITIONS" placeholder:"COUNT" help:"Partitions of each topic, permanent once they exist. Unset: 64, embedded 8."`
	KafkaReplicationFactor *int16      `group:"Kafka" name:"kafka-replication-factor" env:"KAFKA_REPLICATION_FACTOR" placeholder:"COUNT" help:"Replicas of topics when they are created; 1 also says that there is one broker. Unset: 3, embedded 1."`
}

// ClickHouse is the record.
type ClickHouse struct {
	ClickHouseURL           ClickHouseURL `group:"ClickHouse" name:"clickhouse-url" env:"CLICKHOUSE_URL" secret:"" must:"deliveries and events are recorded there" run:"Unset: an embedded server." placeholder:"URL" help:"clickhouse://host:9000/DB or http(s)://host:8123/DB."`
	ClickHouseURLFile       string        `group:"ClickHouse" name:"clickhouse-url-file" env:"CLICKHOUSE_URL_FILE" placeholder:"FILE" help:"File that holds CLICKHOUSE_URL instead."`
	ClickHouseFlushInterval Positive      `group:"ClickHouse" name:"clickhouse-flush-interval" env:"CLICKHOUSE_FLUSH_INTERVAL" default:"1s" placeholder:"DURATION" help:"The longest that a row waits to be inserted with others."`
	Retention               Positive      `group:"ClickHouse" name:"retention" env:"RETENTION" default:"2160h" placeholder:"DURATION" help:"How long attempts and events are kept."`
}

// Embedded are the listeners of what `webhooks run` embeds.
type Embedded struct {
	EmbeddedKafkaAddr          Addr `group:"Embedded" name:"embedded-kafka-addr" env:"EMBEDDED_KAFKA_ADDR" default:"127.0.0.1:9092" placeholder:"HOST:PORT" help:"Listener of the embedded Kafka."`
	EmbeddedClickHouseAddr     Addr `group:"Embedded" name:"embedded-clickhouse-addr" env:"EMBEDDED_CLICKHOUSE_ADDR" default:"127.0.0.1:9000" placeholder:"HOST:PORT" help:"Listener of the embedded ClickHouse's native protocol."`
	EmbeddedClickHouseHTTPAddr Addr `group:"Embedded" name:"embedded-clickhouse-http-addr" env:"EMBEDDED_CLICKHOUSE_HTTP_ADDR" default:"127.0.0.1:8123" placeholder:"HOST:PORT" help:"Listener of the embedded ClickHouse's HTTP protocol."`
}

// Plans is what organizations may do.
type Plans struct {
	PlansFile string `group:"Billing" name:"plans-file" env:"PLANS_FILE" placeholder:"FILE" help:"Plans and their capabilities, YAML. Unset: the built-in plans."`
}

// Alerting is who is told of failed payments.
type Alerting struct {
	AlertmanagerURL     AlertmanagerURLs `group:"Billing" name:"alertmanager-url" env:"ALERTMANAGER_URL" secret:"" placeholder:"URL" help:"Alertmanagers that are told of failed payments, as http(s)://host:9093, user and password too; all of a cluster, separated by commas. Unset: none."`
	AlertmanagerURLFile string           `group:"Billing" name:"alertmanager-url-file" env:"ALERTMANAGER_URL_FILE" placeholder:"FILE" help:"File that holds ALERTMANAGER_URL instead."`
	AlertInterval       Positive         `group:"Billing" name:"alert-interval" env:"ALERT_INTERVAL" default:"1m" placeholder:"DURATION" help:"How often an open alert is sent again. An alert that is not, for ten intervals, ends."`
}

// Dedupe is how long a source event is remembered.
type Dedupe struct {
	DedupeRetention Retention `group:"Sources" name:"dedupe-retention" env:"DEDUPE_RETENTION" default:"192h; stripe=768h" placeholder:"DURATION" help:"How long a source's event is remembered, so that a repeat has no effect, up to 768h; by source with SOURCE=DURATION."`
}

// State is how the processor works on state and answers from it.
type State struct {
	ProcessorSessions  *int32 `group:"Process" name:"processor-sessions" env:"PROCESSOR_SESSIONS" placeholder:"COUNT" help:"Transactions that each group of tasks has open side by side. Unset: as many as there are CPUs, up to 4."`
	EntitlementsMaxAge Bound  `group:"Billing" name:"entitlements-max-age" env:"ENTITLEMENTS_MAX_AGE" default:"1h" placeholder:"DURATION" help:"How far behind entitlements may be that are answered while Kafka cannot be reached; beyond it 503. 0: however far. The header Age says how far."`
}

// EndpointLimits bound what an organization may have.
type EndpointLimits struct {
	EndpointsPerOrg int `group:"Endpoints" name:"endpoints-per-org" env:"ENDPOINTS_PER_ORG" default:"5000" placeholder:"COUNT" help:"The most endpoints of an organization."`
}

// EndpointDefaults hold for endpoints that do not say otherwise.
type EndpointDefaults struct {
	DeliveryTimeout     Positive `group:"Endpoints" name:"delivery-timeout" env:"DELIVERY_TIMEOUT" default:"15s" placeholder:"DURATION" help:"The longest that an attempt may take, 1s to 25s, where an endpoint sets none."`
	EndpointConcurrency uint32   `group:"Endpoints" name:"endpoint-concurrency" env:"ENDPOINT_CONCURRENCY" default:"16" placeholder:"COUNT" help:"Requests open to an endpoint at a time, where it sets none."`
	EndpointRateLimit   Rate     `group:"Endpoints" name:"endpoint-rate-limit" env:"ENDPOINT_RATE_LIMIT" default:"0" placeholder:"PER-SECOND" help:"Requests a second to an endpoint, where it sets none. 0: no limit."`
}

// Guard says which addresses may be dialled.
type Guard struct {
	DeliveryAllowCIDRs []netip.Prefix `group:"Delivery" name:"delivery-allow-cidrs" env:"DELIVERY_ALLOW_CIDRS" default:"${cidrs}" placeholder:"CIDR" help:"Private networks that may be dialled, also by http and on any port, separated by commas; never our own listeners."`
	DeliveryAllowHTTP  bool           `group:"Delivery" name:"delivery-allow-http" env:"DELIVERY_ALLOW_HTTP" help:"Take http:// URLs elsewhere too. Unset: https only."`
	DeliveryAllowPorts []uint16       `group:"Delivery" name:"delivery-allow-ports" env:"DELIVERY_ALLOW_PORTS" default:"443,8443,80" placeholder:"PORT" help:"Ports that may be dialled elsewhere, separated by commas."`
}

// Delivery is when attempts are made.
type Delivery struct {
	RetrySchedule        Schedule `group:"Delivery" name:"retry-schedule" env:"RETRY_SCHEDULE" default:"5s,5m,30m,2h,5h,10h,14h,20h,24h" placeholder:"DURATIONS" help:"Delays between attempts, separated by commas; one more attempt than delays."`
	RetryJitter          Fraction `group:"Delivery" name:"retry-jitter" env:"RETRY_JITTER" default:"0.2" placeholder:"FRACTION" help:"A delay grows by a random part of it, up to this, 0 to 1."`
	EndpointDisableAfter Bound    `group:"Endpoints" name:"endpoint-disable-after" env:"ENDPOINT_DISABLE_AFTER" default:"120h" placeholder:"DURATION" help:"How long an endpoint may do nothing but fail before it is disabled. 0: for ever."`
}

// Listen is `webhooks listen`.
type Listen struct {
	Addr      Addr     `name:"addr" default:"127.0.0.1:8090" placeholder:"HOST:PORT" help:"Where to receive."`
	Secret    Secrets  `name:"secret" placeholder:"SECRET" help:"Secrets (whsec_…) or public keys (whpk_…) to verify with, separated by commas. Unset: an endpoint is created for ORG on the running system and removed at the end."`
	Org       string   `name:"org" default:"acme" placeholder:"ORG" help:"Organization to create the endpoint for."`
	Types     []string `name:"types" default:"*" placeholder:"PATTERN" help:"Event types to subscribe the created endpoint to, separated by commas."`
	Answer    string   `name:"answer" default:"200" enum:"200,410,429,500,stall" placeholder:"ANSWER" help:"How to answer: 200, 410, 429, 500 or stall (never)."`
	ForwardTo string   `name:"forward-to" placeholder:"URL" help:"Pass each delivery on to this URL and answer as it does."`
	API       BaseURL  `name:"api" placeholder:"URL" help:"The running system. Unset: read from DATA_DIR/addresses.json."`
	Key       Secret   `name:"admin-api-key" env:"ADMIN_API_KEY" placeholder:"KEY" help:"Key of its management API. Unset: read from DATA_DIR/dev.env."`
	DataDir   string   `name:"data-dir" env:"DATA_DIR" default:"./.data" placeholder:"FOLDER" help:"DATA_DIR of the running system: its address and its key."`
	Tolerance Positive `name:"tolerance" default:"300s" placeholder:"DURATION" help:"How far a timestamp may be off."`
}

// SendStripe is `webhooks send stripe`.
type SendStripe struct {
	Files   []string `arg:"" name:"file" help:"Events, or bare objects (data.object), as JSON files; or names of built-in samples such as subscription.created."`
	URL     string   `name:"url" placeholder:"URL" help:"Where to post. Unset: /webhooks/stripe of the running system."`
	Secret  Secrets  `name:"secret" env:"STRIPE_WEBHOOK_SECRET" placeholder:"SECRET" help:"Signing secret. Unset: that of the running system."`
	Org     string   `name:"org" placeholder:"ORG" help:"Sets metadata.organizationId of the object."`
	NewIDs  bool     `name:"new-ids" help:"Give each event a new id and the present time."`
	Type    string   `name:"type" placeholder:"TYPE" help:"Event type of bare objects. Unset: the file's name says it."`
	DataDir string   `name:"data-dir" env:"DATA_DIR" default:"./.data" placeholder:"FOLDER" help:"DATA_DIR of the running system: its address and its secret."`
}

// ListDeadLetters is `webhooks dead-letters list`.
type ListDeadLetters struct {
	DeadLetters
	Body bool `name:"body" help:"Print bodies too: as text, or in base64 where they are none."`
}

// ReplayDeadLetters is `webhooks dead-letters replay`.
type ReplayDeadLetters struct {
	DeadLetters
	Again  bool `name:"again" help:"Replay those too that were replayed before, but for letters of the topic events."`
	DryRun bool `name:"dry-run" help:"Only print what would be replayed."`
}

// DeadLetters is where dead letters are, and which are meant.
type DeadLetters struct {
	KafkaBrokers     Brokers     `group:"Kafka" name:"kafka-brokers" env:"KAFKA_BROKERS" placeholder:"HOST:PORT" help:"Brokers to ask first, separated by commas. Unset: the one of DATA_DIR/addresses.json."`
	KafkaTopicPrefix TopicPrefix `group:"Kafka" name:"kafka-topic-prefix" env:"KAFKA_TOPIC_PREFIX" placeholder:"PREFIX" help:"Stands before every topic. Unset: nothing."`
	DataDir          string      `name:"data-dir" env:"DATA_DIR" default:"./.data" placeholder:"FOLDER" help:"DATA_DIR of the system that runs on this machine."`
	Reason           []string    `name:"reason" placeholder:"REASON" help:"Only those with one of these reasons, separated by commas."`
	Source           []string    `name:"source" placeholder:"SOURCE" help:"Only those from one of these sources."`
	Org              []string    `name:"org" placeholder:"ORG" help:"Only those of one of these organizations."`
	Type             []string    `name:"type" placeholder:"TYPE" help:"Only those of one of these types."`
	EventID          []string    `name:"event-id" placeholder:"ID" help:"Only those with one of these ids, ours or the source's."`
	Since            Moment      `name:"since" placeholder:"TIME" help:"Only those buried at that time or later: 2026-01-31T12:00:00Z, or 24h for that long ago."`
	Until            Moment      `name:"until" placeholder:"TIME" help:"Only those buried before that time."`
}

// Bounds of DELIVERY_TIMEOUT, as of an endpoint's timeoutMs.
const (
	minTimeout = time.Second
	maxTimeout = 25 * time.Second
)

// Defaults of KAFKA_PARTITIONS and KAFKA_REPLICATION_FACTOR: a cluster's, and the embedded broker's.
const (
	clusterPartitions, clusterReplicas   = 64, 3
	embeddedPartitions, embeddedReplicas = 8, 1
)

// Config is the cluster's configuration; embedded names the embedded broker's address where no brokers are set.
func (k Kafka) Config(embedded string) kafka.Config {
	cfg := kafka.Config{
		Brokers: k.KafkaBrokers, TopicPrefix: string(k.KafkaTopicPrefix),
	}
	partitions, replicas := int32(clusterPartitions), int16(clusterReplicas)
	if len(cfg.Brokers) == 0 {
		cfg.Brokers = []string{embedded}
		partitions, replicas = embeddedPartitions, embeddedReplicas
	}
	if k.KafkaPartitions != nil {
		partitions = *k.KafkaPartitions
	}
	if k.KafkaReplicationFactor != nil {
		replicas = *k.KafkaReplicationFactor
	}
	cfg.Partitions, cfg.ReplicationFactor = partitions, replicas
	return cfg
}
