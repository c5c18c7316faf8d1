-- Which endpoints keep deliveries waiting, and since when?
-- The bound, on versions that hold or not, is below every delivery that waits; it spares FINAL the weeks before it.
SELECT
    organization_id,
    endpoint_id,
    count() AS waiting,
    min(created_at) AS oldest_at,
    max(attempt_count) AS most_attempts,
    min(next_attempt_at) AS next_attempt_at
FROM deliveries FINAL
WHERE status = 'waiting'
  AND accepted_at >= (SELECT min(accepted_at) FROM deliveries WHERE status = 'waiting')
GROUP BY organization_id, endpoint_id
ORDER BY oldest_at, endpoint_id
LIMIT 50
