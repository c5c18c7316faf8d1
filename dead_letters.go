package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/betterdata/webhooks/deploy/local"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/settings"
	"github.com/betterdata/webhooks/processor/deadletters"
)

// listDeadLetters is `webhooks dead-letters list`.
func listDeadLetters(ctx context.Context, c settings.ListDeadLetters, stdout, stderr io.Writer) error {
	cluster, err := clusterOf(c.DeadLetters)
	if err != nil {
		return err
	}
	return deadletters.List(ctx, cluster, filterOf(c.DeadLetters, time.Now()), c.Body, stdout, toolLog(stderr))
}

// replayDeadLetters is `webhooks dead-letters replay`. It prints each letter once it is replayed, and then how many were.
func replayDeadLetters(ctx context.Context, c settings.ReplayDeadLetters, stdout, stderr io.Writer) error {
	cluster, err := clusterOf(c.DeadLetters)
	if err != nil {
		return err
	}
	replay := deadletters.Replay{Filter: filterOf(c.DeadLetters, time.Now()), Again: c.Again, DryRun: c.DryRun}
	tally, err := replay.Run(ctx, cluster, toolLog(stderr), func(l *deadletters.Letter) {
		e := l.GetEvent()
		fmt.Fprintf(stdout, "%s  %s %s  →  %s/%d\n", orNone(e.GetEventId()), orNone(e.GetSource()), orNone(e.GetType()), l.Topic, l.Partition)
	})
	done := "replayed"
	if c.DryRun {
		done = "would be replayed"
	}
	fmt.Fprintf(stdout, "%d %s", tally.Replayed, done)
	if tally.Before > 0 {
		fmt.Fprintf(stdout, ", %d already were", tally.Before)
	}
	if tally.Unreplayable > 0 {
		fmt.Fprintf(stdout, ", %d cannot be (list says why)", tally.Unreplayable)
	}
	fmt.Fprintln(stdout)
	if err != nil && ctx.Err() != nil {
		// Not the context's own error, which is taken for success where nothing had begun.
		return errors.New("interrupted; what is left is replayed when it is run again")
	}
	return err
}

// clusterOf finds the cluster, or that of the system that runs on this machine.
func clusterOf(c settings.DeadLetters) (kafka.Config, error) {
	cluster := kafka.Config{Brokers: c.KafkaBrokers, TopicPrefix: string(c.KafkaTopicPrefix)}
	if len(cluster.Brokers) > 0 {
		return cluster, nil
	}
	at, err := local.ReadAddresses(c.DataDir)
	if err != nil {
		return cluster, fmt.Errorf("nothing runs with DATA_DIR %s (%w): start `webhooks run` or say KAFKA_BROKERS", c.DataDir, err)
	}
	cluster.Brokers = []string{at.Kafka}
	return cluster, nil
}

func filterOf(c settings.DeadLetters, now time.Time) deadletters.Filter {
	return deadletters.Filter{
		Reasons: c.Reason, Sources: c.Source, Organizations: c.Org, Types: c.Type, EventIDs: c.EventID,
		Since: c.Since.At(now), Until: c.Until.At(now),
	}
}

// toolLog is for what only matters when something is wrong.
func toolLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
