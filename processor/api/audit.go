package api

import (
	"context"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// auditTimeout bounds a query of the audit log.
const auditTimeout = 10 * time.Second

// auditEntry is one entry of an organization's billing audit log.
type auditEntry struct {
	ID              string  `json:"id"`
	OrganizationID  string  `json:"organizationId"`
	Action          string  `json:"action"`
	SourceEventID   string  `json:"sourceEventId"`
	CustomerID      *string `json:"customerId"`
	SubscriptionID  *string `json:"subscriptionId"`
	InvoiceID       *string `json:"invoiceId"`
	Amount          *int64  `json:"amount"`
	Currency        *string `json:"currency"`
	PlanBefore      string  `json:"planBefore"`
	PlanAfter       string  `json:"planAfter"`
	SnapshotVersion uint64  `json:"snapshotVersion"`
	Livemode        bool    `json:"livemode"`
	OccurredAt      string  `json:"occurredAt"`
	RecordedAt      string  `json:"recordedAt"`

	recordedMS int64
}

const auditColumns = `entry_id, organization_id, action, source_event_id, customer_id, subscription_id, invoice_id, amount,
	currency, plan_before, plan_after, snapshot_version, livemode, occurred_at, recorded_at`

// billingAudit lists the entries by when they were recorded, newest first.
func (r *Reads) billingAudit(ctx *fasthttp.RequestCtx, _ httpapi.Principal) error {
	params, err := httpapi.ParseList(ctx, []string{"action", "since", "until"})
	if err != nil {
		return err
	}
	query, args := auditQuery(httpapi.Org(ctx), params)
	entries, err := r.queryAudit(ctx, query, args)
	if err != nil {
		r.log.Warn("query of the billing audit log failed", "org", httpapi.Org(ctx), "request_id", httpapi.RequestID(ctx), "error", err)
		return httpapi.Unavailable("clickhouse_unavailable", "The audit log cannot be read at the moment; try again.")
	}
	var next *string
	if len(entries) > params.Limit {
		entries = entries[:params.Limit]
		last := entries[len(entries)-1]
		next = httpapi.NextCursor(params, position{last.recordedMS, last.ID}.cursor())
	}
	httpapi.WriteJSON(ctx, http.StatusOK, httpapi.NewPage(entries, next))
	return nil
}

// auditQuery asks for one entry more than the page, which tells whether there is a next one.
func auditQuery(org string, params httpapi.ListParams) (query string, args []any) {
	query = "SELECT " + auditColumns + " FROM billing_audit WHERE organization_id = ?"
	args = append(args, org)
	add := func(condition string, values ...any) {
		query += " AND " + condition
		args = append(args, values...)
	}
	if actions := params.Filters["action"]; len(actions) > 0 {
		add("action IN (?)", actions)
	}
	if !params.Since.IsZero() {
		add("recorded_at >= fromUnixTimestamp64Milli(?, 'UTC')", params.Since.UnixMilli())
	}
	if !params.Until.IsZero() {
		add("recorded_at < fromUnixTimestamp64Milli(?, 'UTC')", params.Until.UnixMilli())
	}
	if params.Cursor != nil {
		after := parsePosition(params.Cursor)
		add("(recorded_at, entry_id) < (fromUnixTimestamp64Milli(?, 'UTC'), ?)", after.createdMS, after.id)
	}
	query += " ORDER BY recorded_at DESC, entry_id DESC LIMIT ?"
	return query, append(args, params.Limit+1)
}

func (r *Reads) queryAudit(ctx context.Context, query string, args []any) (entries []auditEntry, err error) {
	bounded, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	rows, err := r.audit.Query(bounded, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			e                                         auditEntry
			customer, subscription, invoice, currency string
			livemode                                  uint8
			occurred, recorded                        time.Time
		)
		if err := rows.Scan(&e.ID, &e.OrganizationID, &e.Action, &e.SourceEventID, &customer, &subscription, &invoice, &e.Amount,
			&currency, &e.PlanBefore, &e.PlanAfter, &e.SnapshotVersion, &livemode, &occurred, &recorded); err != nil {
			return nil, err
		}
		e.CustomerID, e.SubscriptionID, e.InvoiceID, e.Currency = orNull(customer), orNull(subscription), orNull(invoice), orNull(currency)
		e.Livemode = livemode != 0
		e.OccurredAt, e.RecordedAt, e.recordedMS = httpapi.FormatTime(occurred), httpapi.FormatTime(recorded), recorded.UnixMilli()
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// orNull is null for what a row says is none.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
