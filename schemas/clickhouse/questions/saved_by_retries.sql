-- Of the deliveries whose first attempt failed, how many arrived in the end, by day of acceptance?
--   since, until: when the events were accepted
SELECT
    toDate(accepted_at) AS day,
    count() AS deliveries,
    countIf(attempt_count > 1) AS retried,
    countIf(attempt_count > 1 AND status = 'delivered') AS retried_and_delivered,
    round(retried_and_delivered / deliveries, 4) AS share_of_deliveries,
    round(retried_and_delivered / nullIf(retried, 0), 4) AS share_of_retried
FROM deliveries FINAL
WHERE accepted_at >= {since:DateTime('UTC')} AND accepted_at < {until:DateTime('UTC')}
  AND status != 'unmatched' AND replay_id = '' AND NOT test
GROUP BY day
ORDER BY day
