-- Who changes from which plan to which, by day?
--   since, until: when it happened at Stripe
SELECT
    toDate(occurred_at) AS day,
    livemode,
    plan_before,
    plan_after,
    count() AS changes,
    uniq(organization_id) AS organizations
FROM billing_audit
WHERE occurred_at >= {since:DateTime('UTC')} AND occurred_at < {until:DateTime('UTC')}
  AND plan_before != plan_after
GROUP BY day, livemode, plan_before, plan_after
ORDER BY day, livemode, changes DESC, plan_before, plan_after
