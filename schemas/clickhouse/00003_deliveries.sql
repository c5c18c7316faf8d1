-- +goose Up
-- The newest version of a delivery holds. Partition and sort key are made of what never changes in a delivery, or its
-- versions would not replace each other: accepted_at is the event's. Rows repeat freely, so there is no src_offset.
-- created_at differs from accepted_at in replays; lists are in its order.
--
-- Measured by bench/record on 4.8 million deliveries, as delivery_attempts: a row takes 43 B, unfurnished 87. A page of
-- an organization's deliveries takes 60 ms of CPU (unfurnished 350), one by its id 6 (310), a day of its ledger 12 (11), a
-- month 63 (160). Everybody's week takes 550 to 650 ms, what waits of everybody 320; sorted by time 50 to 130, and 90,
-- because parts that follow one another leave FINAL nothing to merge. Merchants ask more often, so they come first. An
-- index on status would not help what waits: FINAL has to read the newer versions too. Merging old weeks whole
-- (min_age_to_force_merge_seconds) would save a fifth to a half of everybody's week, and rewrite a week whenever a late
-- retry or a replay touches it.
-- +goose StatementBegin
CREATE TABLE IF NOT EXISTS deliveries
(
    delivery_id     String,
    organization_id String,
    endpoint_id     String,
    event_id        String,
    event_type      LowCardinality(String),
    status          LowCardinality(String),
    reason          LowCardinality(String),
    accepted_at     DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    next_attempt_at Nullable(DateTime64(3, 'UTC')),
    ended_at        Nullable(DateTime64(3, 'UTC')),
    attempt_count   UInt16,
    replay_id       String,
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
SETTINGS default_compression_codec = 'ZSTD(1)',
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1;
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
