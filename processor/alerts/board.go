package alerts

import (
	"bytes"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// board is what is open, and what ended lately, of all organizations. It has no clock: its callers give it the time.
type board struct {
	// keep is for how long an end is told.
	keep time.Duration

	mu   sync.Mutex
	orgs map[string]map[string]*entry // by organization and invoice
}

// entry is an invoice on the board.
type entry struct {
	invoice *webhooksv1.FailedInvoice
	// ended is when it ended, zero while it is open; until is how long that is told.
	ended, until time.Time
	// wasTold says that an Alertmanager may have it as open, by this process.
	wasTold bool
	changed bool
}

// told is an alert as it is to be told.
type told struct {
	organization string
	invoice      *webhooksv1.FailedInvoice
	ended        time.Time
}

func newBoard(keep time.Duration) *board {
	return &board{keep: keep, orgs: map[string]map[string]*entry{}}
}

// apply takes a record of the table, nil when it was deleted, and reports whether there is something new to tell.
func (b *board) apply(key, value []byte, now time.Time) (changed bool) {
	if bytes.IndexByte(key, '/') >= 0 {
		return false // a mark of a moved account
	}
	failed := failedInvoices(value)
	b.mu.Lock()
	defer b.mu.Unlock()
	have := b.orgs[string(key)]
	if have == nil {
		if len(failed) == 0 {
			return false
		}
		have = map[string]*entry{}
		b.orgs[string(key)] = have
	}
	named := make(map[string]bool, len(failed))
	for _, f := range failed {
		named[f.InvoiceId] = true
		changed = b.put(have, f, now) || changed
	}
	for id, e := range have {
		if !named[id] && e.ended.IsZero() {
			// It was moved to another organization, or had to make room for later ones.
			changed = b.end(have, e, now, now) || changed
		}
	}
	if len(have) == 0 {
		delete(b.orgs, string(key))
	}
	return changed
}

// put brings an invoice of a record onto the board.
func (b *board) put(have map[string]*entry, f *webhooksv1.FailedInvoice, now time.Time) (changed bool) {
	e := have[f.InvoiceId]
	ended := time.UnixMilli(f.EndedUnixMs)
	switch {
	case f.EndedUnixMs == 0:
		if e != nil && e.ended.IsZero() && proto.Equal(e.invoice, f) {
			return false
		}
		wasTold := e != nil && e.wasTold
		have[f.InvoiceId] = &entry{invoice: f, wasTold: wasTold, changed: true}
		return true
	case e != nil && !e.ended.IsZero():
		return false
	case e != nil:
		e.invoice = f
		return b.end(have, e, ended, now)
	case f.EndedUnixMs > f.FirstFailedUnixMs && ended.Add(b.keep).After(now):
		// It ended before this process knew of it: another one may have told that it was open.
		have[f.InvoiceId] = &entry{invoice: f, ended: ended, until: ended.Add(b.keep), changed: true}
		return true
	}
	return false
}

// end ends an open entry. What was told is told to have ended, however long ago that was; for the rest, which nobody
// can have as open by this process, time is counted from the end itself.
func (b *board) end(have map[string]*entry, e *entry, ended, now time.Time) (changed bool) {
	e.ended, e.until = ended, ended.Add(b.keep)
	if e.wasTold {
		e.until = now.Add(b.keep)
	}
	if !e.until.After(now) {
		delete(have, e.invoice.InvoiceId)
		return false
	}
	e.changed = true
	return true
}

// take lists what is to be told: everything, or only what changed since it was last taken. Ends that were told for long
// enough leave the board.
func (b *board) take(now time.Time, everything bool) (list []*told) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for org, have := range b.orgs {
		for id, e := range have {
			open := e.ended.IsZero()
			if !open && !e.until.After(now) {
				delete(have, id)
				continue
			}
			if !everything && !e.changed {
				continue
			}
			e.changed = false
			e.wasTold = e.wasTold || open
			list = append(list, &told{organization: org, invoice: e.invoice, ended: e.ended})
		}
		if len(have) == 0 {
			delete(b.orgs, org)
		}
	}
	return list
}

func (b *board) countOpen() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, have := range b.orgs {
		for _, e := range have {
			if e.ended.IsZero() {
				n++
			}
		}
	}
	return n
}

// failedField is the number of BillingRecord.failed_invoices.
const failedField = protowire.Number(14)

// failedInvoices reads the one field that is needed here: every record of the table passes at the start, and nearly all
// have none. What does not decode ends the list; the billing task says so where it reads it.
func failedInvoices(record []byte) (list []*webhooksv1.FailedInvoice) {
	for len(record) > 0 {
		number, wireType, n := protowire.ConsumeTag(record)
		if n < 0 {
			return list
		}
		record = record[n:]
		if n = protowire.ConsumeFieldValue(number, wireType, record); n < 0 {
			return list
		}
		if number == failedField && wireType == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(record)
			f := &webhooksv1.FailedInvoice{}
			if proto.Unmarshal(value, f) != nil {
				return list
			}
			list = append(list, f)
		}
		record = record[n:]
	}
	return list
}
