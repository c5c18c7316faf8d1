-- How long do the attempts take, by endpoint?
--   organization; since, until: when the attempts started
-- quantilesTiming is exact to the millisecond up to a second, then to 16 ms; an attempt takes 25 s at most.
WITH quantilesTiming(0.5, 0.95, 0.99)(duration_ms) AS ms
SELECT
    endpoint_id,
    count() AS attempts,
    countIf(startsWith(error_class, 'timeout')) AS timeouts,
    ms[1] AS p50_ms,
    ms[2] AS p95_ms,
    ms[3] AS p99_ms
FROM delivery_attempts
WHERE organization_id = {organization:String}
  AND started_at >= {since:DateTime('UTC')} AND started_at < {until:DateTime('UTC')}
  AND NOT test
GROUP BY endpoint_id
ORDER BY p99_ms DESC, endpoint_id
