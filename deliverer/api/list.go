package api

import (
	"context"
	"encoding/binary"
	"net/http"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// position is where a page ended: a list is ordered by time, then id, newest first.
type position struct {
	unixMS int64
	id     string
}

func (p position) encode() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(p.unixMS)), p.id...)
}

// spans are how far back a list looks for its page, one after the other; 0 is without bound. The tables of a large
// organization are searched by time, and a page of the newest objects is nearly always found in the first hour or day.
var spans = [...]time.Duration{time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 0}

// newest finds a page of a list in order of a time column, newest first, and one object more if there is more. find
// answers the conditions added to its argument, in that order, and keeps to the limit.
func newest[T any](p httpapi.ListParams, timeColumn, idColumn string, find func(bounds where, limit int) ([]T, error)) (found []T, err error) {
	end := time.Now()
	if !p.Until.IsZero() && p.Until.Before(end) {
		end = p.Until
	}
	var bounds where
	if p.Cursor != nil {
		// The router's hash has kept the cursor to this list and its filters.
		if len(p.Cursor) < 8 {
			return nil, httpapi.NewProblem(http.StatusBadRequest, "invalid_parameter", "The parameter cursor is not a nextCursor of this list.")
		}
		unixMS := int64(binary.BigEndian.Uint64(p.Cursor))
		end = time.UnixMilli(unixMS)
		// The first condition follows from the second, and is the one that ClickHouse prunes by.
		bounds.add(timeColumn+" <= fromUnixTimestamp64Milli(?, 'UTC')", unixMS)
		bounds.add("("+timeColumn+", "+idColumn+") < (fromUnixTimestamp64Milli(?, 'UTC'), ?)", unixMS, string(p.Cursor[8:]))
	}
	for _, span := range spans {
		in := p
		if from := end.Add(-span); span > 0 && from.After(p.Since) {
			in.Since = from
		}
		searched := bounds.clone()
		searched.between(timeColumn, in)
		found, err = find(searched, p.Limit+1)
		if err != nil || len(found) > p.Limit || in.Since.Equal(p.Since) {
			return found, err
		}
	}
	return found, nil
}

// page cuts what newest found to a page.
func page[T any](p httpapi.ListParams, found []T, at func(T) position) httpapi.Page[T] {
	if len(found) <= p.Limit {
		return httpapi.NewPage(found, nil)
	}
	found = found[:p.Limit]
	return httpapi.NewPage(found, httpapi.NextCursor(p, at(found[p.Limit-1]).encode()))
}

// between adds a list's bounds on a time. Bounds finer than the table's milliseconds are rounded up, which keeps since
// inclusive and until exclusive.
func (w *where) between(column string, p httpapi.ListParams) {
	if !p.Since.IsZero() {
		w.add(column+" >= fromUnixTimestamp64Milli(?, 'UTC')", ceilMS(p.Since))
	}
	if !p.Until.IsZero() {
		w.add(column+" < fromUnixTimestamp64Milli(?, 'UTC')", ceilMS(p.Until))
	}
}

func ceilMS(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// What one answer shows may be rows of two topics, inserted by sinks that flush when they please: either may be there
// before the other. So it is read again until the two agree. They have to within the 3 s in which an attempt must be
// visible; after that the answer is what there is.
const (
	rowsApart = 3 * time.Second
	rowsAgain = 100 * time.Millisecond
)

// agreed reads until what it reads agrees with itself.
func agreed[T any](ctx context.Context, read func() (found T, agrees bool, err error)) (T, error) {
	for deadline := time.Now().Add(rowsApart); ; {
		found, agrees, err := read()
		if err != nil || agrees || time.Now().After(deadline) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return found, ctx.Err()
		case <-time.After(rowsAgain):
		}
	}
}

// query reads all rows of an answer.
func query[T any](ctx context.Context, conn driver.Conn, scan func(driver.Rows) (T, error), sql string, args ...any) ([]T, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []T
	for rows.Next() {
		row, err := scan(rows)
		if err != nil {
			return nil, err
		}
		found = append(found, row)
	}
	return found, rows.Err()
}
