package inbound

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/billing"
)

// BenchmarkTask applies captured events of 4.6 kB, 100 to a transaction, with their state in memory and no Kafka.
func BenchmarkTask(b *testing.B) {
	body := testenv.Fixture(b, "stripe/stripe-ruby-mock/customer.subscription.updated.json")
	h := streamtest.New(b, newInbound(b, prometheus.NewRegistry()).Spec())
	b.ReportAllocs()
	var batch []*kgo.Record
	for i := 0; b.Loop(); i++ {
		// Of events of one second the greatest id is the newest: each of these is applied and sent on.
		batch = append(batch, stripeEvent(fmt.Sprintf("evt_%09d", i), billing.SubscriptionUpdated, h.Now, string(body)))
		if len(batch) == 100 {
			h.Process(batch...)
			batch = batch[:0]
		}
	}
}
