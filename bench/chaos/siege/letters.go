package siege

import (
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/processor/dedupe"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// letterOf is the router's letter of a record on `inbound.unrouted`.
func letterOf(r *kgo.Record, row *webhooksv1.InboundRow) string {
	row.Outcome, row.Reason = schemas.OutcomeDead, "no_account"
	return canonical(deadletters.New(schemas.InboundUnrouted, r, row, time.Time{}))
}

// handedOnLetter is the letter that a record on `inbound` hands on, nil where it is none.
func handedOnLetter(r *kgo.Record) *webhooksv1.DeadInbound {
	header := func(key string) string { return kafka.ReadHeader(r.Headers, key) }
	return deadletters.ReadHandedOn(header(schemas.HeaderSource), header(schemas.HeaderType), r.Value)
}

// letters crosses off those that the router has handed to a partition, and expects the first of each event to be buried there.
// It gives the inputs that are none, and the events that were buried.
func (j *judge) letters(inputs []*kgo.Record) (others []*kgo.Record, buried []dedupe.Key) {
	for _, r := range inputs {
		letter := handedOnLetter(r)
		if letter == nil {
			others = append(others, r)
			continue
		}
		j.routers(schemas.Inbound, canonical(letter))
		key := dedupe.KeyOf(letter.Event.Source, letter.Event.Account, letter.Event.EventId)
		if slices.Contains(buried, key) {
			continue
		}
		buried = append(buried, key)
		j.expect(schemas.InboundDead, canonical(letter))
		j.expect(schemas.InboundRows, canonical(letter.Event))
	}
	return others, buried
}
