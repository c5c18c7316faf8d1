package alerts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxAlerts bounds the alerts of one request, and so its size: some 300 kB.
const maxAlerts = 500

// requestTimeout bounds one request. An Alertmanager that hangs delays the others by that much, once a round.
const requestTimeout = 5 * time.Second

// maxAnswer is how much of a refusal is logged.
const maxAnswer = 512

// alert is one of Alertmanager's API v2.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// alertOf is the alert of an invoice. Its labels are its identity: they must be the same from every process, for ever.
func alertOf(t *told, holds time.Time) alert {
	f := t.invoice
	a := alert{
		Labels: map[string]string{
			"alertname": "InvoicePaymentFailed", "severity": "warning",
			"organization_id": t.organization, "customer_id": f.CustomerId, "invoice_id": f.InvoiceId,
		},
		Annotations: map[string]string{"summary": "The payment of invoice " + f.InvoiceId + " failed."},
		StartsAt:    time.UnixMilli(f.FirstFailedUnixMs).UTC(),
		EndsAt:      holds.UTC(),
	}
	if !t.ended.IsZero() {
		a.EndsAt = t.ended.UTC()
	}
	if a.EndsAt.Before(a.StartsAt) {
		// Settled before it failed, as events tell it: Alertmanager would refuse that.
		a.EndsAt = a.StartsAt
	}
	if f.Amount != nil {
		a.Annotations["amount"] = fmt.Sprintf("%d %s, in the currency's minor unit", *f.Amount, f.Currency)
	}
	if f.AttemptCount > 0 {
		a.Annotations["attempts"] = strconv.FormatUint(uint64(f.AttemptCount), 10)
	}
	return a
}

// alertsOf are the alerts of what is told.
func alertsOf(list []*told, holds time.Time) []alert {
	alerts := make([]alert, len(list))
	for i, t := range list {
		alerts[i] = alertOf(t, holds)
	}
	return alerts
}

// manager is one Alertmanager.
type manager struct {
	// name is its URL without user and password.
	name, url string
	user      *url.Userinfo
	client    *http.Client
	log       *slog.Logger
	metrics   *metrics
	// failing is the error that was logged last, "" while requests succeed.
	failing string
	// refused are the alerts that it took no request with.
	refused map[identity]bool
}

func newManager(text string, log *slog.Logger, m *metrics) (*manager, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, errors.New("an Alertmanager's URL is none (its text is not shown, it may hold a password)")
	}
	user := u.User
	u.User = nil
	return &manager{
		name: u.String(), url: u.JoinPath("api/v2/alerts").String(), user: user,
		client: &http.Client{Timeout: requestTimeout}, log: log.With("alertmanager", u.String()), metrics: m,
		refused: map[identity]bool{},
	}, nil
}

// send tells alerts until the Alertmanager fails. It goes on where one is refused; those that were refused before are
// sent one by one, behind all others. Errors are logged when they change.
func (m *manager) send(ctx context.Context, alerts []alert) {
	r := &round{manager: m, ctx: ctx, left: len(alerts)}
	err := r.run(alerts)
	m.metrics.failed.Add(float64(r.left))
	switch {
	case ctx.Err() != nil:
	case err == nil && m.failing != "":
		m.log.Info("Alertmanager takes alerts again")
		m.failing = ""
	case err != nil && m.failing != err.Error():
		m.log.Warn("Alertmanager did not take alerts; they are sent again with the next interval", "error", err)
		m.failing = err.Error()
	}
}

// refusal is an answer that judges what was sent, not who sent it or how the Alertmanager is.
type refusal struct{ answer string }

func (r *refusal) Error() string { return r.answer }

func (m *manager) post(ctx context.Context, alerts []alert) error {
	body, err := json.Marshal(alerts)
	if err != nil {
		panic("BUG: alerts do not encode: " + err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "BetterData-Webhooks/1")
	if m.user != nil {
		password, _ := m.user.Password()
		req.SetBasicAuth(m.user.Username(), password)
	}
	resp, err := m.client.Do(req)
	var op *net.OpError
	if errors.As(err, &op) {
		// Its own text has the port of this end, another one with each connection.
		return fmt.Errorf("%s %s: %w", op.Op, m.name, op.Err)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 == 2 {
		return err
	}
	text := fmt.Sprintf("answered %s: %s", resp.Status, bytes.TrimSpace(answer))
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return &refusal{text}
	}
	return errors.New(text)
}
