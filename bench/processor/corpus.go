package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

// eventBytes is the size of an event's body; Stripe's are 3 to 8 kB.
const eventBytes = 3000

// corpus is the input of a run: the lives of some organizations' subscriptions, one event of each in turn. The first is
// the subscription's creation; then half are changes of it, which are sent on, half invoices, paid or failed.
type corpus struct{ orgs, events int }

func (c corpus) org(i int) string { return fmt.Sprintf("org_%07d", i%c.orgs) }

// record is the i-th event as the edge writes it.
func (c corpus) record(i int, start time.Time) *kgo.Record {
	org, turn := c.org(i), i/c.orgs
	eventID, occurred := fmt.Sprintf("evt_%020d", i), start.Add(time.Duration(turn)*time.Second)
	eventType, body := event(i, turn+i%c.orgs, kindOf(turn, i%c.orgs), org, eventID, occurred)
	r := &kgo.Record{Key: []byte(org), Value: body}
	for _, h := range [...][2]string{
		{schemas.HeaderSpecVersion, schemas.SpecVersion},
		{schemas.HeaderID, eventID},
		{schemas.HeaderSource, schemas.SourceStripe},
		{schemas.HeaderType, eventType},
		{schemas.HeaderContentType, schemas.ContentTypeJSON},
		{schemas.HeaderEventID, id.Derive(id.Event, schemas.SourceStripe, eventID)},
		{schemas.HeaderAccount, "cus_" + org},
		{schemas.HeaderOrganization, org},
		{schemas.HeaderAcceptedAt, occurred.UTC().Format("2006-01-02T15:04:05.000Z")},
	} {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	return r
}

// kindOf mixes the types at any time: neighbours do different things in the same turn.
func kindOf(turn, org int) string {
	switch {
	case turn == 0:
		return billing.SubscriptionCreated
	case (turn+org)%2 == 0:
		return billing.SubscriptionUpdated
	case (turn+org)%4 == 1:
		return billing.InvoicePaid
	}
	return billing.PaymentFailed
}

// invoiceOf names an invoice of an organization so that the one whose payment failed is the one that is paid next.
func invoiceOf(step int, org string) string { return fmt.Sprintf("in_%s_%d", org, (step+1)/4) }

func event(i, step int, eventType, org, eventID string, occurred time.Time) (string, []byte) {
	body := fmt.Appendf(nil, "{\n  \"id\": %q,\n  \"object\": \"event\",\n  \"api_version\": \"2025-03-31.basil\",\n  \"created\": %d,\n  \"data\": {\n", eventID, occurred.Unix())
	if strings.HasPrefix(eventType, "customer.") {
		body = fmt.Appendf(body, subscription, org, org, "si_"+org, occurred.Unix()+2592000, occurred.Unix(), 1+i%100)
	} else {
		body = fmt.Appendf(body, invoice, invoiceOf(step, org), org, org)
	}
	const note, end = "        \"note_%02d\": \"of the usual length\",\n", "        \"last\": null\n      }\n    }\n  },\n  \"livemode\": true,\n  \"type\": %q\n}\n"
	last := fmt.Sprintf(end, eventType)
	for n := 0; len(body)+len(note)+len(last) <= eventBytes; n++ {
		body = fmt.Appendf(body, note, n)
	}
	return eventType, append(append(body, strings.Repeat(" ", max(0, eventBytes-len(body)-len(last)))...), last...)
}

const subscription = `    "object": {
      "id": "sub_%s",
      "object": "subscription",
      "customer": "cus_%s",
      "status": "active",
      "cancel_at": null,
      "cancel_at_period_end": false,
      "canceled_at": null,
      "items": {
        "object": "list",
        "data": [
          {
            "id": %q,
            "object": "subscription_item",
            "current_period_end": %d,
            "current_period_start": %d,
            "price": {
              "id": "price_pro",
              "object": "price",
              "currency": "usd",
              "lookup_key": "scm_pro",
              "product": "prod_scm",
              "recurring": {
                "interval": "month",
                "interval_count": 1
              },
              "unit_amount": 49900
            },
            "quantity": %d
          }
        ],
        "has_more": false
      },
      "metadata": {
`

const invoice = `    "object": {
      "id": %q,
      "object": "invoice",
      "amount_due": 49900,
      "amount_paid": 49900,
      "attempt_count": 1,
      "currency": "usd",
      "customer": "cus_%s",
      "next_payment_attempt": null,
      "parent": {
        "type": "subscription_details",
        "subscription_details": {
          "subscription": "sub_%s"
        }
      },
      "metadata": {
`

// write puts events [from, to) on the topic inbound.
func (c corpus) write(ctx context.Context, cluster kafka.Config, from, to int, start time.Time) error {
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{Records: 20_000, Bytes: 256 << 20, Timeout: time.Minute, Linger: 5 * time.Millisecond},
		slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close()
	promise := kgo.AbortingFirstErrPromise(client)
	for i := from; i < to; i++ {
		r := c.record(i, start)
		r.Topic, r.Partition = cluster.Topic(schemas.Inbound), cluster.PartitionOf(string(r.Key))
		client.Produce(ctx, r, promise.Promise())
	}
	return promise.Err()
}
