package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/schemas"
)

// watch sees how far a group has come, from what is committed.
type watch struct {
	cluster kafka.Config
	group   string
	client  *kgo.Client
	adm     *kadm.Client
}

func newWatch(cluster kafka.Config, group string) (*watch, error) {
	client, err := kgo.NewClient(kafka.Options(cluster, slog.New(slog.DiscardHandler))...)
	if err != nil {
		return nil, err
	}
	return &watch{cluster, cluster.Topic(group), client, kadm.NewClient(client)}, nil
}

func (w *watch) close() { w.client.Close() }

// committed is the sum of the group's offsets: no records but the corpus are on the topic, which begins at 0.
func (w *watch) committed(ctx context.Context) (sum int, err error) {
	offsets, err := w.adm.FetchOffsets(ctx, w.group)
	if kerr.IsRetriable(err) { // the coordinator is being made
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("see how far %s is: %w", w.group, err)
	}
	for _, o := range offsets[w.cluster.Topic(schemas.Inbound)] {
		sum += int(max(0, o.At))
	}
	return sum, nil
}

// removeTopics gives the disk back.
func (w *watch) removeTopics(ctx context.Context) error {
	topics, err := w.adm.ListTopics(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, name := range topics.Names() {
		if strings.HasPrefix(name, w.cluster.TopicPrefix) {
			names = append(names, name)
		}
	}
	_, err = w.adm.DeleteTopics(ctx, names...)
	return err
}
