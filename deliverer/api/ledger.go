package api

import (
	"context"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// ledgerMinute is what became of the events accepted in one minute, counted by (event, endpoint).
type ledgerMinute struct {
	Minute    string `json:"minute"`
	Accepted  uint64 `json:"accepted"`
	Delivered uint64 `json:"delivered"`
	Waiting   uint64 `json:"waiting"`
	Dead      uint64 `json:"dead"`
	Unmatched uint64 `json:"unmatched"`

	unixMS int64
}

const ledgerColumns = "minute, accepted, delivered, waiting, dead, unmatched"

// listLedger answers GET …/ledger. since and until bound the minute, so that a minute is always counted whole.
func (a *API) listLedger(ctx context.Context, req *fasthttp.RequestCtx) (any, error) {
	params, err := httpapi.ParseList(req, []string{"since", "until"})
	if err != nil {
		return nil, err
	}
	org := httpapi.Org(req)
	known, err := a.knownUnits(ctx, org, params)
	if err != nil {
		return nil, err
	}
	return agreed(ctx, func() (httpapi.Page[ledgerMinute], bool, error) {
		found, err := a.ledger(ctx, org, params)
		if err != nil {
			return httpapi.Page[ledgerMinute]{}, false, err
		}
		answer := page(params, found, func(m ledgerMinute) position { return position{m.unixMS, org} })
		return answer, countsAll(answer, known), nil
	})
}

// ledger reads a page of lines and one more. An organization has one line a minute, so it stands for the line's id.
func (a *API) ledger(ctx context.Context, org string, params httpapi.ListParams) ([]ledgerMinute, error) {
	return newest(params, "minute", "organization_id", func(bounds where, limit int) ([]ledgerMinute, error) {
		bounds.add("organization_id = ?", org)
		sql := "SELECT " + ledgerColumns + " FROM ledger WHERE " + bounds.sql() + " ORDER BY minute DESC LIMIT ?"
		return query(ctx, a.conn, scanLedgerMinute, sql, append(bounds.args, limit)...)
	})
}

func scanLedgerMinute(rows driver.Rows) (m ledgerMinute, err error) {
	var minute time.Time
	err = rows.Scan(&minute, &m.Accepted, &m.Delivered, &m.Waiting, &m.Dead, &m.Unmatched)
	m.Minute, m.unixMS = httpapi.FormatTime(minute), minute.UnixMilli()
	return m, err
}

// unitsKnownFor is how far back the ledger is held against the events: who has just been shown an event wants it counted.
// It is no longer than the shortest RETENTION, before which rows of one table may be gone and the other's not.
const unitsKnownFor = time.Hour

// knownUnits is how many units the events of each recent minute must make at least, one for each endpoint they matched.
// Events and deliveries are rows of two topics, and either may be there before the other.
func (a *API) knownUnits(ctx context.Context, org string, params httpapi.ListParams) (map[int64]uint64, error) {
	known := map[int64]uint64{}
	if params.Cursor != nil { // the first page has waited
		return known, nil
	}
	var w where
	w.add("organization_id = ?", org)
	w.add("accepted_at >= fromUnixTimestamp64Milli(?, 'UTC')", time.Now().Add(-unitsKnownFor).UnixMilli())
	w.between("minute", params)
	_, err := query(ctx, a.conn, func(rows driver.Rows) (struct{}, error) {
		var minute time.Time
		var units uint64
		err := rows.Scan(&minute, &units)
		known[minute.UnixMilli()] = units
		return struct{}{}, err
	}, "SELECT toStartOfMinute(accepted_at) AS minute, sum(greatest(matched, 1)) FROM events WHERE "+w.sql()+" GROUP BY minute", w.args...)
	return known, err
}

// countsAll reports whether a first page has all units known of its minutes.
func countsAll(p httpapi.Page[ledgerMinute], known map[int64]uint64) bool {
	counted := map[int64]uint64{}
	for _, m := range p.Data {
		counted[m.unixMS] = m.Accepted
	}
	for minute, units := range known {
		onPage := p.NextCursor == nil || minute >= p.Data[len(p.Data)-1].unixMS
		if onPage && counted[minute] < units {
			return false
		}
	}
	return true
}
