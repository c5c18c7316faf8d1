package billing

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// The record is rewritten with every event, so what it keeps of invoices is bounded, and the oldest leave. What that
// costs: with more than maxOpen invoices open, the one that failed longest ago is no longer alerted of, though it is
// not paid. An invoice is known to be settled for as long as maxEnded others that failed, and then maxSettled others,
// have not been settled since; a failure that arrives later still opens it, and only another settlement ends it.
const (
	maxOpen    = 16
	maxEnded   = 4
	maxSettled = 16
)

// fail brings a failed invoice into the record, and takes it over. changed: the record is another one. seen: so is what
// is told of open invoices.
func fail(record *webhooksv1.BillingRecord, in *webhooksv1.FailedInvoice) (changed, seen bool) {
	at, found := slices.BinarySearchFunc(record.FailedInvoices, in.InvoiceId,
		func(f *webhooksv1.FailedInvoice, id string) int { return cmp.Compare(f.InvoiceId, id) })
	if found {
		have := record.FailedInvoices[at]
		wasOpen := have.EndedUnixMs == 0
		changed = mergeFailed(have, in)
		seen = changed && (wasOpen || have.EndedUnixMs == 0)
		boundFailed(record)
		return changed, seen
	}
	if i, settled := slices.BinarySearch(record.SettledInvoices, invoiceHash(in.InvoiceId)); settled {
		in.EndedUnixMs = earliest(in.EndedUnixMs, record.SettledUnixMs[i])
		unsettle(record, i)
	}
	record.FailedInvoices = slices.Insert(record.FailedInvoices, at, in)
	boundFailed(record)
	return true, in.EndedUnixMs == 0
}

// mergeFailed makes have what both say.
func mergeFailed(have, in *webhooksv1.FailedInvoice) (changed bool) {
	if in.FirstFailedUnixMs < have.FirstFailedUnixMs {
		have.FirstFailedUnixMs, changed = in.FirstFailedUnixMs, true
	}
	if cmp.Or(cmp.Compare(in.LastFailedUnixMs, have.LastFailedUnixMs), cmp.Compare(in.EventId, have.EventId)) > 0 {
		have.LastFailedUnixMs, have.EventId, have.CustomerId = in.LastFailedUnixMs, in.EventId, in.CustomerId
		have.Amount, have.Currency, have.AttemptCount = in.Amount, in.Currency, in.AttemptCount
		changed = true
	}
	if ended := earliest(have.EndedUnixMs, in.EndedUnixMs); ended != have.EndedUnixMs {
		have.EndedUnixMs, changed = ended, true
	}
	return changed
}

// settle notes that an invoice was paid, voided or marked uncollectible. changed and seen are as those of fail.
func settle(record *webhooksv1.BillingRecord, invoice uint64, at int64) (changed, seen bool) {
	for _, f := range record.FailedInvoices {
		if invoiceHash(f.InvoiceId) != invoice {
			continue
		}
		ended := earliest(f.EndedUnixMs, at)
		changed = ended != f.EndedUnixMs
		f.EndedUnixMs = ended
		boundFailed(record)
		return changed, changed
	}
	return noteSettled(record, invoice, at), false
}

// settling are the types of events that settle an invoice.
var settling = []string{InvoicePaid, InvoiceVoided, InvoiceUncollectible}

// SettledBy is the invoice that an event settles, and when; "" where it settles none. id is Stripe's of the event.
func SettledBy(source, eventType, id string, body []byte) (invoice string, unixMS int64) {
	e := Event{ID: id, Type: eventType}
	if source != schemas.SourceStripe || !slices.Contains(settling, eventType) || Decode(body, &e) != Usable {
		return "", 0
	}
	return e.Invoice.ID, e.CreatedUnixMS
}

// Settle notes that an invoice was settled by an event that another organization has. Its failure may have come here, or come yet.
func Settle(s State, organization, invoice string, unixMS int64, p *plans.Plans) (r Result) {
	r.State = s
	if r.State.Record == nil {
		r.State.Record = &webhooksv1.BillingRecord{OrganizationId: organization, Plan: p.Default.Name}
	}
	r.RecordChanged, _ = settle(r.State.Record, invoiceHash(invoice), unixMS)
	return r
}

func noteSettled(record *webhooksv1.BillingRecord, invoice uint64, at int64) (changed bool) {
	i, found := slices.BinarySearch(record.SettledInvoices, invoice)
	if found {
		changed = at < record.SettledUnixMs[i]
		record.SettledUnixMs[i] = min(at, record.SettledUnixMs[i])
		return changed
	}
	record.SettledInvoices = slices.Insert(record.SettledInvoices, i, invoice)
	record.SettledUnixMs = slices.Insert(record.SettledUnixMs, i, at)
	if len(record.SettledInvoices) <= maxSettled {
		return true
	}
	oldest := 0
	for j, t := range record.SettledUnixMs {
		if t < record.SettledUnixMs[oldest] {
			oldest = j
		}
	}
	unsettle(record, oldest)
	return oldest != i
}

func unsettle(record *webhooksv1.BillingRecord, i int) {
	record.SettledInvoices = slices.Delete(record.SettledInvoices, i, i+1)
	record.SettledUnixMs = slices.Delete(record.SettledUnixMs, i, i+1)
}

// boundFailed lets the oldest leave where there are too many. One that has ended is still known to be settled.
func boundFailed(record *webhooksv1.BillingRecord) {
	drop := func(ended bool, most int, age func(*webhooksv1.FailedInvoice) int64) {
		count, oldest := 0, -1
		for i, f := range record.FailedInvoices {
			if (f.EndedUnixMs != 0) != ended {
				continue
			}
			count++
			if oldest < 0 || age(f) < age(record.FailedInvoices[oldest]) {
				oldest = i
			}
		}
		if count <= most {
			return
		}
		gone := record.FailedInvoices[oldest]
		record.FailedInvoices = slices.Delete(record.FailedInvoices, oldest, oldest+1)
		if ended {
			noteSettled(record, invoiceHash(gone.InvoiceId), gone.EndedUnixMs)
		}
	}
	drop(false, maxOpen, (*webhooksv1.FailedInvoice).GetLastFailedUnixMs)
	drop(true, maxEnded, (*webhooksv1.FailedInvoice).GetEndedUnixMs)
}

// earliest is the smaller of two times of which 0 is none.
func earliest(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// invoiceHash stands for an id that need only be recognised, among the few of one organization.
func invoiceHash(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

// failure is the invoice of a failed payment.
func (e *Event) failure() *webhooksv1.FailedInvoice {
	return &webhooksv1.FailedInvoice{
		InvoiceId: e.Invoice.ID, CustomerId: e.CustomerID,
		FirstFailedUnixMs: e.CreatedUnixMS, LastFailedUnixMs: e.CreatedUnixMS, EventId: e.ID,
		Amount: e.Invoice.Amount, Currency: e.Invoice.Currency, AttemptCount: e.Invoice.AttemptCount,
	}
}
