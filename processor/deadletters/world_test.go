package deadletters

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// world is a cluster with letters, as the processor leaves them: in transactions.
type world struct {
	t       *testing.T
	cluster kafka.Config
	client  *kgo.Client
}

func newWorld(t *testing.T) *world {
	cluster := testenv.Kafka(t)
	client, err := kafka.NewProducer(cluster, kafka.ProducerLimits{Records: 1000, Bytes: 16 << 20, Timeout: time.Minute},
		slog.New(slog.DiscardHandler), kgo.TransactionalID(cluster.Topic("processor")), kgo.TransactionTimeout(10*time.Second))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return &world{t, cluster, client}
}

// letter is about a record of org's, with headers that no text could be made of.
func (w *world) letter(topic, eventID, org string) *webhooksv1.DeadInbound {
	row := rowOf(eventID)
	row.SourceEventId, row.OrganizationId = "of_"+eventID, org
	record := &kgo.Record{
		Key: []byte(org), Value: fmt.Appendf(nil, `{"id":%q}`, eventID), Partition: w.cluster.PartitionOf(org),
		Headers: []kgo.RecordHeader{{Key: "ce_eventid", Value: []byte(eventID)}, {Key: "\xff", Value: nil}, {Key: "b", Value: []byte{}}},
	}
	return New(topic, record, row, time.Now())
}

// bury writes letters in one transaction.
func (w *world) bury(letters ...*webhooksv1.DeadInbound) { w.end(kgo.TryCommit, letters...) }

func (w *world) end(how kgo.TransactionEndTry, letters ...*webhooksv1.DeadInbound) {
	w.t.Helper()
	w.open(letters...)
	require.NoError(w.t, w.client.EndTransaction(w.t.Context(), how))
}

func (w *world) open(letters ...*webhooksv1.DeadInbound) {
	w.t.Helper()
	require.NoError(w.t, w.client.BeginTransaction())
	for _, l := range letters {
		value, err := proto.Marshal(l)
		require.NoError(w.t, err)
		w.write(&kgo.Record{
			Topic: w.cluster.Topic(schemas.InboundDead), Partition: w.cluster.PartitionOf(l.Event.OrganizationId),
			Key: []byte(l.Event.EventId), Value: value,
		})
	}
}

func (w *world) write(r *kgo.Record) {
	w.t.Helper()
	require.NoError(w.t, w.client.ProduceSync(w.t.Context(), r).FirstErr())
}

// found are the event ids of the letters that a filter chooses, and those that were replayed.
func (w *world) found(f Filter) (all, replayed []string) {
	w.t.Helper()
	require.NoError(w.t, Each(w.t.Context(), w.cluster, f, slog.New(slog.DiscardHandler), func(l *Letter) error {
		all = append(all, l.Event.EventId)
		if !l.Replayed.IsZero() {
			require.WithinDuration(w.t, time.Now(), l.Replayed, time.Minute)
			replayed = append(replayed, l.Event.EventId)
		}
		return nil
	}))
	return all, replayed
}

// replay returns the event ids that were told of.
func (w *world) replay(r Replay) (ids []string, t Tally) {
	w.t.Helper()
	t, err := r.Run(w.t.Context(), w.cluster, slog.New(slog.DiscardHandler), func(l *Letter) { ids = append(ids, l.Event.EventId) })
	require.NoError(w.t, err)
	return ids, t
}

// records are the committed ones of a topic.
func (w *world) records(topic string) (all []*kgo.Record) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cluster.Brokers...), kgo.ConsumeTopics(w.cluster.Topic(topic)),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	require.NoError(w.t, err)
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, w.cluster.Topic(topic))
	require.NoError(w.t, err)
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(w.t, fetches.Err())
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() {
				all = append(all, r)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return all
}
