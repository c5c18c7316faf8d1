package billing

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/testenv"
)

// BenchmarkDecode reads a captured event of 4.6 kB.
func BenchmarkDecode(b *testing.B) {
	body := testenv.Fixture(b, "stripe/stripe-ruby-mock/customer.subscription.updated.json")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		e := &Event{Organization: org, ID: "evt_1", Type: SubscriptionUpdated}
		if Decode(body, e) != Usable {
			b.Fatal("not usable")
		}
	}
}

// BenchmarkApply applies events of one subscription, each newer than the last.
func BenchmarkApply(b *testing.B) {
	p := parsedPlans(b)
	s := Apply(State{}, sub{"evt_0", SubscriptionCreated, "sub_1", "active", "price_pro", period1, period1, 0}.event(b), p).State
	e := sub{"evt_1", SubscriptionUpdated, "sub_1", "active", "price_pro", period1, period1, 0}.event(b)
	b.ReportAllocs()
	for i := int64(1); b.Loop(); i++ {
		next := *e
		next.Subscription = proto.CloneOf(e.Subscription)
		next.Subscription.Position.EventUnixMs += 1000 * i
		s = Apply(s, &next, p).State
	}
}
