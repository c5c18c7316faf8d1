-- Which events of a merchant did no endpoint get?
--   organization; since, until: when the events were accepted
-- Either no endpoint subscribes to them, or only disabled ones do.
SELECT
    type,
    source,
    count() AS events,
    countIf(event_id IN (
        SELECT event_id
        FROM deliveries FINAL
        WHERE organization_id = {organization:String}
          AND accepted_at >= {since:DateTime('UTC')} AND accepted_at < {until:DateTime('UTC')}
          AND status = 'unmatched' AND endpoint_id != '')) AS only_disabled,
    max(accepted_at) AS last_at,
    argMax(event_id, accepted_at) AS last_event_id
FROM events
WHERE organization_id = {organization:String}
  AND accepted_at >= {since:DateTime('UTC')} AND accepted_at < {until:DateTime('UTC')}
  AND matched = 0
GROUP BY type, source
ORDER BY events DESC, type, source
