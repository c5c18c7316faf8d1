-- Which share of the attempts succeeded, by endpoint and hour?
--   organization; since, until: when the attempts started
SELECT
    endpoint_id,
    toStartOfHour(started_at) AS hour,
    count() AS attempts,
    round(avg(outcome = 'success'), 4) AS success_rate
FROM delivery_attempts
WHERE organization_id = {organization:String}
  AND started_at >= {since:DateTime('UTC')} AND started_at < {until:DateTime('UTC')}
  AND NOT test
GROUP BY endpoint_id, hour
ORDER BY endpoint_id, hour
