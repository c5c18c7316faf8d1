-- +goose Up
-- Roll-ups of attempts by the minute they started in: of all, and of each endpoint. They are computed when they are read,
-- so that a repeated insert cannot double them and rows that come late are in them. Conditions on organization and minute
-- reach the sort key and the partitions.
--
-- Nothing is kept, because little would be saved: of 8.6 million attempts in 30 days, of 1,000 organizations with 2,500
-- endpoints, 6.4 million differ in endpoint, minute and outcome. A refreshable view sums all of it up each time; a
-- projection made the table 21 % larger and inserts twice as slow. A day of one organization takes 10 ms of CPU, a week
-- of everybody 600 (bench/record).
--
-- durations merges over any span: quantilesTimingMerge(0.5, 0.95, 0.99)(durations). It is exact to the millisecond up to
-- a second, then to 16 ms; an attempt takes 25 s at most. Tests are not in it.
-- +goose StatementBegin
CREATE VIEW IF NOT EXISTS attempts_per_minute AS
SELECT
    toDateTime(toUnixTimestamp(toStartOfMinute(started_at))) AS minute,
    outcome,
    error_class,
    count() AS attempts,
    countIf(maybe_repeated) AS maybe_repeated_attempts,
    quantilesTimingState(0.5, 0.95, 0.99)(duration_ms) AS durations
FROM delivery_attempts
WHERE test = 0
GROUP BY minute, outcome, error_class;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE VIEW IF NOT EXISTS endpoint_attempts_per_minute AS
SELECT
    organization_id,
    endpoint_id,
    toDateTime(toUnixTimestamp(toStartOfMinute(started_at))) AS minute,
    outcome,
    error_class,
    count() AS attempts,
    countIf(maybe_repeated) AS maybe_repeated_attempts,
    quantilesTimingState(0.5, 0.95, 0.99)(duration_ms) AS durations
FROM delivery_attempts
WHERE test = 0
GROUP BY organization_id, endpoint_id, minute, outcome, error_class;
-- +goose StatementEnd
