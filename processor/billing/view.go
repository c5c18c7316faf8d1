package billing

import (
	"time"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// RecordView is a billing record as the API shows it.
type RecordView struct {
	OrganizationID string             `json:"organizationId"`
	Status         *string            `json:"status"`
	Plan           string             `json:"plan"`
	CustomerIDs    []string           `json:"customerIds"`
	Subscriptions  []SubscriptionView `json:"subscriptions"`
	LastPayment    *PaymentView       `json:"lastPayment"`
	LastFailure    *FailureView       `json:"lastFailure"`
	CreatedAt      *string            `json:"createdAt"`
	UpdatedAt      *string            `json:"updatedAt"`
}

// SubscriptionView is one subscription of a record.
type SubscriptionView struct {
	ID                 string     `json:"id"`
	CustomerID         string     `json:"customerId"`
	Status             string     `json:"status"`
	Items              []ItemView `json:"items"`
	CurrentPeriodStart *string    `json:"currentPeriodStart"`
	CurrentPeriodEnd   *string    `json:"currentPeriodEnd"`
	CancelAt           *string    `json:"cancelAt"`
	CanceledAt         *string    `json:"canceledAt"`
	EndedAt            *string    `json:"endedAt"`
	TrialEnd           *string    `json:"trialEnd"`
	Livemode           bool       `json:"livemode"`
}

// ItemView is one item of a subscription.
type ItemView struct {
	ID        *string `json:"id"`
	PriceID   *string `json:"priceId"`
	ProductID *string `json:"productId"`
	LookupKey *string `json:"lookupKey"`
	Quantity  *int64  `json:"quantity"`
}

// PaymentView is the last payment, in minor units of the currency.
type PaymentView struct {
	InvoiceID string  `json:"invoiceId"`
	Amount    *int64  `json:"amount"`
	Currency  *string `json:"currency"`
	At        *string `json:"at"`
}

// FailureView is the last payment that failed. NextAttemptAt is null when Stripe will not try again.
type FailureView struct {
	PaymentView
	AttemptCount  uint32  `json:"attemptCount"`
	NextAttemptAt *string `json:"nextAttemptAt"`
}

// ViewRecord shows a billing record.
func ViewRecord(r *webhooksv1.BillingRecord) RecordView {
	v := RecordView{
		OrganizationID: r.OrganizationId,
		Status:         text(r.Status),
		Plan:           r.Plan,
		CustomerIDs:    list(r.CustomerIds),
		Subscriptions:  make([]SubscriptionView, 0, len(r.Subscriptions)),
		CreatedAt:      timeOf(r.CreatedUnixMs),
		UpdatedAt:      timeOf(r.UpdatedUnixMs),
	}
	for s := range own(r) {
		v.Subscriptions = append(v.Subscriptions, viewSubscription(s))
	}
	if p := r.LastPayment; p != nil {
		v.LastPayment = &PaymentView{p.InvoiceId, p.Amount, text(p.Currency), timeOf(p.AtUnixMs)}
	}
	if f := r.LastFailure; f != nil {
		v.LastFailure = &FailureView{
			PaymentView{f.InvoiceId, f.Amount, text(f.Currency), timeOf(f.AtUnixMs)},
			f.AttemptCount, timeOf(f.NextAttemptUnixMs),
		}
	}
	return v
}

func viewSubscription(s *webhooksv1.Subscription) SubscriptionView {
	v := SubscriptionView{
		ID:                 s.Id,
		CustomerID:         s.CustomerId,
		Status:             s.Status,
		Items:              make([]ItemView, 0, len(s.Items)),
		CurrentPeriodStart: timeOf(s.CurrentPeriodStartUnixMs),
		CurrentPeriodEnd:   timeOf(s.CurrentPeriodEndUnixMs),
		CancelAt:           timeOf(s.CancelUnixMs),
		CanceledAt:         timeOf(s.CanceledUnixMs),
		EndedAt:            timeOf(s.EndedUnixMs),
		TrialEnd:           timeOf(s.TrialEndUnixMs),
		Livemode:           s.Livemode,
	}
	for _, i := range s.Items {
		v.Items = append(v.Items, ItemView{text(i.Id), text(i.PriceId), text(i.ProductId), text(i.LookupKey), i.Quantity})
	}
	return v
}

// text is null for what the source did not say.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// timeOf writes milliseconds since the epoch as RFC 3339 in UTC; 0 is null.
func timeOf(unixMS int64) *string {
	if unixMS == 0 {
		return nil
	}
	s := time.UnixMilli(unixMS).UTC().Format(timeLayout)
	return &s
}

// list is never null.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}
