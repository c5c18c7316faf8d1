package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Replay is a range of events that an endpoint is sent again, as it is answered. Total is null until it was counted, and,
// where the endpoint has a filter, until the replay is done.
type Replay struct {
	ID         string   `json:"id"`
	EndpointID string   `json:"endpointId"`
	Since      string   `json:"since"`
	Until      string   `json:"until"`
	EventTypes []string `json:"eventTypes"`
	Only       string   `json:"only"`
	Status     string   `json:"status"`
	Total      *uint64  `json:"total"`
	Done       uint64   `json:"done"`
	CreatedAt  string   `json:"createdAt"`
	EndedAt    *string  `json:"endedAt"`
}

// ReplayView shows a replay.
func ReplayView(r *webhooksv1.Replay) Replay {
	at := func(unixMS int64) string { return httpapi.FormatTime(time.UnixMilli(unixMS)) }
	return Replay{
		ID: r.Id, EndpointID: r.EndpointId, Since: at(r.SinceUnixMs), Until: at(r.UntilUnixMs), EventTypes: orEmpty(r.EventTypes),
		Only: r.Only, Status: r.Status, Total: r.Total, Done: r.Done, CreatedAt: at(r.CreatedUnixMs), EndedAt: httpapi.Time(r.EndedUnixMs),
	}
}

// IsReplayStatus reports whether a replay can have that status.
func IsReplayStatus(s string) bool {
	switch s {
	case schemas.ReplayRunning, schemas.ReplayPaused, schemas.ReplayDone, schemas.ReplayCanceled:
		return true
	}
	return false
}

type replayBody struct {
	Since      *string  `json:"since"`
	Until      *string  `json:"until"`
	EventTypes []string `json:"eventTypes"`
	Only       *string  `json:"only"`
}

// ParseReplay reads the body of POST …/endpoints/{id}/replay. What is accepted from now on is delivered anyway, so the range
// ends now at the latest. The replay lacks its id and the endpoint's version.
func ParseReplay(org, endpoint string, body []byte, nowUnixMS int64) (*webhooksv1.Replay, *httpapi.Problem) {
	var b replayBody
	if err := httpapi.DecodeStrict(body, &b); err != nil {
		return nil, asProblem(err)
	}
	r := &webhooksv1.Replay{
		OrganizationId: org, EndpointId: endpoint, EventTypes: b.EventTypes, Only: schemas.ReplayUndelivered,
		Status: schemas.ReplayRunning, UntilUnixMs: nowUnixMS, CreatedUnixMs: nowUnixMS,
	}
	ed := &edit{}
	b.readBounds(ed, r)
	ed.refuse("/eventTypes", checkPatterns(b.EventTypes))
	if b.Only != nil {
		r.Only = *b.Only
		ed.refuse("/only", checkOnly(r.Only))
	}
	if problem := ed.problem(); problem != nil {
		return nil, problem
	}
	return r, nil
}

// readBounds takes times finer than milliseconds too, rounded up: that keeps since inclusive and until exclusive.
func (b *replayBody) readBounds(ed *edit, r *webhooksv1.Replay) {
	if b.Since == nil {
		ed.refuse("/since", errors.New("is required"))
		return
	}
	since, err := parseTime(*b.Since)
	ed.refuse("/since", err)
	if b.Until != nil {
		until, err := parseTime(*b.Until)
		ed.refuse("/until", err)
		r.UntilUnixMs = min(r.UntilUnixMs, until)
	}
	r.SinceUnixMs, r.CursorUnixMs = since, since
	if len(ed.errors) == 0 && since > r.UntilUnixMs {
		ed.refuse("/since", errors.New("must not be after until, nor in the future"))
	}
}

func parseTime(s string) (unixMS int64, err error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, errors.New("must be a time like 2026-01-31T12:00:00.000Z (RFC 3339)")
	}
	return t.Add(time.Millisecond - 1).UnixMilli(), nil
}

func checkOnly(only string) error {
	known := []string{schemas.ReplayUndelivered, schemas.ReplayFailed, schemas.ReplayMissing, schemas.ReplayAll}
	if slices.Contains(known, only) {
		return nil
	}
	return fmt.Errorf("must be one of %s", strings.Join(known, ", "))
}
