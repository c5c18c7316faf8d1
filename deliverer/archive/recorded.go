package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// stretch is a part of the way of an event: the log of a partition, and the group that takes it further.
type stretch struct {
	topic, group string
	partition    int32
	// end is that of the log when the stretches before it were through; -1 = not asked for.
	end int64
}

func sinkOf(table string) string { return schemas.GroupSinkPrefix + table }

// Recorded begins to find out whether the record has every event of the organization that was accepted before the call, and
// what its deliveries to the endpoint had come to. What it returns is asked until it says so; it is not safe for
// concurrent use.
//
// An event is on `inbound` before it is answered. So once the owner of its organization has passed the end that `inbound`
// has now, the event is on `events` or before the end that `events` has then; and so on to the tables, whose sinks commit
// an offset once all rows before it are inserted. Events that the router holds are not the organization's yet.
func (a *Archive) Recorded(organization, endpoint string) func(context.Context) (bool, error) {
	org, ep := a.cfg.PartitionOf(organization), a.cfg.PartitionOf(endpoint)
	way := [][]stretch{
		{{schemas.Inbound, schemas.GroupInbound, org, -1}},
		{{schemas.Events, schemas.GroupFanOut, org, -1}},
		{
			{schemas.EventRows, sinkOf("events"), org, -1},
			{schemas.DeliveryRows, sinkOf("deliveries"), org, -1},
			{schemas.DeliveryRows, sinkOf("deliveries"), ep, -1},
		},
	}
	return func(ctx context.Context) (bool, error) {
		for ; len(way) > 0; way = way[1:] {
			for i := range way[0] {
				if through, err := a.through(ctx, &way[0][i]); err != nil || !through {
					return false, err
				}
			}
		}
		return true, nil
	}
}

// through reports that a stretch's group has passed the end.
func (a *Archive) through(ctx context.Context, s *stretch) (bool, error) {
	at, err := a.position(ctx, s)
	if err != nil || at >= s.end {
		return err == nil, err
	}
	// What is left may be no more than the mark of a transaction's end.
	next, err := kafka.NextRecord(ctx, a.client, a.cfg.Topic(s.topic), s.partition, at)
	return err == nil && next >= s.end, err
}

// position is where a stretch's group stands, which is no earlier than the log's start. The stretch's end is asked for at
// the first call.
func (a *Archive) position(ctx context.Context, s *stretch) (int64, error) {
	topic := a.cfg.Topic(s.topic)
	if s.end < 0 {
		end, err := offset(topic, s.partition)(a.admin.ListEndOffsets(ctx, topic))
		if err != nil {
			return 0, fmt.Errorf("find the end of %s/%d: %w", topic, s.partition, err)
		}
		s.end = end
	}
	from, err := offset(topic, s.partition)(a.admin.ListStartOffsets(ctx, topic))
	if err != nil {
		return 0, fmt.Errorf("find the start of %s/%d: %w", topic, s.partition, err)
	}
	group := a.cfg.Topic(s.group)
	committed, err := a.admin.FetchOffsetsForTopics(ctx, group, topic)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return 0, fmt.Errorf("fetch the offsets of %s: %w", group, err)
	}
	if at, ok := committed.Lookup(topic, s.partition); ok && at.Err == nil {
		from = max(from, at.At)
	}
	return from, nil
}

// offset picks a partition's.
func offset(topic string, partition int32) func(kadm.ListedOffsets, error) (int64, error) {
	return func(listed kadm.ListedOffsets, err error) (int64, error) {
		if err == nil {
			err = listed.Error()
		}
		if err != nil {
			return 0, err
		}
		at, ok := listed.Lookup(topic, partition)
		if !ok {
			return 0, errors.New("there is no such partition")
		}
		return at.Offset, nil
	}
}
