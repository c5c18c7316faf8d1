package brokerlog_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/betterdata/webhooks/deploy/local"
)

// Each transaction of a writer writes its number to every partition of both topics, and commits it as an offset.
const (
	parts = 4
	// table is compacted, and one key a writer is written again and again; journal keeps all.
	table, journal = "table", "journal"
	// plain is written without transactions.
	plain = "plain"
)

func start(ctx context.Context, folder string) (*local.Broker, error) {
	return local.StartBroker(ctx, local.BrokerConfig{Folder: folder, Addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
}

func makeTopics(ctx context.Context, addr string) error {
	c, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return err
	}
	defer c.Close()
	adm := kadm.NewClient(c)
	for _, topic := range []string{table, journal, plain} {
		policy := "delete"
		if topic == table {
			policy = "compact"
		}
		_, err := adm.CreateTopic(ctx, parts, 1, map[string]*string{"cleanup.policy": &policy}, topic)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return err
		}
	}
	return nil
}

type writer struct {
	name string
	c    *kgo.Client
	// plain is the id of the topic whose offsets are committed (KIP-1319).
	plain kadm.TopicID
}

func newWriter(ctx context.Context, addr, name string) (*writer, error) {
	c, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.TransactionalID(name), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, err
	}
	topics, err := kadm.NewClient(c).ListTopics(ctx, plain)
	return &writer{name, c, topics[plain].ID}, err
}

// write is one transaction.
func (w *writer) write(ctx context.Context, n int64) error {
	if err := w.c.BeginTransaction(); err != nil {
		return err
	}
	value := binary.BigEndian.AppendUint64(nil, uint64(n))
	var records []*kgo.Record
	for p := range int32(parts) {
		for _, topic := range []string{table, journal} {
			records = append(records, &kgo.Record{Topic: topic, Partition: p, Key: []byte(w.name), Value: value})
		}
	}
	if err := w.c.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	if err := w.commitOffset(ctx, n); err != nil {
		return err
	}
	return w.c.EndTransaction(ctx, kgo.TryCommit)
}

func (w *writer) commitOffset(ctx context.Context, n int64) error {
	id, epoch, err := w.c.ProducerID(ctx)
	if err != nil {
		return err
	}
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = w.name, id, epoch, w.name
	added, err := add.RequestWith(ctx, w.c)
	if err == nil {
		err = kerr.ErrorForCode(added.ErrorCode)
	}
	if err != nil {
		return err
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Group = w.name, id, epoch, w.name
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID = plain, w.plain
	for p := range int32(2) {
		part := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset = p, n
		topic.Partitions = append(topic.Partitions, part)
	}
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, w.c)
	if err != nil {
		return err
	}
	for _, part := range resp.Topics[0].Partitions {
		err = errors.Join(err, kerr.ErrorForCode(part.ErrorCode))
	}
	return err
}

// held is what a read committed reader finds: by topic/partition the numbers of each writer, in order.
type held map[string]map[string][]int64

// readAll reads all topics to the end of the log; it fails when the end never comes.
func readAll(t *testing.T, addr string) held {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeTopics(table, journal, plain),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(50*time.Millisecond))
	require.NoError(t, err)
	defer c.Close()
	ends, err := kadm.NewClient(c).ListEndOffsets(ctx, table, journal, plain)
	require.NoError(t, err)
	missing := map[string]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			missing[place(o.Topic, o.Partition)] = o.Offset
		}
	})
	found := held{}
	for len(missing) > 0 {
		fetches := c.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "the reader is stuck before the ends %v", missing)
		fetches.EachRecord(func(r *kgo.Record) {
			at := place(r.Topic, r.Partition)
			if r.Offset+1 >= missing[at] {
				delete(missing, at)
			}
			if r.Attrs.IsControl() {
				return
			}
			if found[at] == nil {
				found[at] = map[string][]int64{}
			}
			found[at][string(r.Key)] = append(found[at][string(r.Key)], int64(binary.BigEndian.Uint64(r.Value)))
		})
	}
	return found
}

func place(topic string, partition int32) string { return fmt.Sprint(topic, "/", partition) }

// offsets are what a writer has committed.
func offsets(t *testing.T, addr, writer string) []int64 {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(addr))
	require.NoError(t, err)
	defer c.Close()
	fetched, err := kadm.NewClient(c).FetchOffsets(t.Context(), writer)
	if !errors.Is(err, kerr.GroupIDNotFound) { // nothing is committed yet
		require.NoError(t, err)
	}
	var all []int64
	for p := range int32(2) {
		at := int64(0)
		if o, ok := fetched.Lookup(plain, p); ok {
			at = o.At
		}
		all = append(all, at)
	}
	return all
}

// requireWhole starts a broker on a copy of the folder, as a SIGKILL left it, and checks that each transaction is there
// in all partitions with its offsets, or in none; it returns the last number of each writer, and the plain records.
func requireWhole(t *testing.T, folder string, writers ...string) (last map[string]int64, plainRecords int) {
	t.Helper()
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(folder)))
	began := time.Now()
	b, err := start(t.Context(), copied)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Stop()) }()
	require.NoError(t, makeTopics(t.Context(), b.Addr()))
	found := readAll(t, b.Addr())
	require.Less(t, time.Since(began), 10*time.Second)
	last = map[string]int64{}
	for _, w := range writers {
		want := found[place(journal, 0)][w]
		for i, n := range want {
			require.EqualValues(t, i+1, n, "transactions of %s, in order and once: %v", w, want)
			last[w] = n
		}
		for p := range int32(parts) {
			require.Equal(t, want, found[place(journal, p)][w], "partition %d of the journal of %s", p, w)
			if numbers := found[place(table, p)][w]; last[w] > 0 {
				require.NotEmpty(t, numbers, "partition %d of the table of %s", p, w)
				require.Equal(t, last[w], numbers[len(numbers)-1], "partition %d of the table of %s", p, w)
			}
		}
		require.Equal(t, []int64{last[w], last[w]}, offsets(t, b.Addr(), w), "offsets of %s", w)
	}
	for p := range int32(parts) {
		plainRecords += len(found[place(plain, p)][plain])
	}
	return last, plainRecords
}
