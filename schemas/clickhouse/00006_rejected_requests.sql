-- +goose Up
-- Asked by source and reason over a recent time ("why does Stripe get 400?"). weight is how many refusals a row stands
-- for, so sum(weight) is the count. Expires as events do.
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS rejected_requests
(
    rejected_at    DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    source         LowCardinality(String),
    reason         LowCardinality(String),
    status         UInt16,
    remote_ip      IPv6,
    user_agent     String,
    content_length UInt64,
    weight         UInt32,
    worker         LowCardinality(String),
    src_topic      LowCardinality(String),
    src_part       Int32,
    src_offset     Int64 CODEC(Delta, ZSTD(1)),
    INDEX by_src_offset src_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toMonday(rejected_at)
ORDER BY (source, reason, rejected_at)
TTL toDateTime(rejected_at) + toIntervalHour(2160)
SETTINGS default_compression_codec = 'ZSTD(1)',
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
-- +goose StatementEnd
