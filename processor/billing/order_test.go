package billing

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestOrderOfArrival: every order of arrival and every repetition of a history give the same record and the same
// snapshot but for version, computedAt and cause.
func TestOrderOfArrival(t *testing.T) {
	p := parsedPlans(t)
	rapid.Check(t, func(t *rapid.T) {
		history := rapid.SliceOfN(rapid.Custom(drawEvent), 1, 12).Draw(t, "history")
		for i := range history {
			// Event ids are the platform's: unique.
			history[i] = withID(history[i], fmt.Sprintf("evt_%02d", i))
		}
		arrival := rapid.Permutation(append(history, rapid.SliceOf(rapid.SampledFrom(history)).Draw(t, "again")...)).Draw(t, "arrival")

		want, _ := apply(t, p, history...)
		got, _ := apply(t, p, arrival...)
		requireSame(t, want, got)

		// The same holds after the next timers ran.
		now := 1000 * (period3 + 100*day)
		requireSame(t, Expire(want, now, p).State, Expire(got, now, p).State)
	})
}

// TestOrderOfArrivalOfMoves: wherever in its history a customer is moved, its invoices end up as if it never had been.
func TestOrderOfArrivalOfMoves(t *testing.T) {
	p := parsedPlans(t)
	rapid.Check(t, func(t *rapid.T) {
		history := rapid.SliceOfN(rapid.Custom(drawEvent), 1, 12).Draw(t, "history")
		for i := range history {
			history[i] = withID(history[i], fmt.Sprintf("evt_%02d", i))
		}
		want, _ := apply(t, p, history...)
		before := rapid.IntRange(0, len(history)).Draw(t, "before")
		overtakes := rapid.IntRange(before, len(history)).Draw(t, "overtakes")
		old, _ := apply(t, p, history[:before]...)
		got, _ := apply(t, p, history[before:overtakes]...)
		_, held := Release(copyOf(old), Move{org, "cus_1", "cmd_1", 0}, p)
		got = Adopt(got, Move{org, "cus_1", "cmd_2", 0}, held, p).State
		for _, h := range history[overtakes:] {
			got = Apply(got, h.event(t), p).State
		}
		if len(held.Subscriptions)+len(held.FailedInvoices) == 0 {
			return // nothing to hand over
		}
		require.Equal(t, asText(want.Record.FailedInvoices), asText(got.Record.FailedInvoices))
		require.Equal(t, fmt.Sprint(want.Record.SettledInvoices), fmt.Sprint(got.Record.SettledInvoices))
		require.Equal(t, fmt.Sprint(want.Record.SettledUnixMs), fmt.Sprint(got.Record.SettledUnixMs))
	})
}

func asText(list []*webhooksv1.FailedInvoice) (texts []string) {
	for _, f := range list {
		texts = append(texts, prototext.Format(f))
	}
	return texts
}

func requireSame(t require.TestingT, want, got State) {
	require.True(t, proto.Equal(withoutVersion(want.Record), withoutVersion(got.Record)), "record\n%v\n%v", want.Record, got.Record)
	require.Equal(t, want.Snapshot == nil, got.Snapshot == nil)
	if want.Snapshot == nil {
		return
	}
	a := proto.Clone(want.Snapshot).(*webhooksv1.TenantCapabilitySnapshot)
	b := proto.Clone(got.Snapshot).(*webhooksv1.TenantCapabilitySnapshot)
	for _, s := range []*webhooksv1.TenantCapabilitySnapshot{a, b} {
		s.Version, s.ComputedUnixMs, s.Cause = 0, 0, nil
	}
	require.True(t, proto.Equal(a, b), "snapshot\n%v\n%v", a, b)
}

func withoutVersion(r *webhooksv1.BillingRecord) *webhooksv1.BillingRecord {
	r = proto.CloneOf(r)
	r.SnapshotVersion = 0
	return r
}

// drawEvent draws from few values, so that ties and collisions are frequent.
func drawEvent(t *rapid.T) eventer {
	created := rapid.SampledFrom([]int64{period1, period1 + 1, period1 + 3*day, period2, period2 + 2*day, period3}).Draw(t, "created")
	if rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
		return inv{
			eventType: rapid.SampledFrom([]string{
				InvoicePaid, PaymentFailed, PaymentFailed, InvoiceVoided, InvoiceUncollectible,
			}).Draw(t, "type"),
			id:      rapid.SampledFrom([]string{"in_1", "in_2", "in_3"}).Draw(t, "invoice"),
			amount:  rapid.Int64Range(0, 3).Draw(t, "amount"),
			created: created,
		}
	}
	return sub{
		eventType: rapid.SampledFrom([]string{SubscriptionCreated, SubscriptionUpdated, SubscriptionUpdated, SubscriptionDeleted}).Draw(t, "type"),
		id:        rapid.SampledFrom([]string{"sub_a", "sub_b", "sub_c"}).Draw(t, "subscription"),
		status:    rapid.SampledFrom(append([]string{pastDue, pastDue, "active"}, statuses...)).Draw(t, "status"),
		price:     rapid.SampledFrom([]string{"price_starter", "price_pro", "price_none"}).Draw(t, "price"),
		created:   created,
		period:    rapid.SampledFrom([]int64{0, period1, period2, period3, period3 + day, period3 + 2*day}).Draw(t, "period"),
		accepted:  rapid.SampledFrom([]int64{0, period3, period3 + 5*day, period3 + 8*day}).Draw(t, "accepted"),
	}
}

func withID(e eventer, id string) eventer {
	switch e := e.(type) {
	case sub:
		e.eventID = id
		return e
	case inv:
		e.eventID = id
		return e
	}
	return e
}
