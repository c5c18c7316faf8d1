-- Which requests may have reached a merchant twice?
--   since, until: when the attempts started
-- A process died, or a connection broke, before anybody could know whether the request had gone out.
SELECT started_at, organization_id, endpoint_id, event_id, delivery_id, number, outcome, worker
FROM delivery_attempts
WHERE started_at >= {since:DateTime('UTC')} AND started_at < {until:DateTime('UTC')}
  AND maybe_repeated
ORDER BY started_at DESC, attempt_id
LIMIT 1000
