package deadletters

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"
	"unicode/utf8"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/kafka"
)

// line is a letter as it is listed. Members are always there, so that whoever filters them need not ask.
type line struct {
	EventID       string `json:"eventId"`
	Source        string `json:"source"`
	SourceEventID string `json:"sourceEventId"`
	Organization  string `json:"organizationId"`
	Account       string `json:"account"`
	Type          string `json:"type"`
	Reason        string `json:"reason"`
	ReceivedAt    string `json:"receivedAt"`
	BuriedAt      string `json:"buriedAt"`
	// Of the record; the letter's own place is in letter.
	Topic     string   `json:"topic"`
	Partition int32    `json:"partition"`
	Offset    int64    `json:"offset"`
	Letter    [2]int64 `json:"letter"`
	// ReplayedAt is null for never, Unreplayable null where it can be.
	ReplayedAt   *string `json:"replayedAt"`
	Unreplayable *string `json:"unreplayable"`
	// Body is text, or base64 where it is none.
	Body       *string `json:"body,omitempty"`
	BodyBase64 []byte  `json:"bodyBase64,omitempty"`
}

// List writes the letters that a filter chooses, one JSON object a line.
func List(ctx context.Context, cluster kafka.Config, filter Filter, bodies bool, out io.Writer, log *slog.Logger) error {
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	return Each(ctx, cluster, filter, log, func(l *Letter) error { return lines.Encode(lineOf(l, bodies)) })
}

func lineOf(l *Letter, bodies bool) *line {
	e := l.GetEvent()
	shown := &line{
		EventID: e.GetEventId(), Source: e.GetSource(), SourceEventID: e.GetSourceEventId(), Organization: e.GetOrganizationId(),
		Account: e.GetAccount(), Type: e.GetType(), Reason: e.GetReason(),
		ReceivedAt: httpapi.FormatTime(time.UnixMilli(e.GetReceivedUnixMs())), BuriedAt: httpapi.FormatTime(l.Buried),
		Topic: l.Topic, Partition: l.Partition, Offset: l.Offset, Letter: [2]int64{int64(l.At.Partition), l.At.Offset},
	}
	if !l.Replayed.IsZero() {
		at := httpapi.FormatTime(l.Replayed)
		shown.ReplayedAt = &at
	}
	if why := unreplayable(l.DeadInbound); why != "" {
		shown.Unreplayable = &why
	}
	switch {
	case !bodies || l.Incomplete:
	case utf8.Valid(l.Body):
		text := string(l.Body)
		shown.Body = &text
	default:
		shown.BodyBase64 = l.Body
	}
	return shown
}
