package api

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/betterdata/webhooks/internal/httpapi"
)

// listed is an object of a list.
type listed interface {
	GetId() string
	GetCreatedUnixMs() int64
}

// position of an object in a list: its time, then its id.
type position struct {
	createdMS int64
	id        string
}

func positionOf(l listed) position { return position{l.GetCreatedUnixMs(), l.GetId()} }

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.createdMS, q.createdMS), cmp.Compare(p.id, q.id))
}

func (p position) cursor() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(p.createdMS)), p.id...)
}

// parsePosition reads a cursor. One that is too short cannot have come from here and stands before everything.
func parsePosition(cursor []byte) position {
	if len(cursor) < 8 {
		return position{}
	}
	return position{int64(binary.BigEndian.Uint64(cursor)), string(cursor[8:])}
}

// newestFirst sorts a list and gives the page that the parameters ask for.
func newestFirst[T listed](list []T, params httpapi.ListParams) (page []T, next *string) {
	slices.SortFunc(list, func(a, b T) int { return positionOf(b).compare(positionOf(a)) })
	if params.Cursor != nil {
		after := parsePosition(params.Cursor)
		at := slices.IndexFunc(list, func(l T) bool { return positionOf(l).compare(after) < 0 })
		if at < 0 {
			at = len(list)
		}
		list = list[at:]
	}
	if len(list) <= params.Limit {
		return list, nil
	}
	page = list[:params.Limit]
	return page, httpapi.NextCursor(params, positionOf(page[len(page)-1]).cursor())
}
