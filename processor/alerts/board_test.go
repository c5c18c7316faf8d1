package alerts

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org  = "org_1"
	keep = 15 * time.Minute
)

// start is when the tests begin; ms is a time after it.
var start = time.UnixMilli(1_760_000_000_000)

func ms(after time.Duration) int64 { return start.Add(after).UnixMilli() }

func open(invoice string) *webhooksv1.FailedInvoice {
	return &webhooksv1.FailedInvoice{InvoiceId: invoice, CustomerId: "cus_1", FirstFailedUnixMs: ms(-time.Hour), AttemptCount: 1}
}

func ended(invoice string, after time.Duration) *webhooksv1.FailedInvoice {
	f := open(invoice)
	f.EndedUnixMs = ms(after)
	return f
}

// record is an organization's, with what else is in one.
func record(t testing.TB, invoices ...*webhooksv1.FailedInvoice) []byte {
	value, err := proto.Marshal(&webhooksv1.BillingRecord{
		OrganizationId: org, Plan: "FREE", DueUnixMs: 5, SettledInvoices: []uint64{1}, SettledUnixMs: []int64{2},
		Subscriptions:  []*webhooksv1.Subscription{{Id: "sub_1", Items: []*webhooksv1.SubscriptionItem{{Id: "si_1"}}}},
		FailedInvoices: invoices, LastPayment: &webhooksv1.Payment{InvoiceId: "in_9"},
	})
	require.NoError(t, err)
	return value
}

// names shows what is told: "in_1" of an open invoice, "in_1 ended 5m0s" of one that ended so long after the start.
func names(list []*told) (names []string) {
	for _, told := range list {
		name := told.invoice.InvoiceId
		if !told.ended.IsZero() {
			name += " ended " + told.ended.Sub(start).String()
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func TestBoard(t *testing.T) {
	again := open("in_1")
	again.AttemptCount = 2
	type step struct {
		at       time.Duration
		invoices []*webhooksv1.FailedInvoice
		// news is what is told at once, all what is told with an interval after it.
		news, all []string
	}
	list := func(invoices ...*webhooksv1.FailedInvoice) []*webhooksv1.FailedInvoice { return invoices }
	for name, steps := range map[string][]step{
		"an open one is told again and again": {
			{0, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
			{time.Hour, list(open("in_1")), nil, []string{"in_1"}},
		},
		"another attempt is news": {
			{0, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
			{1, list(again), []string{"in_1"}, []string{"in_1"}},
		},
		"an end is told for a while": {
			{0, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
			{time.Minute, list(ended("in_1", time.Second)), []string{"in_1 ended 1s"}, []string{"in_1 ended 1s"}},
			{time.Minute + keep - 1, list(ended("in_1", time.Second)), nil, []string{"in_1 ended 1s"}},
			{time.Minute + keep, list(ended("in_1", time.Second)), nil, nil},
			{time.Minute + 2*keep, list(ended("in_1", time.Second)), nil, nil},
		},
		"of what was told, however late its end is heard of": {
			{0, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
			{100 * time.Hour, list(ended("in_1", time.Second)), []string{"in_1 ended 1s"}, []string{"in_1 ended 1s"}},
		},
		"an end shortly before the start is told, an old one is not": {
			{0, list(ended("in_1", -time.Minute), ended("in_2", -keep)), []string{"in_1 ended -1m0s"}, []string{"in_1 ended -1m0s"}},
		},
		"what was settled before it failed never was open": {
			{0, list(&webhooksv1.FailedInvoice{InvoiceId: "in_1", FirstFailedUnixMs: ms(0), EndedUnixMs: ms(-1)}), nil, nil},
		},
		"what is no longer known ends": {
			{0, list(open("in_1"), open("in_2")), []string{"in_1", "in_2"}, []string{"in_1", "in_2"}},
			{time.Minute, list(open("in_2")), []string{"in_1 ended 1m0s"}, []string{"in_1 ended 1m0s", "in_2"}},
			{time.Minute + keep, nil, []string{"in_2 ended 16m0s"}, []string{"in_2 ended 16m0s"}},
		},
		"what comes back is open": {
			{0, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
			{time.Minute, nil, []string{"in_1 ended 1m0s"}, []string{"in_1 ended 1m0s"}},
			{2 * time.Minute, list(open("in_1")), []string{"in_1"}, []string{"in_1"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(keep)
			for i, s := range steps {
				now := start.Add(s.at)
				changed := b.apply([]byte(org), record(t, s.invoices...), now)
				require.Equal(t, s.news, names(b.take(now, false)), "news of step %d", i)
				require.Equal(t, len(s.news) > 0, changed, "step %d", i)
				require.Equal(t, s.all, names(b.take(now, true)), "all of step %d", i)
			}
		})
	}
}

func TestTheBoardKeepsNothingOfWhoOwesNothing(t *testing.T) {
	b := newBoard(keep)
	require.False(t, b.apply([]byte("org_2"), record(t), start))
	require.False(t, b.apply([]byte("org_2"), nil, start))
	require.False(t, b.apply([]byte("moved/org_1/stripe/cus_1"), record(t, open("in_1")), start))
	require.False(t, b.apply([]byte("org_2"), []byte{0xff}, start))
	require.Empty(t, b.orgs)

	require.True(t, b.apply([]byte(org), record(t, open("in_1")), start))
	require.Equal(t, 1, b.countOpen())
	require.Len(t, b.take(start, true), 1)
	require.True(t, b.apply([]byte(org), nil, start), "a record that was deleted")
	require.Zero(t, b.countOpen())
	require.Empty(t, b.take(start.Add(keep), true))
	require.Empty(t, b.orgs)
}

// BenchmarkApply is what a record costs when the copy is read at the start: most have no failed invoice.
func BenchmarkApply(b *testing.B) {
	for _, failed := range []int{0, 1} {
		b.Run(fmt.Sprint(failed, " failed"), func(b *testing.B) {
			board, key := newBoard(keep), []byte(org)
			value := record(b, []*webhooksv1.FailedInvoice{open("in_1")}[:failed]...)
			b.ReportAllocs()
			for b.Loop() {
				board.apply(key, value, start)
			}
		})
	}
}
