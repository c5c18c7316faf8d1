-- What happened to one delivery?
--   delivery: its dlv_ id
SELECT
    number, trigger, started_at, duration_ms, outcome, status_code, error_class, maybe_repeated, delivery_status,
    next_attempt_at, response_excerpt
FROM delivery_attempts
WHERE delivery_id = {delivery:String}
ORDER BY number
