package routing

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Reasons of rows that the router writes.
const (
	reasonNoAccount = "no_account"
	reasonCommand   = "malformed_command"
	reasonTooLarge  = "too_large"
	reasonUnhandled = "unhandled_type"
)

// retainedHeld is the value of ce_retained on what is handed on.
const retainedHeld = "held"

// unit is one call's work on one transaction.
type unit struct {
	*task
	tx *stream.Tx
	// order is higher in later calls of Process, whatever the clock says. Advance has that of the call whose handing on it
	// continues, and what it begins is the first since then.
	order int64
}

func (u unit) event(in *kgo.Record, e *event) error {
	account := e.key()
	if len(in.Value) > schemas.MaxInboundBody {
		return u.dead(in, e, reasonTooLarge)
	}
	connection, err := u.connection(account)
	if err != nil {
		return err
	}
	if e.ignored != "" {
		u.counts[resultIgnored]++
		return u.row(account, e.row(connection.GetOrganizationId(), schemas.OutcomeIgnored, e.ignored))
	}
	if e.account == "" {
		return u.withoutAccount(in, e)
	}
	if connection != nil {
		return u.connected(in, e, connection)
	}
	if !u.cfg.Handles(e.source, e.eventType) {
		u.counts[resultIgnored]++
		return u.row(account, e.row("", schemas.OutcomeIgnored, reasonUnhandled))
	}
	if e.named != "" {
		return u.learnFirst(in, e)
	}
	return u.keep(in, e)
}

// connected forwards a straggler to whom direct says, or holds it while earlier ones are being handed on.
func (u unit) connected(in *kgo.Record, e *event, connection *webhooksv1.Connection) error {
	live, err := u.get(schemas.Routes, e.key(), &webhooksv1.Route{})
	if err != nil {
		return err
	}
	switch {
	case u.closed.has(e.key()):
		return u.keep(in, e)
	case !live:
		return u.hold(in, e)
	}
	holders, err := u.holders(e.key())
	if err != nil {
		return err
	}
	org, err := u.direct(e, connection, holders, in.Value, u.order)
	if err != nil {
		return err
	}
	if org == "" {
		return u.keep(in, e)
	}
	u.counts[resultForwarded]++
	u.forward(org, in.Value, in.Headers)
	return nil
}

// withoutAccount deals with an event that no connection can ever place.
func (u unit) withoutAccount(in *kgo.Record, e *event) error {
	if !u.cfg.Handles(e.source, e.eventType) {
		u.counts[resultIgnored]++
		return u.row(e.key(), e.row("", schemas.OutcomeIgnored, reasonUnhandled))
	}
	if e.named != "" {
		u.counts[resultForwarded]++
		u.forward(e.named, in.Value, in.Headers)
		return nil
	}
	return u.dead(in, e, reasonNoAccount)
}

// learnFirst learns the organization of an account that none is connected to, and has the account handed over by the one that held
// it last. The event takes its place behind those held.
func (u unit) learnFirst(in *kgo.Record, e *event) error {
	account := e.key()
	holder, err := u.holder(account, nil)
	if err != nil {
		return err
	}
	learned, err := u.learn(e, holder, wholly)
	if err != nil {
		return err
	}
	if u.closed.has(account) {
		return u.keep(in, e)
	}
	more, err := u.handOn(account, learned)
	switch {
	case err != nil:
		return err
	case u.closed.has(account):
		return u.keep(in, e)
	case more:
		u.postpone(account)
		return u.hold(in, e)
	}
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	if err := u.part(learned.OrganizationId, learned, holders, e, in.Value, u.order); err != nil {
		return err
	}
	u.forward(learned.OrganizationId, in.Value, in.Headers)
	return u.goLive(account, learned)
}

// forward puts an event on its organization's topic.
func (u unit) forward(org string, body []byte, headers []kgo.RecordHeader, more ...kgo.RecordHeader) {
	all := cloudevent.WithOrganization(headers, org)
	u.tx.Emit(schemas.Inbound, org, &kgo.Record{Key: []byte(org), Value: body, Headers: append(all, more...)})
}

// dead hands the letter of an event that cannot be used to the owner of its id's partition, who buries it unless it came before.
// What has no id, a command among others, is buried here.
func (u unit) dead(in *kgo.Record, e *event, reason string) error {
	letter := deadletters.New(schemas.InboundUnrouted, in, e.row("", schemas.OutcomeDead, reason), u.tx.Now())
	if eventID := letter.Event.EventId; eventID != "" {
		u.counts[resultForwarded]++
		u.tx.Emit(schemas.Inbound, eventID, deadletters.HandedOn(letter))
		return nil
	}
	u.counts[resultDead]++
	u.tx.Emit(schemas.InboundDead, e.key(), deadletters.Record(letter))
	return u.row(e.key(), letter.Event)
}

func (u unit) row(account string, row *webhooksv1.InboundRow) error {
	value, err := proto.Marshal(row)
	if err != nil {
		return fmt.Errorf("encode row of %s: %w", row.EventId, err)
	}
	u.tx.Emit(schemas.InboundRows, account, &kgo.Record{Key: []byte(row.EventId), Value: value})
	return nil
}

// connection is nil where the account has none.
func (u unit) connection(account string) (*webhooksv1.Connection, error) {
	connection := &webhooksv1.Connection{}
	if ok, err := u.get(schemas.Connections, account, connection); err != nil || !ok {
		return nil, err
	}
	return connection, nil
}

func (u unit) get(store, key string, m proto.Message) (ok bool, err error) {
	value, ok, err := u.tx.Get(store, []byte(key))
	if err != nil || !ok {
		return false, err
	}
	if err := proto.Unmarshal(value, m); err != nil {
		return false, fmt.Errorf("decode %s of %s: %w", store, key, err)
	}
	return true, nil
}

func (u unit) put(store, key string, m proto.Message) error {
	value, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s of %s: %w", store, key, err)
	}
	u.tx.Put(store, []byte(key), value)
	return nil
}
