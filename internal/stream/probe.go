package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/betterdata/webhooks/internal/kafka"
)

// stalled is how long a tail may stand still before it is asked why.
const stalled = 2 * time.Second

// probe asks the cluster why nothing comes between a tail's position and its target. Three answers:
//   - the last stable offset is below the target: a transaction is open there, and is waited for; the cluster ends it
//     after its time-out;
//   - the log now ends below the target: it was truncated, and the target with it;
//   - the stable log goes on, but with nothing that a reader is shown (kafka.NextVisible): the position is after that.
func (r *restore) probe(ctx context.Context, t *tail) error {
	ends, err := r.g.adm.ListEndOffsets(ctx, t.topic)
	if err != nil {
		return fmt.Errorf("list end offsets of %s: %w", t.topic, err)
	}
	if end, ok := ends.Lookup(t.topic, t.o.id); ok && end.Err == nil && end.Offset < t.target {
		r.log.Warn("changelog was truncated while it was read", "topic", t.topic, "partition", t.o.id, "end", end.Offset)
		t.target = end.Offset
	}
	next, stable, err := kafka.NextVisible(ctx, r.g.client, t.topic, t.o.id, t.from.offset)
	if err != nil {
		return err
	}
	t.from.offset = min(next, t.target)
	if stable < t.target {
		r.log.Info("waiting for an open transaction on a changelog", "topic", t.topic, "partition", t.o.id,
			"offset", t.from.offset, "stable", stable, "target", t.target)
	}
	return nil
}
