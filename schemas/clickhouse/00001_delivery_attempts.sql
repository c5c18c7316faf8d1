-- +goose Up
-- Sorted by organization and time: that is how merchants' support and analysts ask. One delivery's attempts, and one
-- event's, are found by the bloom filters. Weekly partitions: few enough to keep inserts whole, small enough that
-- whole parts expire (ttl_only_drop_parts), so that no merge ever rewrites a part to drop rows.
-- Ids and excerpts barely repeat (ZSTD), times grow within the sort order (Delta).
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS delivery_attempts
(
    attempt_id       String CODEC(ZSTD(1)),
    delivery_id      String CODEC(ZSTD(1)),
    event_id         String CODEC(ZSTD(1)),
    endpoint_id      String CODEC(ZSTD(1)),
    organization_id  String CODEC(ZSTD(1)),
    event_type       LowCardinality(String),
    number           UInt16,
    trigger          LowCardinality(String),
    started_at       DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    duration_ms      UInt32,
    queue_ms         UInt32,
    dns_ms           UInt32,
    connect_ms       UInt32,
    tls_ms           UInt32,
    first_byte_ms    UInt32,
    body_ms          UInt32,
    outcome          LowCardinality(String),
    status_code      UInt16,
    error_class      LowCardinality(String),
    response_excerpt String CODEC(ZSTD(1)),
    response_bytes   UInt32,
    request_bytes    UInt32,
    next_attempt_at  Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    delivery_status  LowCardinality(String),
    replay_id        String CODEC(ZSTD(1)),
    test             UInt8,
    maybe_repeated   UInt8,
    worker           LowCardinality(String),
    src_topic        LowCardinality(String),
    src_part         Int32 CODEC(ZSTD(1)),
    src_offset       Int64 CODEC(Delta, ZSTD(1)),
    INDEX by_src_offset src_offset TYPE minmax GRANULARITY 1,
    INDEX by_delivery delivery_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_event event_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toMonday(started_at)
ORDER BY (organization_id, started_at, attempt_id)
TTL toDateTime(started_at) + toIntervalHour(2160)
SETTINGS non_replicated_deduplication_window = 100000, fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
-- +goose StatementEnd
