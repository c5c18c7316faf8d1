-- +goose Up
-- An audit log: a few rows a subscription and month, kept for ever, listed by organization, newest first. Monthly
-- partitions keep their number low over the years.
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS billing_audit
(
    entry_id         String,
    organization_id  String,
    action           LowCardinality(String),
    source_event_id  String,
    customer_id      String,
    subscription_id  String,
    invoice_id       String,
    amount           Nullable(Int64),
    currency         LowCardinality(String),
    plan_before      LowCardinality(String),
    plan_after       LowCardinality(String),
    snapshot_version UInt64,
    livemode         UInt8,
    occurred_at      DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    recorded_at      DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    src_topic        LowCardinality(String),
    src_part         Int32,
    src_offset       Int64 CODEC(Delta, ZSTD(1)),
    INDEX by_src_offset src_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (organization_id, recorded_at, entry_id)
SETTINGS default_compression_codec = 'ZSTD(1)',
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1, fsync_part_directory = 1;
-- +goose StatementEnd
