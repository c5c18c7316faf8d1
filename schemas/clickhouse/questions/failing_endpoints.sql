-- Which endpoints fail, and why?
--   since, until: when the attempts started
SELECT
    organization_id,
    endpoint_id,
    count() AS attempts,
    countIf(outcome = 'failure') AS failures,
    sumMapIf(map(error_class, toUInt64(1)), outcome = 'failure') AS why,
    maxOrNullIf(started_at, outcome = 'success') AS last_success_at,
    argMaxIf(response_excerpt, started_at, outcome = 'failure') AS last_answer
FROM delivery_attempts
WHERE started_at >= {since:DateTime('UTC')} AND started_at < {until:DateTime('UTC')}
  AND NOT test
GROUP BY organization_id, endpoint_id
HAVING failures > 0
ORDER BY failures DESC, endpoint_id
LIMIT 50
