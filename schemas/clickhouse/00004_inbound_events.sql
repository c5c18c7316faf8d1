-- +goose Up
-- Sorted by organization and time; an event of the source, or ours, is found by its bloom filter. Expires as events do.
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS inbound_events
(
    source          LowCardinality(String),
    source_event_id String,
    event_id        String,
    organization_id String,
    account         String,
    type            LowCardinality(String),
    outcome         LowCardinality(String),
    reason          LowCardinality(String),
    received_at     DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    src_topic       LowCardinality(String),
    src_part        Int32,
    src_offset      Int64 CODEC(Delta, ZSTD(1)),
    INDEX by_src_offset src_offset TYPE minmax GRANULARITY 1,
    INDEX by_source_event source_event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_event event_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toMonday(received_at)
ORDER BY (organization_id, received_at, event_id)
TTL toDateTime(received_at) + toIntervalHour(2160)
SETTINGS default_compression_codec = 'ZSTD(1)',
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
-- +goose StatementEnd
