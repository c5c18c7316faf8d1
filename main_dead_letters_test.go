package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deploy/local"
	"github.com/betterdata/webhooks/internal/settings"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// TestDeadLettersOfTheRunningSystem is what an operator does: look, choose, replay, and find that it was done.
func TestDeadLettersOfTheRunningSystem(t *testing.T) {
	cluster := testenv.FakeKafka(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	for i, reason := range []string{"malformed", "too_large"} {
		letter, err := proto.Marshal(deadletters.New(schemas.Inbound, &kgo.Record{Value: []byte(`{"a":1}`), Partition: 2}, &webhooksv1.InboundRow{
			Source: "stripe", EventId: fmt.Sprintf("evt_%d", i), OrganizationId: "acme", Type: "invoice.paid", Reason: reason,
		}, time.Now()))
		require.NoError(t, err)
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: cluster.Topic(schemas.InboundDead), Value: letter}).FirstErr())
	}
	dir := t.TempDir()
	require.NoError(t, local.WriteAddresses(dir, local.Addresses{Kafka: cluster.Brokers[0]}))
	tool := func(args string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		args += " --data-dir=" + dir + " --kafka-topic-prefix=" + cluster.TopicPrefix
		require.Equal(t, exitOK, run(strings.Fields("dead-letters "+args), &stdout, &stderr), stderr.String())
		require.Empty(t, stderr.String())
		return stdout.String()
	}

	lines := strings.Split(strings.TrimSpace(tool("list --reason malformed,other --since 1h --body")), "\n")
	require.Len(t, lines, 1)
	var listed map[string]any
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &listed))
	require.Equal(t, "evt_0", listed["eventId"])
	require.Equal(t, `{"a":1}`, listed["body"])
	require.Empty(t, tool("list --until 1h"))

	replayed := "evt_0  stripe invoice.paid  →  inbound/2\n"
	require.Equal(t, replayed+"1 would be replayed\n", tool("replay --event-id evt_0 --dry-run"))
	require.Equal(t, replayed+"1 replayed\n", tool("replay --event-id evt_0"))
	require.Equal(t, "evt_1  stripe invoice.paid  →  inbound/2\n1 replayed, 1 already were\n", tool("replay --org acme --type invoice.paid"))
	require.Equal(t, 2, strings.Count(tool("list --source stripe"), `"replayedAt":"`))
}

func TestAnInterruptedReplayIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := settings.ReplayDeadLetters{DeadLetters: settings.DeadLetters{KafkaBrokers: testenv.FakeKafka(t).Brokers}}
	err := replayDeadLetters(ctx, c, io.Discard, io.Discard)
	require.ErrorContains(t, err, "interrupted")
	require.NotErrorIs(t, err, context.Canceled)
}

func TestDeadLettersOfNoSystem(t *testing.T) {
	for name, args := range map[string]string{
		"not running": "list --data-dir=" + filepath.Join(t.TempDir(), "none"), "not there": "replay --kafka-brokers=127.0.0.1:1",
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, exitFailed, run(strings.Fields("dead-letters "+args), &stdout, &stderr))
			require.Contains(t, stderr.String(), "webhooks dead-letters")
		})
	}
}
