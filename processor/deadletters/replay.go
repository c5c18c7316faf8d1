package deadletters

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Replay says which letters are replayed.
type Replay struct {
	Filter Filter
	// Again takes those too that were replayed before, but for events: their attempts would be counted anew.
	Again bool
	// DryRun only says which they would be.
	DryRun bool
}

// Tally counts the letters that were chosen.
type Tally struct {
	Replayed int
	// Before are those that were replayed before, Unreplayable those that cannot be.
	Before, Unreplayable int
}

// Bounds of a transaction. It is short: what comes behind its records waits for its end.
const (
	maxLetters         = 200
	maxBytes           = 4 << 20
	transactionTimeout = 10 * time.Second
)

// Run replays, and tells of each letter once that is durable. After an error those that were told of are replayed, and
// those of the last transaction may be: List says it.
func (r Replay) Run(ctx context.Context, cluster kafka.Config, log *slog.Logger, told func(*Letter)) (t Tally, err error) {
	write := func(context.Context, []*Letter) error { return nil }
	if !r.DryRun {
		w, err := newWriter(ctx, cluster, log)
		if err != nil {
			return t, err
		}
		defer w.client.Close()
		write = w.write
	}
	var open []*Letter
	bytes := 0
	flush := func() error {
		if err := write(ctx, open); err != nil {
			return err
		}
		for _, l := range open {
			t.Replayed++
			told(l)
		}
		open, bytes = nil, 0
		return nil
	}
	err = Each(ctx, cluster, r.Filter, log, func(l *Letter) error {
		switch {
		case unreplayable(l.DeadInbound) != "":
			t.Unreplayable++
			return nil
		case !l.Replayed.IsZero() && (!r.Again || l.Topic == schemas.Events):
			t.Before++
			return nil
		}
		open = append(open, l)
		if bytes += proto.Size(l.DeadInbound); len(open) < maxLetters && bytes < maxBytes {
			return nil
		}
		return flush()
	})
	if err != nil {
		return t, err
	}
	return t, flush()
}

// writer writes records and notes in transactions. There is one at a time in a cluster: a new one ends what its
// predecessor has open, and from then on that can write no more.
type writer struct {
	cluster kafka.Config
	client  *kgo.Client
}

// newWriter returns once every note of its predecessors can be read.
func newWriter(ctx context.Context, cluster kafka.Config, log *slog.Logger) (*writer, error) {
	limits := kafka.ProducerLimits{Records: 2 * maxLetters, Bytes: 4 * maxBytes, Timeout: time.Minute}
	client, err := kafka.NewProducer(cluster, limits, log,
		kgo.TransactionalID(cluster.Topic("dead-letters")), kgo.TransactionTimeout(transactionTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", cluster.Brokers, err)
	}
	// The answer comes when the predecessor's transaction is over and its markers are written.
	begun, cancel := context.WithTimeout(ctx, reachable+transactionTimeout)
	defer cancel()
	if _, _, err := client.ProducerID(begun); err != nil {
		client.Close()
		return nil, fmt.Errorf("begin to replay at %v: %w", cluster.Brokers, err)
	}
	return &writer{cluster, client}, nil
}

func (w *writer) write(ctx context.Context, letters []*Letter) error {
	if len(letters) == 0 {
		return nil
	}
	if err := w.client.BeginTransaction(); err != nil {
		return fmt.Errorf("replay %d letters: %w", len(letters), err)
	}
	result := kgo.AbortingFirstErrPromise(w.client)
	for _, l := range letters {
		record := Original(l.DeadInbound)
		record.Topic = w.cluster.Topic(record.Topic)
		w.client.Produce(ctx, record, result.Promise())
		w.client.Produce(ctx, w.note(l, time.Now()), result.Promise())
	}
	err := result.Err()
	// Also when it was told to stop: an open transaction would keep readers waiting.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionTimeout)
	defer cancel()
	if endErr := w.client.EndTransaction(ending, kgo.TransactionEndTry(err == nil)); err == nil {
		err = endErr
	}
	if err != nil {
		return fmt.Errorf("replay %d letters: %w", len(letters), err)
	}
	return nil
}

func (w *writer) note(l *Letter, now time.Time) *kgo.Record {
	value := encode(&webhooksv1.DeadInbound{
		Replayed: &webhooksv1.Replayed{Offset: l.At.Offset, ReplayedUnixMs: now.UnixMilli()},
	})
	return &kgo.Record{Topic: w.cluster.Topic(schemas.InboundDead), Partition: l.At.Partition, Key: l.key, Value: value}
}
