package jsonscan_test

import (
	"encoding/json"
	"testing"

	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/internal/testenv"
)

// BenchmarkStripe scans Stripe's fixtures for the fields the edge needs, beside encoding/json's Valid, which finds
// nothing.
func BenchmarkStripe(b *testing.B) {
	bodies, size := stripeBodies(b)
	s := jsonscan.Compile("/id", "/type", "/created", "/livemode", "/data/object/id", "/data/object/object", "/data/object/customer", "/data/object/customer/id")
	out := make([]jsonscan.Value, s.Paths())
	run := func(name string, read func([]byte) bool) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for _, body := range bodies {
					if !read(body) {
						b.Fatal("refused")
					}
				}
			}
		})
	}
	run("scan", func(body []byte) bool { return s.Scan(body, out) == nil })
	run("valid", jsonscan.Valid)
	run("encoding-json", json.Valid)
}

func stripeBodies(b *testing.B) (bodies [][]byte, size int64) {
	for _, name := range []string{
		"pay/account.updated", "pay/invoice.object-only", "pay/subscription.updated.object-only",
		"stripe-ruby-mock/customer.subscription.created", "stripe-ruby-mock/customer.subscription.updated",
		"stripe-ruby-mock/invoice.paid", "stripe-ruby-mock/invoice.payment_failed", "stripe-ruby-mock/checkout.session.completed",
		"stripe-sync-engine/subscription_created", "stripe-sync-engine/subscription_deleted", "stripe-sync-engine/invoice_paid",
	} {
		body := testenv.Fixture(b, "stripe/"+name+".json")
		bodies, size = append(bodies, body), size+int64(len(body))
	}
	return bodies, size
}
