package routing

import (
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	// sequenceDigits is the width of an event's place in its account: the offset it had here, so that keys sort.
	sequenceDigits = 20
	// handingOnPrefix begins the key of an account's marker. No source's name has a "!".
	handingOnPrefix = "!handing-on/"
)

// Bounds of what one call hands on, and of the hand-overs that it gives up. A transaction closes at 1,000 inputs or 8 MB of
// outputs. They are a call's, so that what becomes of an account whose events they hold does not depend on what else is in
// the transaction: it is connected, all of them are handed on, and only what comes later finds it moved.
const (
	maxHandedOn      = 256
	maxHandedOnBytes = 4 << 20
	maxGivenUp       = 256
)

// budget is what a call has handed on, and the hand-overs that it has had given up.
type budget struct{ events, bytes, givenUp int }

func (b *budget) used() bool { return b.events >= maxHandedOn || b.bytes >= maxHandedOnBytes }

func heldPrefix(account string) []byte { return []byte(account + "/") }

// keep holds an event that waits for its account: to be connected, or to be handed over.
func (u unit) keep(in *kgo.Record, e *event) error {
	if err := u.hold(in, e); err != nil {
		return err
	}
	return u.row(e.key(), e.row("", schemas.OutcomeUnrouted, ""))
}

// hold keeps an event behind those of its account that are held already.
func (u unit) hold(in *kgo.Record, e *event) error {
	u.counts[resultHeld]++
	held := &webhooksv1.HeldEvent{Body: in.Value}
	for _, h := range in.Headers {
		held.Headers = append(held.Headers, &webhooksv1.Header{Key: []byte(h.Key), Value: h.Value})
	}
	return u.put(schemas.UnroutedHeld, fmt.Sprintf("%s%0*d", heldPrefix(e.key()), sequenceDigits, in.Offset), held)
}

// goOn hands on what is held of a connected account, in order, as far as the transaction's budget goes. With the last
// one the account goes live; else a marker says that there is more. While the account is handed over, all of it waits.
func (u unit) goOn(account string) error {
	connection, err := u.connection(account)
	if err != nil {
		return err
	}
	if connection == nil {
		// Disconnected meanwhile, or connected by a transaction that was aborted.
		delete(u.handingOn, account)
		return nil
	}
	if u.closed.has(account) {
		u.rest(account)
		return nil
	}
	more, err := u.handOn(account, connection)
	switch {
	case err != nil:
		return err
	case u.closed.has(account):
		u.rest(account)
		return nil
	case more:
		u.postpone(account)
		return nil
	}
	return u.goLive(account, connection)
}

// postpone leaves the rest of what an account holds to later calls of Advance, which have the order of this one.
func (u unit) postpone(account string) {
	if _, on := u.handingOn[account]; !on {
		u.handingOn[account] = u.order
		u.tx.Put(schemas.UnroutedHeld, []byte(handingOnPrefix+account), strconv.AppendInt(nil, u.order, 10))
	}
}

// rest ends the handing on, for good or until something else starts it again.
func (u unit) rest(account string) {
	if _, on := u.handingOn[account]; on {
		delete(u.handingOn, account)
		u.tx.Delete(schemas.UnroutedHeld, []byte(handingOnPrefix+account))
	}
}

// goLive lets edges write directly, but where the account is shared.
func (u unit) goLive(account string, connection *webhooksv1.Connection) error {
	u.rest(account)
	holders, err := u.holders(account)
	if err != nil {
		return err
	}
	route := &webhooksv1.Route{OrganizationId: connection.OrganizationId, Learned: connection.Learned}
	if len(holders.KeeperOrganizationIds) > 0 {
		route.OrganizationId = ""
	}
	return u.put(schemas.Routes, account, route)
}

// handOn reports whether something is left: the rest waits where the account has to be handed over first.
func (u unit) handOn(account string, connection *webhooksv1.Connection) (more bool, err error) {
	prefix := heldPrefix(account)
	var keys [][]byte
	var events []*webhooksv1.HeldEvent
	var failed error
	err = u.tx.Scan(schemas.UnroutedHeld, prefix, nil, func(key, value []byte) bool {
		if len(key) != len(prefix)+sequenceDigits {
			return true // of an account whose name begins with this one's and a slash
		}
		if u.spent.used() {
			more = true
			return false
		}
		held := &webhooksv1.HeldEvent{}
		if failed = proto.Unmarshal(value, held); failed != nil {
			return false
		}
		keys, events = append(keys, append([]byte(nil), key...)), append(events, held)
		u.spent.events++
		u.spent.bytes += len(value)
		return true
	})
	if err != nil {
		return false, err
	}
	if failed != nil {
		return false, fmt.Errorf("decode held event of %s: %w", account, failed)
	}
	holders, err := u.holders(account)
	if err != nil {
		return false, err
	}
	for i, held := range events {
		headers := headersOf(held)
		e := readEvent(&kgo.Record{Headers: headers})
		place, _ := strconv.ParseInt(string(keys[i][len(prefix):]), 10, 64) // its offset
		org, err := u.direct(&e, connection, holders, held.Body, place+1)
		if err != nil || org == "" {
			return true, err
		}
		u.forward(org, held.Body, headers, kgo.RecordHeader{Key: schemas.HeaderRetained, Value: []byte(retainedHeld)})
		u.tx.Delete(schemas.UnroutedHeld, keys[i])
		u.counts[resultHandedOn]++
	}
	return more, nil
}

func headersOf(held *webhooksv1.HeldEvent) []kgo.RecordHeader {
	headers := make([]kgo.RecordHeader, 0, len(held.Headers)+2)
	for _, h := range held.Headers {
		headers = append(headers, kgo.RecordHeader{Key: string(h.Key), Value: h.Value})
	}
	return headers
}
