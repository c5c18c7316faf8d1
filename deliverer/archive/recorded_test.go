package archive_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/deliverer/archive"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

// way is the logs that an event goes along, and the groups that take it further, in the test's hand.
type way struct {
	t      *testing.T
	cfg    kafka.Config
	client *kgo.Client
	admin  *kadm.Client
	asked  func(context.Context) (bool, error)
}

func newWay(t *testing.T) *way {
	t.Helper()
	cfg := testenv.FakeKafka(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("writer"))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return &way{t: t, cfg: cfg, client: client, admin: kadm.NewClient(client)}
}

// ask begins to ask, as of now.
func (w *way) ask(endpoint string) {
	w.t.Helper()
	a, err := archive.New(w.cfg, nil, slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	w.t.Cleanup(a.Close)
	w.asked = a.Recorded(org, endpoint)
}

func (w *way) recorded() bool {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	all, err := w.asked(ctx)
	require.NoError(w.t, err)
	return all
}

// write produces a record in a transaction, which leaves its mark behind it.
func (w *way) write(topic, key string) {
	w.t.Helper()
	require.NoError(w.t, w.client.BeginTransaction())
	r := &kgo.Record{Topic: w.cfg.Topic(topic), Partition: w.cfg.PartitionOf(key), Value: []byte("x")}
	require.NoError(w.t, w.client.ProduceSync(w.t.Context(), r).FirstErr())
	require.NoError(w.t, w.client.EndTransaction(w.t.Context(), kgo.TryCommit))
}

// pass has a group commit that it is done with so many offsets.
func (w *way) pass(group, topic, key string, offset int64) {
	w.t.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(w.cfg.Topic(topic), w.cfg.PartitionOf(key), offset, -1)
	_, err := w.admin.CommitOffsets(w.t.Context(), w.cfg.Topic(group), offsets)
	require.NoError(w.t, err)
}

func TestTheRecordIsCompleteOnceAllStretchesArePassed(t *testing.T) {
	w := newWay(t)
	ep := id.Derive(id.Endpoint, "a")
	w.write(schemas.Inbound, org)
	w.ask(ep)
	require.False(t, w.recorded(), "nobody has read the event")
	w.write(schemas.Inbound, org) // later than asked
	w.write(schemas.Events, org)
	w.pass(schemas.GroupInbound, schemas.Inbound, org, 1)
	require.False(t, w.recorded(), "what is left before the end is a mark; the event is on its way to fan-out")
	w.write(schemas.EventRows, org)
	w.write(schemas.DeliveryRows, ep)
	w.pass(schemas.GroupFanOut, schemas.Events, org, 2)
	require.False(t, w.recorded(), "its rows are not in the tables")
	w.pass("sink.events", schemas.EventRows, org, 1)
	require.False(t, w.recorded(), "nor that of its delivery")
	w.pass("sink.deliveries", schemas.DeliveryRows, ep, 1)
	require.True(t, w.recorded())
	require.True(t, w.recorded(), "and stays so")
}

func TestTheRecordOfNothingIsComplete(t *testing.T) {
	w := newWay(t)
	w.ask(id.Derive(id.Endpoint, "a"))
	require.True(t, w.recorded())
}
