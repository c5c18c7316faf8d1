-- How long is it from the edge's 200 to the merchant's 2xx, by hour of acceptance?
--   since, until: when the events were accepted
-- The first two are of deliveries that needed no retry; the rest is of all that arrived.
WITH
    dateDiff('millisecond', accepted_at, assumeNotNull(ended_at)) AS took_ms,
    quantilesTDigest(0.5, 0.95, 0.99)(took_ms) AS ms,
    quantilesTDigestIf(0.5, 0.99)(took_ms, attempt_count = 1) AS first_ms
SELECT
    toStartOfHour(accepted_at) AS hour,
    count() AS delivered,
    round(first_ms[1]) AS first_try_p50_ms,
    round(first_ms[2]) AS first_try_p99_ms,
    round(ms[1]) AS p50_ms,
    round(ms[2]) AS p95_ms,
    round(ms[3]) AS p99_ms,
    max(took_ms) AS max_ms
FROM deliveries FINAL
WHERE accepted_at >= {since:DateTime('UTC')} AND accepted_at < {until:DateTime('UTC')}
  AND status = 'delivered' AND replay_id = '' AND NOT test
GROUP BY hour
ORDER BY hour
