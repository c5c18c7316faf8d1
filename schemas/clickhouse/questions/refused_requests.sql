-- Which requests to us are refused, and why?
--   since, until: when they came
-- Under attack one row stands for many: weight is how many.
SELECT
    source,
    reason,
    any(status) AS status,
    sum(weight) AS requests,
    uniq(remote_ip) AS addresses,
    min(rejected_at) AS first_at,
    max(rejected_at) AS last_at
FROM rejected_requests
WHERE rejected_at >= {since:DateTime('UTC')} AND rejected_at < {until:DateTime('UTC')}
GROUP BY source, reason
ORDER BY requests DESC, source, reason
