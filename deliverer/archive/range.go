package archive

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/eventfilter"
	"github.com/betterdata/webhooks/internal/outbound"
	"github.com/betterdata/webhooks/internal/subscription"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Range is which events a replay delivers: those of an organization accepted from Since on and before Until whose type
// matches, and of which Only holds (schemas) as far as one endpoint is concerned.
type Range struct {
	Organization string
	// Endpoint says by its id whose deliveries count, and by its subscription what it misses.
	Endpoint                 *webhooksv1.Endpoint
	SinceUnixMS, UntilUnixMS int64
	// EventTypes are patterns; none is what the endpoint subscribes to.
	EventTypes []string
	Only       string
}

// Position is a place in a range, whose order is that of acceptance, then of the ids.
type Position struct {
	AcceptedUnixMS int64
	EventID        string
}

// After reports that p is behind other.
func (p Position) After(other Position) bool {
	return cmp.Or(cmp.Compare(p.AcceptedUnixMS, other.AcceptedUnixMS), cmp.Compare(p.EventID, other.EventID)) > 0
}

// Page is what was found of a range, in order.
type Page struct {
	Events []*webhooksv1.OutboundEvent
	// Next is behind all that was looked at; End, that nothing is beyond.
	Next Position
	End  bool
}

const (
	// PageEvents and pageBytes (of bodies) end a page.
	PageEvents = 256
	pageBytes  = 1 << 20
	// A look takes the time of lookEvents, and of a day at most, since all deliveries of that time are read; the next one
	// twice that, up to a week, where nothing was found.
	lookEvents = 4096
	firstSpan  = 24 * time.Hour
	lastSpan   = 7 * 24 * time.Hour
	// pageTime ends a page that has found nothing: how far it came is worth writing down.
	pageTime = 5 * time.Second
)

// Page reads on in a range, from behind a position.
func (a *Archive) Page(ctx context.Context, r Range, after Position) (Page, error) {
	after = later(after, Position{AcceptedUnixMS: r.SinceUnixMS})
	p := &page{Page: Page{Next: after}, match: a.matching(r)}
	began := time.Now()
	for span := firstSpan; !p.full() && !p.End && time.Since(began) < pageTime; span = min(2*span, lastSpan) {
		until, err := a.lookUntil(ctx, r, p.Next, span)
		var more bool
		if err == nil {
			more, err = p.look(ctx, a, r, until)
		}
		if err != nil {
			return Page{}, fmt.Errorf("read events of %s: %w", r.Organization, err)
		}
		if !more {
			p.Next = later(p.Next, Position{AcceptedUnixMS: until})
			p.End = until >= r.UntilUnixMS
		}
	}
	return p.Page, nil
}

// lookUntil is how far a look behind a position goes.
func (a *Archive) lookUntil(ctx context.Context, r Range, after Position, span time.Duration) (int64, error) {
	until := min(after.AcceptedUnixMS+span.Milliseconds(), r.UntilUnixMS)
	condition, args := r.events(after, until)
	var last int64
	err := a.conn.QueryRow(ctx, "SELECT toUnixTimestamp64Milli(accepted_at) FROM events WHERE "+condition+
		" ORDER BY accepted_at, event_id LIMIT 1 OFFSET ?", append(args, lookEvents-1)...).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return until, nil
	}
	return min(until, last+1), err
}

func later(a, b Position) Position {
	if b.After(a) {
		return b
	}
	return a
}

// page is a Page on its way.
type page struct {
	Page
	match matching
	bytes int
}

func (p *page) full() bool { return len(p.Events) >= PageEvents || p.bytes >= pageBytes }

// look reads what is between the page's end and a time, in order; more says that it stopped before that.
func (p *page) look(ctx context.Context, a *Archive, r Range, until int64) (more bool, err error) {
	query, args := r.query(eventColumns+", theirs.event_id != '' AS has", p.Next, until)
	rows, err := a.conn.Query(ctx, query+" ORDER BY accepted_at, events.event_id LIMIT ?", append(args, PageEvents)...)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	read := 0
	for ; rows.Next(); read++ {
		if p.full() {
			return true, nil
		}
		var has uint8
		e, err := scanEvent(rows, r.Organization, &has)
		if err != nil {
			return false, err
		}
		p.Next = Position{e.GetAcceptedUnixMs(), e.GetId()}
		if has == 1 || p.match.wants(e) {
			p.Events = append(p.Events, e.OutboundEvent)
			p.bytes += len(e.GetBody())
		}
	}
	return read == PageEvents, rows.Err()
}

// Count is how many events a range has. known is false where the endpoint has a filter that would have to be run over all
// of them.
func (a *Archive) Count(ctx context.Context, r Range) (n uint64, known bool, err error) {
	if r.Endpoint.Filter != nil && r.Only != schemas.ReplayFailed {
		return 0, false, nil
	}
	for from := r.SinceUnixMS; from < r.UntilUnixMS; from += firstSpan.Milliseconds() {
		query, args := r.query("count()", Position{AcceptedUnixMS: from}, min(from+firstSpan.Milliseconds(), r.UntilUnixMS))
		var found uint64
		if err := a.conn.QueryRow(ctx, query, args...).Scan(&found); err != nil {
			return 0, false, fmt.Errorf("count events of %s: %w", r.Organization, err)
		}
		n += found
	}
	return n, true, nil
}

// Events reads those events that the record still has.
func (a *Archive) Events(ctx context.Context, organization string, wanted []*webhooksv1.TakenEvent) ([]*webhooksv1.OutboundEvent, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	ids := make([]string, len(wanted))
	oldest, newest := wanted[0].GetAcceptedUnixMs(), wanted[0].GetAcceptedUnixMs()
	for i, e := range wanted {
		ids[i] = e.GetEventId()
		oldest, newest = min(oldest, e.GetAcceptedUnixMs()), max(newest, e.GetAcceptedUnixMs())
	}
	rows, err := a.conn.Query(ctx, "SELECT "+eventColumns+` FROM events WHERE organization_id = ?
		AND accepted_at BETWEEN fromUnixTimestamp64Milli(?, 'UTC') AND fromUnixTimestamp64Milli(?, 'UTC') AND event_id IN (?)
		ORDER BY accepted_at, event_id LIMIT 1 BY event_id`, organization, oldest, newest, ids)
	if err != nil {
		return nil, fmt.Errorf("read events of %s: %w", organization, err)
	}
	defer rows.Close()
	var found []*webhooksv1.OutboundEvent
	for rows.Next() {
		e, err := scanEvent(rows, organization)
		if err != nil {
			return nil, fmt.Errorf("read events of %s: %w", organization, err)
		}
		found = append(found, e.OutboundEvent)
	}
	return found, rows.Err()
}

const between = "accepted_at >= fromUnixTimestamp64Milli(?, 'UTC') AND accepted_at < fromUnixTimestamp64Milli(?, 'UTC')"

// events is the condition of the range's events behind a position and before a time, whatever became of them.
func (r Range) events(after Position, until int64) (condition string, args []any) {
	condition = "organization_id = ? AND " + between + " AND (accepted_at, events.event_id) > (fromUnixTimestamp64Milli(?, 'UTC'), ?)"
	args = append(args, r.Organization, after.AcceptedUnixMS, until, after.AcceptedUnixMS, after.EventID)
	if len(r.EventTypes) > 0 {
		asked, values := ofTypes(subscription.Parse(r.EventTypes))
		condition, args = condition+" AND "+asked, append(args, values...)
	}
	return condition, args
}

// query selects of these the ones that Only holds of, loops and types looked at, and the filter not. A delivery has its event's
// accepted_at, which both tables are sorted by.
func (r Range) query(columns string, after Position, until int64) (query string, args []any) {
	theirs := `SELECT event_id, max(status IN ('delivered', 'waiting')) AS settled FROM deliveries FINAL
		WHERE organization_id = ? AND endpoint_id = ? AND ` + between + ` AND status != 'unmatched' AND test = 0 GROUP BY event_id`
	args = append(args, r.Organization, r.Endpoint.GetId(), after.AcceptedUnixMS, until)
	condition, values := r.events(after, until)
	args = append(args, values...)
	query = "SELECT " + columns + " FROM events LEFT ANY JOIN (" + theirs + ") AS theirs ON theirs.event_id = events.event_id WHERE " + condition
	wanted, values := ofTypes(subscription.Parse(r.Endpoint.GetEventTypes()))
	if loops := r.Endpoint.GetLoopIds(); len(loops) > 0 {
		wanted, values = "("+wanted+" AND JSONExtractString(data, 'loopId') IN (?))", append(values, loops)
	}
	switch r.Only {
	case schemas.ReplayFailed:
		return query + " AND theirs.event_id != '' AND settled = 0", args
	case schemas.ReplayMissing:
		query += " AND theirs.event_id = '' AND " + wanted
	case schemas.ReplayUndelivered:
		query += " AND settled = 0 AND (theirs.event_id != '' OR " + wanted + ")"
	default:
		query += " AND (theirs.event_id != '' OR " + wanted + ")"
	}
	return query, append(args, values...)
}

// ofTypes is subscription.Patterns.Match as a condition.
func ofTypes(p subscription.Patterns) (condition string, args []any) {
	conditions := []string{"0"}
	if p.All {
		conditions = append(conditions, "type NOT IN (?)")
		args = append(args, []string{schemas.TypeEndpointDisabled, schemas.TypeDeliveryExhausted})
	}
	if len(p.Exact) > 0 {
		conditions = append(conditions, "type IN (?)")
		args = append(args, p.Exact)
	}
	for _, prefix := range p.Prefixes {
		conditions = append(conditions, "startsWith(type, ?)")
		args = append(args, prefix)
	}
	return "(" + strings.Join(conditions, " OR ") + ")", args
}

// matching is what an endpoint's subscription says of an event beyond its type.
type matching struct {
	loops    subscription.Loops
	filtered bool
	filter   *eventfilter.Filter
}

// matching compiles the endpoint's filter. With one that does not compile nothing matches, as in fan-out.
func (a *Archive) matching(r Range) matching {
	m := matching{loops: r.Endpoint.GetLoopIds(), filtered: r.Endpoint.Filter != nil}
	if m.filtered {
		m.filter, _ = a.filters.Compile(r.Endpoint.GetFilter())
	}
	return m
}

func (m matching) wants(e *archived) bool {
	if loopID, err := subscription.LoopID(e.data); err != nil || !m.loops.Match(loopID) {
		return false
	}
	if !m.filtered || m.filter == nil {
		return !m.filtered
	}
	decoded, err := eventfilter.Decode(e.GetBody())
	if err != nil {
		return false
	}
	match, err := m.filter.Match(decoded)
	return err == nil && match
}

// archived is an event of the record.
type archived struct {
	*webhooksv1.OutboundEvent
	data []byte
}

const eventColumns = `events.event_id, type, source, subject, toUnixTimestamp64Milli(occurred_at), toUnixTimestamp64Milli(accepted_at),
	correlation_id, causation_id, schema_version, data`

// scanEvent makes an event as it was sent: its row has all that the body is made of.
func scanEvent(rows driver.Rows, organization string, more ...any) (*archived, error) {
	e := cloudevent.Event{Organization: organization}
	var (
		version uint16
		data    string
	)
	if err := rows.Scan(append([]any{&e.ID, &e.Type, &e.Source, &e.Subject, &e.OccurredUnixMS, &e.AcceptedUnixMS, &e.CorrelationID,
		&e.CausationID, &version, &data}, more...)...); err != nil {
		return nil, err
	}
	e.Data = []byte(data)
	return &archived{&webhooksv1.OutboundEvent{
		Id: e.ID, OrganizationId: organization, Type: e.Type, AcceptedUnixMs: e.AcceptedUnixMS, Body: outbound.Body(&e, int(version)),
	}, e.Data}, nil
}
