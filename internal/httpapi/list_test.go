package httpapi

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
)

func list(t *testing.T, uri string) (ListParams, error) {
	t.Helper()
	var ctx fasthttp.RequestCtx
	ctx.Request.SetRequestURI(uri)
	return ParseList(&ctx, []string{"status", "eventType", "since", "until"})
}

func TestParseList(t *testing.T) {
	p, err := list(t, "/v1/x")
	require.NoError(t, err)
	require.Equal(t, 50, p.Limit)
	require.Nil(t, p.Cursor)
	require.True(t, p.Since.IsZero() && p.Until.IsZero())

	p, err = list(t, "/v1/x?limit=250&status=dead&status=waiting&eventType=loop.*&since=2026-01-02T03:04:05.678Z&until=2026-01-02T05:04:05%2B01:00")
	require.NoError(t, err)
	require.Equal(t, 250, p.Limit)
	require.Equal(t, map[string][]string{"status": {"dead", "waiting"}, "eventType": {"loop.*"}}, p.Filters)
	require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), p.Since)
	require.Equal(t, time.Date(2026, 1, 2, 4, 4, 5, 0, time.UTC), p.Until)
}

func TestParseListRefuses(t *testing.T) {
	for name, query := range map[string]string{
		"limit 0":            "limit=0",
		"limit too large":    "limit=251",
		"limit no number":    "limit=ten",
		"limit empty":        "limit=",
		"limit with a sign":  "limit=%2B5",
		"limit negative":     "limit=-5",
		"limit twice":        "limit=1&limit=2",
		"unknown":            "statu=dead",
		"empty filter":       "status=",
		"since no time":      "since=yesterday",
		"until a date":       "until=2026-01-02",
		"since twice":        "since=2026-01-02T00:00:00Z&since=2026-01-02T00:00:00Z",
		"cursor empty":       "cursor=",
		"cursor no base64":   "cursor=%00",
		"cursor cut":         "cursor=AQ",
		"cursor made up":     "cursor=AQAAAAAAAAAAeA",
		"cursor's version 2": "cursor=AgAAAAAAAAAAeA",
	} {
		_, err := list(t, "/v1/x?"+query)
		var p *Problem
		require.ErrorAs(t, err, &p, name)
		require.Equal(t, 400, p.Status, name)
		require.Len(t, p.Errors, 1, name)
	}
}

func TestBoundsAreRefusedWhereAListHasNone(t *testing.T) {
	var ctx fasthttp.RequestCtx
	ctx.Request.SetRequestURI("/v1/x?since=2026-01-02T00:00:00Z")
	_, err := ParseList(&ctx, nil)
	require.Error(t, err)
}

func TestCursorBelongsToItsListAndFilters(t *testing.T) {
	p, err := list(t, "/v1/x?status=dead&status=waiting&limit=2")
	require.NoError(t, err)
	cursor := *NextCursor(p, []byte("position"))

	p, err = list(t, "/v1/x?limit=9&status=waiting&cursor="+cursor+"&status=dead")
	require.NoError(t, err, "another limit and order are no other filters")
	require.Equal(t, "position", string(p.Cursor))

	for name, uri := range map[string]string{
		"fewer filters": "/v1/x?status=dead&cursor=" + cursor,
		"more filters":  "/v1/x?status=dead&status=waiting&eventType=a&cursor=" + cursor,
		"a bound":       "/v1/x?status=dead&status=waiting&since=2026-01-02T00:00:00Z&cursor=" + cursor,
		"another list":  "/v1/y?status=dead&status=waiting&cursor=" + cursor,
	} {
		_, err = list(t, uri)
		require.Error(t, err, name)
	}
	require.Nil(t, NextCursor(p, nil))
}

func TestPageWithoutDataIsAnEmptyArray(t *testing.T) {
	b, err := json.Marshal(NewPage[int](nil, nil))
	require.NoError(t, err)
	require.JSONEq(t, `{"data":[],"nextCursor":null}`, string(b))
}

func FuzzParseList(f *testing.F) {
	f.Add("limit=3&status=x&since=2026-01-02T00:00:00Z&cursor=AQAAAAAAAAAAeA")
	f.Fuzz(func(t *testing.T, query string) {
		var ctx fasthttp.RequestCtx
		ctx.Request.SetRequestURI("/v1/x")
		ctx.URI().SetQueryString(query)
		p, err := ParseList(&ctx, []string{"status", "since", "until"})
		if err != nil {
			var problem *Problem
			require.ErrorAs(t, err, &problem)
			return
		}
		require.True(t, p.Limit >= 1 && p.Limit <= MaxLimit)
	})
}
