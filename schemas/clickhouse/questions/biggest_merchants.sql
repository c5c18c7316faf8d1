-- Who are the biggest merchants, by requests and by bytes?
--   since, until: when the attempts started
SELECT
    organization_id,
    uniq(event_id) AS events,
    uniq(endpoint_id) AS endpoints,
    count() AS attempts,
    sum(request_bytes) AS bytes_sent,
    sum(response_bytes) AS bytes_received
FROM delivery_attempts
WHERE started_at >= {since:DateTime('UTC')} AND started_at < {until:DateTime('UTC')}
  AND NOT test
GROUP BY organization_id
ORDER BY attempts DESC, organization_id
LIMIT 20
