package commands

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// outcomes tails `command-outcomes`, read committed, from its end, and wakes whoever waits for a command. Outcomes of
// other instances' commands pass by.
type outcomes struct {
	cfg    kafka.Config
	client *kgo.Client
	log    *slog.Logger
	// tailing is true once every partition is read from an offset that was its end, or before it.
	tailing atomic.Bool

	mu      sync.Mutex
	waiting map[string]chan *webhooksv1.CommandOutcome
}

func newOutcomes(cfg kafka.Config, log *slog.Logger) (*outcomes, error) {
	client, err := kgo.NewClient(append(kafka.Options(cfg, log),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Outcomes that retention took are too old for anyone to wait for.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("client for command outcomes: %w", err)
	}
	return &outcomes{cfg: cfg, client: client, log: log, waiting: map[string]chan *webhooksv1.CommandOutcome{}}, nil
}

// expect registers interest in a command's outcome; it is called before the command is sent. forget ends it.
func (o *outcomes) expect(command string) (outcome <-chan *webhooksv1.CommandOutcome, forget func()) {
	ch := make(chan *webhooksv1.CommandOutcome, 1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting[command] = ch
	return ch, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.waiting, command)
	}
}

func (o *outcomes) arrived(outcome *webhooksv1.CommandOutcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ch := o.waiting[outcome.CommandId]; ch != nil {
		// A command that is carried out twice says so twice; the first answer stands.
		select {
		case ch <- outcome:
		default:
		}
	}
}

// run tails until ctx ends.
func (o *outcomes) run(ctx context.Context) error {
	defer o.client.Close()
	starts, err := backoff.Retry(ctx, func() (map[int32]kgo.Offset, error) { return o.ends(ctx) },
		backoff.WithBackOff(backoff.NewConstantBackOff(250*time.Millisecond)), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return nil
	}
	o.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{o.topic(): starts})
	o.tailing.Store(true)
	for {
		fetches := o.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachError(func(_ string, p int32, err error) {
			o.log.Warn("command outcomes cannot be read; writes are answered 202 meanwhile", "partition", p, "error", err)
		})
		fetches.EachRecord(func(r *kgo.Record) {
			var outcome webhooksv1.CommandOutcome
			if err := proto.Unmarshal(r.Value, &outcome); err != nil {
				o.log.Error("unreadable command outcome skipped", "partition", r.Partition, "offset", r.Offset, "error", err)
				return
			}
			o.arrived(&outcome)
		})
	}
}

// ends is where each partition ends now. Exact offsets, unlike "the end", cannot come to mean a later one.
func (o *outcomes) ends(ctx context.Context) (map[int32]kgo.Offset, error) {
	listed, err := kadm.NewClient(o.client).ListEndOffsets(ctx, o.topic())
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the end of %s: %w", o.topic(), err)
	}
	starts := map[int32]kgo.Offset{}
	for p, end := range listed[o.topic()] {
		starts[p] = kgo.NewOffset().At(end.Offset)
	}
	if len(starts) == 0 {
		return nil, fmt.Errorf("topic %s has no partitions", o.topic())
	}
	return starts, nil
}

func (o *outcomes) topic() string { return o.cfg.Topic(schemas.CommandOutcomes) }
