package inbound

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// billing applies an event of billing's.
func (t *task) billing(tx *stream.Tx, e *event) (result, error) {
	in := &billing.Event{
		Organization: e.organization, ID: e.id, EventID: e.eventID, Type: e.eventType,
		AcceptedUnixMS: e.acceptedAt.UnixMilli(),
	}
	if reason := billing.Decode(e.body, in); reason != billing.Usable {
		return t.bury(tx, e, string(reason)), nil
	}
	state, err := stateOf(tx, e.organization)
	if err != nil {
		return 0, err
	}
	r := billing.Apply(state, in, t.cfg.Plans)
	effects, err := t.effectsOf(tx, e.organization, &r)
	if err != nil {
		return 0, err
	}
	if !effects.fit() {
		return t.bury(tx, e, reasonTooLarge), nil
	}
	t.write(tx, effects)
	t.pass(tx, word{cause: e.eventID, from: e.organization, source: e.source, account: e.account, at: in.AcceptedUnixMS}, r.Words)
	if r.Audit != nil {
		r.Audit.RecordedUnixMs = tx.Now().UnixMilli()
		emit(tx, schemas.BillingAudit, e.organization, e.organization, r.Audit)
	}
	t.tally.unmappedPrices += r.UnmappedPrices
	if e.eventType == billing.PaymentFailed {
		t.tally.paymentFailures++
	}
	what := processed
	if r.Stale {
		what = stale
	}
	t.row(tx, e, what, "")
	return what, nil
}

// timer applies the timer of one organization. An entry that the record no longer stands behind is dropped.
func (t *task) timer(tx *stream.Tx, entry timer, now int64) error {
	state, err := stateOf(tx, entry.organization)
	if err != nil {
		return err
	}
	tx.DropIndex(schemas.Billing, entry.indexKey)
	if state.Record.GetDueUnixMs() != entry.due {
		return nil
	}
	r := billing.Expire(state, now, t.cfg.Plans)
	effects, err := t.effectsOf(tx, entry.organization, &r)
	if err != nil {
		return err
	}
	t.write(tx, effects)
	return nil
}

// stateOf reads an organization's state.
func stateOf(tx *stream.Tx, organization string) (s billing.State, err error) {
	value, ok, err := tx.Get(schemas.Billing, []byte(organization))
	if err != nil || !ok {
		return s, err
	}
	s.Record = &webhooksv1.BillingRecord{}
	if err := proto.Unmarshal(value, s.Record); err != nil {
		return s, fmt.Errorf("billing record of %s: %w", organization, err)
	}
	return s, nil
}

// effects is what follows from an event, ready to be written.
type effects struct {
	organization string
	// record and snapshot are nil when they did not change.
	record, snapshot []byte
	due              int64
	events           []*kgo.Record
}

func (t *task) effectsOf(tx *stream.Tx, organization string, r *billing.Result) (e effects, err error) {
	e = effects{organization: organization, due: r.State.Record.GetDueUnixMs()}
	if r.RecordChanged {
		if e.record, err = proto.Marshal(r.State.Record); err != nil {
			return e, fmt.Errorf("encode billing record of %s: %w", organization, err)
		}
	}
	if r.SnapshotChanged {
		if e.snapshot, err = proto.Marshal(r.State.Snapshot); err != nil {
			return e, fmt.Errorf("encode snapshot of %s: %w", organization, err)
		}
	}
	if len(r.Updates) == 0 {
		return e, nil
	}
	set, err := t.sets.version(tx, organization)
	if err != nil {
		return e, err
	}
	for _, u := range r.Updates {
		e.events = append(e.events, (&cloudevent.Event{
			ID:             id.Derive(id.Event, schemas.TypeSubscriptionUpdated, organization, u.CauseEventID),
			Type:           schemas.TypeSubscriptionUpdated,
			Source:         "/billing",
			Subject:        u.SubscriptionID,
			Organization:   organization,
			OccurredUnixMS: u.OccurredUnixMS,
			AcceptedUnixMS: u.AcceptedUnixMS,
			CorrelationID:  u.CauseEventID,
			CausationID:    u.CauseEventID,
			CauseSource:    u.Snapshot.Cause.Source,
			CauseEventID:   u.Snapshot.Cause.EventId,
			EndpointSet:    set,
			Data:           u.AppendData(make([]byte, 0, 1024)),
		}).Record())
	}
	return e, nil
}

// maxEffect bounds each record that follows from an event. It is half of what Kafka takes, so that a timer, which has no
// event to refuse, always has room for what it changes.
const maxEffect = stream.MaxOutput / 2

func (e *effects) fit() bool {
	largest := max(len(e.record), len(e.snapshot))
	for _, r := range e.events {
		largest = max(largest, len(r.Value))
	}
	return largest <= maxEffect
}

func (t *task) write(tx *stream.Tx, e effects) {
	key := []byte(e.organization)
	if e.record != nil {
		tx.Put(schemas.Billing, key, e.record)
		t.awaitTimer(e.due)
	}
	if e.snapshot != nil {
		tx.Emit(schemas.Entitlements, e.organization, &kgo.Record{Key: key, Value: e.snapshot})
	}
	for _, r := range e.events {
		tx.Emit(schemas.Events, e.organization, r)
	}
}
