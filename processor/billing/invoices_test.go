package billing

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

func TestAFailedInvoiceIsOpenUntilItIsSettled(t *testing.T) {
	failed := inv{"evt_1", PaymentFailed, "in_1", 500, period1}
	again := inv{"evt_2", PaymentFailed, "in_1", 500, period1 + 3*day}
	for name, test := range map[string]struct {
		history []inv
		ended   int64
	}{
		"failed":                       {[]inv{failed}, 0},
		"failed twice":                 {[]inv{failed, again}, 0},
		"paid":                         {[]inv{failed, {"evt_3", InvoicePaid, "in_1", 500, period2}}, period2},
		"voided":                       {[]inv{failed, {"evt_3", InvoiceVoided, "in_1", 500, period2}}, period2},
		"uncollectible":                {[]inv{failed, {"evt_3", InvoiceUncollectible, "in_1", 500, period2}}, period2},
		"uncollectible, then paid":     {[]inv{failed, {"evt_3", InvoiceUncollectible, "in_1", 500, period2}, {"evt_4", InvoicePaid, "in_1", 500, period3}}, period2},
		"paid, told first":             {[]inv{{"evt_3", InvoicePaid, "in_1", 500, period2}, failed}, period2},
		"failed after it was paid":     {[]inv{{"evt_3", InvoicePaid, "in_1", 500, period1 - 1}, failed}, period1 - 1},
		"failed, paid and failed late": {[]inv{failed, {"evt_3", InvoicePaid, "in_1", 500, period2}, again}, period2},
		"another is paid":              {[]inv{failed, {"evt_3", InvoicePaid, "in_2", 500, period2}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var history []eventer
			failures := 0
			for _, e := range test.history {
				history = append(history, e)
				if e.eventType == PaymentFailed {
					failures++
				}
			}
			s, _ := apply(t, parsedPlans(t), history...)
			require.Len(t, s.Record.FailedInvoices, 1)
			f := s.Record.FailedInvoices[0]
			require.Equal(t, 1000*test.ended, f.EndedUnixMs)
			require.Equal(t, 1000*period1, f.FirstFailedUnixMs)
			require.Equal(t, []any{"in_1", "cus_1", int64(500), "usd"}, []any{f.InvoiceId, f.CustomerId, *f.Amount, f.Currency})
			if failures == 2 {
				require.Equal(t, 1000*(period1+3*day), f.LastFailedUnixMs)
			}
		})
	}
}

func TestWhatAnInvoiceEventIs(t *testing.T) {
	failed := inv{"evt_2", PaymentFailed, "in_1", 500, period2}
	type is struct{ stale, changed, audited bool }
	for name, test := range map[string]struct {
		history []eventer
		want    is
	}{
		"an older failure of another invoice": {[]eventer{failed, inv{"evt_1", PaymentFailed, "in_2", 500, period1}}, is{false, true, true}},
		"an older failure of a settled one": {
			[]eventer{failed, inv{"evt_3", InvoicePaid, "in_1", 500, period3}, inv{"evt_1", PaymentFailed, "in_1", 500, period1}}, is{true, true, true},
		},
		"a repeated failure":             {[]eventer{failed, failed}, is{true, false, true}},
		"voided":                         {[]eventer{failed, inv{"evt_3", InvoiceVoided, "in_1", 500, period3}}, is{false, true, false}},
		"voided, never failed":           {[]eventer{failed, inv{"evt_3", InvoiceVoided, "in_2", 500, period3}}, is{false, true, false}},
		"voided, known, nothing changes": {[]eventer{failed, inv{"evt_3", InvoiceVoided, "in_1", 500, period3}, inv{"evt_4", InvoiceVoided, "in_1", 500, period3}}, is{true, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			_, results := apply(t, parsedPlans(t), test.history...)
			last := results[len(results)-1]
			require.Equal(t, test.want, is{last.Stale, last.RecordChanged, last.Audit != nil})
		})
	}
}

// What is not written must not have changed, whatever the history was.
func TestARecordThatIsNotRewrittenIsTheSame(t *testing.T) {
	p := parsedPlans(t)
	var s State
	for i := range 200 {
		e := inv{fmt.Sprintf("evt_%d", i%17), []string{InvoicePaid, PaymentFailed, InvoiceVoided}[i%3], fmt.Sprintf("in_%d", i%5), 5, period1 + int64(i%7)}
		before := copyOf(s)
		r := Apply(s, e.event(t), p)
		s = r.State
		if !r.RecordChanged {
			require.True(t, proto.Equal(before.Record, s.Record), "after event %d", i)
		}
	}
}

func TestTheRecordKeepsTheLatestInvoices(t *testing.T) {
	p := parsedPlans(t)
	event := func(i int, eventType string) eventer {
		return inv{fmt.Sprintf("evt_%s_%03d", eventType, i), eventType, fmt.Sprintf("in_%03d", i), 500, period1 + int64(i)}
	}
	var open, ended, settled []eventer
	for i := range 100 {
		open = append(open, event(i, PaymentFailed))
		ended = append(ended, event(i, PaymentFailed), event(i, InvoicePaid))
		settled = append(settled, event(i, InvoicePaid))
	}
	s, _ := apply(t, p, open...)
	require.Len(t, s.Record.FailedInvoices, maxOpen)
	require.Equal(t, "in_084", s.Record.FailedInvoices[0].InvoiceId)

	s, _ = apply(t, p, ended...)
	require.Len(t, s.Record.FailedInvoices, maxEnded)
	require.Equal(t, "in_096", s.Record.FailedInvoices[0].InvoiceId)
	require.Len(t, s.Record.SettledInvoices, maxSettled)
	require.Less(t, proto.Size(s.Record), 1024)
	late := Apply(copyOf(s), event(90, PaymentFailed).event(t), p)
	require.True(t, late.Stale)
	require.Len(t, late.State.Record.FailedInvoices, maxEnded, "one that has left the full list is still known to be settled")
	forgotten := Apply(copyOf(s), event(10, PaymentFailed).event(t), p)
	require.Len(t, forgotten.State.Record.FailedInvoices, maxEnded+1, "the price of the bound")

	s, _ = apply(t, p, settled...)
	require.Empty(t, s.Record.FailedInvoices)
	require.Len(t, s.Record.SettledInvoices, maxSettled)
	require.Len(t, s.Record.SettledUnixMs, maxSettled)
	late = Apply(copyOf(s), event(99, PaymentFailed).event(t), p)
	require.NotZero(t, late.State.Record.FailedInvoices[0].EndedUnixMs)
}

func TestAMovedCustomerTakesItsFailedInvoicesAlong(t *testing.T) {
	p := parsedPlans(t)
	old, _ := apply(t, p,
		inv{"evt_1", PaymentFailed, "in_1", 500, period1},
		inv{"evt_2", InvoicePaid, "in_2", 500, period1},
	)
	released, held := Release(old, Move{org, "cus_1", "cmd_1", 0}, p)
	require.Empty(t, released.State.Record.FailedInvoices)
	require.True(t, released.RecordChanged)

	adopted := Adopt(State{}, Move{"org_2", "cus_1", "cmd_2", 0}, held, p)
	require.Equal(t, "in_1", adopted.State.Record.FailedInvoices[0].InvoiceId)
	require.Equal(t, []string{"cus_1"}, adopted.State.Record.CustomerIds)
	late := Apply(adopted.State, inv{"evt_3", PaymentFailed, "in_2", 500, period1}.event(t), p)
	require.NotZero(t, late.State.Record.FailedInvoices[1].EndedUnixMs, "it was settled where the customer was before")
}
