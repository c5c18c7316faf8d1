-- +goose Up
-- The newest version of a delivery holds. Partition and sort key are made of what never changes in a delivery, or its
-- versions would not replace each other: accepted_at is the event's. Rows repeat freely, so there is no src_offset.
-- created_at differs from accepted_at in replays; lists are in its order.
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS deliveries
(
    delivery_id     String CODEC(ZSTD(1)),
    organization_id String CODEC(ZSTD(1)),
    endpoint_id     String CODEC(ZSTD(1)),
    event_id        String CODEC(ZSTD(1)),
    event_type      LowCardinality(String),
    status          LowCardinality(String),
    reason          LowCardinality(String),
    accepted_at     DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    next_attempt_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    ended_at        Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    attempt_count   UInt16,
    replay_id       String CODEC(ZSTD(1)),
    test            UInt8,
    version         UInt64,
    created_at      DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    INDEX by_created created_at TYPE minmax GRANULARITY 1,
    INDEX by_delivery delivery_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_event event_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toMonday(accepted_at)
ORDER BY (organization_id, accepted_at, delivery_id)
TTL toDateTime(accepted_at) + toIntervalHour(2160)
SETTINGS non_replicated_deduplication_window = 100000, fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
-- +goose StatementEnd

-- The unit is (event, endpoint) in the minute of acceptance. Read from the deliveries themselves: no sum is kept that a
-- repeated insert could double. Replays and tests are not in it.
-- +goose StatementBegin
CREATE VIEW IF NOT EXISTS ledger AS
SELECT
    organization_id,
    toDateTime(toUnixTimestamp(toStartOfMinute(accepted_at))) AS minute,
    count() AS accepted,
    countIf(status = 'delivered') AS delivered,
    countIf(status = 'waiting') AS waiting,
    countIf(status = 'dead') AS dead,
    countIf(status = 'unmatched') AS unmatched
FROM deliveries FINAL
WHERE replay_id = '' AND test = 0
GROUP BY organization_id, minute;
-- +goose StatementEnd
