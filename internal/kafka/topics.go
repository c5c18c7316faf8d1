package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// planKey is the key of the PartitionPlan on the control topic.
const planKey = "partitions"

// ErrPartitions is returned by EnsureTopics when the configured partition count is not the permanent one.
var ErrPartitions = errors.New("partition counts are permanent")

// ErrCleanup is returned by EnsureTopics when a topic that was there loses, or keeps, what it must not.
var ErrCleanup = errors.New("wrong cleanup")

// EnsureTopics creates the topics that are missing, records the partition plan on the control topic and asserts it,
// and asserts every topic's partition count, cleanup policy and retentions: state on a topic that deletes would be lost.
// Many instances may run it at once. It returns ErrPartitions when cfg.Partitions is not what the topics were created
// with, ErrCleanup when a topic made beforehand has another policy, or keeps for less than it must; it waits for a cluster
// that is not there yet until ctx ends.
func EnsureTopics(ctx context.Context, cfg Config, log *slog.Logger) error {
	if cfg.Partitions < 1 || cfg.ReplicationFactor < 1 {
		return fmt.Errorf("create topics: partitions %d and replication factor %d must be at least 1", cfg.Partitions, cfg.ReplicationFactor)
	}
	client, err := NewProducer(cfg, ProducerLimits{Records: 1, Bytes: schemas.MaxRecordBytes, Timeout: time.Minute}, log)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	defer client.Close()
	e := ensurer{cfg: cfg, client: client, adm: kadm.NewClient(client), log: log}
	if err := e.waitReachable(ctx); err != nil {
		return err
	}
	topics := schemas.Topics()
	for _, t := range topics {
		if t.Name == schemas.Control {
			if err := e.create(ctx, []schemas.Topic{t}); err != nil {
				return err
			}
		}
	}
	if err := e.agreeOnPlan(ctx); err != nil {
		return err
	}
	if err := e.create(ctx, topics); err != nil {
		return err
	}
	if err := e.assert(ctx, topics); err != nil {
		return err
	}
	return e.assertCleanup(ctx, topics)
}

type ensurer struct {
	cfg    Config
	client *kgo.Client
	adm    *kadm.Client
	log    *slog.Logger
}

// waitReachable tells who is waiting for what: a start order problem should be one log line, not a silent hang.
func (e *ensurer) waitReachable(ctx context.Context) error {
	for told := false; ; {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := e.client.Ping(try)
		cancel()
		if err == nil {
			return nil
		}
		if !told {
			e.log.Warn("waiting for Kafka", "brokers", e.cfg.Brokers, "error", err)
			told = true
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("reach Kafka at %v: %w", e.cfg.Brokers, err)
		}
	}
}

func (e *ensurer) partitions(t schemas.Topic) int32 {
	if t.Partitions > 0 {
		return t.Partitions
	}
	return e.cfg.Partitions
}

// create makes the missing ones of topics; that another instance was faster is no error.
func (e *ensurer) create(ctx context.Context, topics []schemas.Topic) error {
	details, err := e.describe(ctx, topics)
	if err != nil {
		return err
	}
	for _, t := range topics {
		if details[e.cfg.Topic(t.Name)].Err == nil {
			continue
		}
		_, err := e.adm.CreateTopic(ctx, e.partitions(t), e.cfg.ReplicationFactor, e.settings(t), e.cfg.Topic(t.Name))
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", e.cfg.Topic(t.Name), err)
		}
	}
	return nil
}

func (e *ensurer) describe(ctx context.Context, topics []schemas.Topic) (kadm.TopicDetails, error) {
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = e.cfg.Topic(t.Name)
	}
	details, err := e.adm.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	return details, nil
}

func (e *ensurer) settings(t schemas.Topic) map[string]*string {
	s := map[string]*string{
		"max.message.bytes":              kadm.StringPtr(strconv.Itoa(schemas.MaxRecordBytes)),
		"min.insync.replicas":            kadm.StringPtr(strconv.Itoa(min(2, int(e.cfg.ReplicationFactor)))),
		"unclean.leader.election.enable": kadm.StringPtr("false"),
	}
	if t.Compact {
		s["delete.retention.ms"] = kadm.StringPtr(millis(schemas.TombstoneRetention))
	}
	s["cleanup.policy"] = kadm.StringPtr(cleanupPolicy(t))
	if t.Retention > 0 {
		s["retention.ms"] = kadm.StringPtr(millis(t.Retention))
	}
	return s
}

func cleanupPolicy(t schemas.Topic) string {
	switch {
	case t.Compact && t.Retention > 0:
		return "compact,delete"
	case t.Compact:
		return "compact"
	}
	return "delete"
}

// assertCleanup checks what topics that were made beforehand lose and when. A broker that has not heard of a topic yet is
// asked again.
func (e *ensurer) assertCleanup(ctx context.Context, topics []schemas.Topic) error {
	want := map[string]schemas.Topic{}
	var names []string
	for _, t := range topics {
		names = append(names, e.cfg.Topic(t.Name))
		want[e.cfg.Topic(t.Name)] = t
	}
	for {
		configs, err := e.adm.DescribeTopicConfigs(ctx, names...)
		for _, c := range configs {
			if err == nil {
				err = c.Err
			}
			if c.Err != nil {
				continue
			}
			if wrong := wrongCleanup(c, want[c.Name]); wrong != "" {
				return fmt.Errorf("topic %s has %s: %w; set it with kafka-configs.sh", c.Name, wrong, ErrCleanup)
			}
		}
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("read the settings of topics: %w", err)
		}
	}
}

// wrongCleanup says which setting of a topic is not as it must be, "" for none. A topic may keep for longer than it must.
func wrongCleanup(c kadm.ResourceConfig, t schemas.Topic) string {
	// Brokers give the list in the order it was set.
	got := strings.Split(setting(c, "cleanup.policy"), ",")
	slices.Sort(got)
	if policy := strings.Join(got, ","); policy != cleanupPolicy(t) {
		return fmt.Sprintf("cleanup.policy %s, not %s", policy, cleanupPolicy(t))
	}
	least := map[string]time.Duration{"retention.ms": t.Retention}
	if t.Compact {
		// Local stores rely on it: one that is younger than half of it has missed no tombstone.
		least["delete.retention.ms"] = schemas.TombstoneRetention
	}
	for key, d := range least {
		ms, err := strconv.ParseInt(setting(c, key), 10, 64)
		if err == nil && ms >= 0 && ms < d.Milliseconds() { // -1: for ever
			return fmt.Sprintf("%s %d, less than %d", key, ms, d.Milliseconds())
		}
	}
	return ""
}

func setting(c kadm.ResourceConfig, key string) string {
	for _, entry := range c.Configs {
		if entry.Key == key {
			return entry.MaybeValue()
		}
	}
	return ""
}

// assert checks the partition counts, waiting for topics just made to be known.
func (e *ensurer) assert(ctx context.Context, topics []schemas.Topic) error {
	for {
		details, err := e.describe(ctx, topics)
		if err != nil {
			return err
		}
		missing := ""
		for _, t := range topics {
			d := details[e.cfg.Topic(t.Name)]
			if d.Err != nil || len(d.Partitions) == 0 {
				missing = e.cfg.Topic(t.Name)
				continue
			}
			if got, want := len(d.Partitions), int(e.partitions(t)); got != want {
				return fmt.Errorf("topic %s has %d partitions, not %d: %w; keys would move, do not alter topics",
					e.cfg.Topic(t.Name), got, want, ErrPartitions)
			}
		}
		if missing == "" {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for topic %s to be known: %w", missing, err)
		}
	}
}

// agreeOnPlan makes the first plan record on the control topic binding. Of two instances that write one at the same
// time the first in the log wins; the other, if it differs, writes the winner's again, so that compaction, which keeps
// the last, keeps the right one, and fails.
func (e *ensurer) agreeOnPlan(ctx context.Context) error {
	plan, err := e.readPlan(ctx)
	if err != nil {
		return err
	}
	wrote := false
	if plan == nil {
		wrote = true
		err := e.writePlan(ctx, &webhooksv1.PartitionPlan{
			Partitions: uint32(e.cfg.Partitions), Generation: 1, CreatedUnixMs: time.Now().UnixMilli(),
		})
		if err != nil {
			return err
		}
		if plan, err = e.readPlan(ctx); err != nil {
			return err
		}
		if plan == nil {
			return fmt.Errorf("partition plan written to %s cannot be read back", e.cfg.Topic(schemas.Control))
		}
	}
	if plan.Partitions == uint32(e.cfg.Partitions) {
		return nil
	}
	if wrote {
		if err := e.writePlan(ctx, plan); err != nil {
			return err
		}
	}
	return fmt.Errorf("KAFKA_PARTITIONS is %d, the topics were created with %d: %w; set %d",
		e.cfg.Partitions, plan.Partitions, ErrPartitions, plan.Partitions)
}

func (e *ensurer) writePlan(ctx context.Context, plan *webhooksv1.PartitionPlan) error {
	value, err := proto.Marshal(plan)
	if err != nil {
		return fmt.Errorf("encode partition plan: %w", err)
	}
	r := &kgo.Record{Topic: e.cfg.Topic(schemas.Control), Key: []byte(planKey), Value: value}
	if err := e.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("write partition plan: %w", err)
	}
	return nil
}

// readPlan reads the control topic from its start to its end as of now; nil when there is no plan on it.
func (e *ensurer) readPlan(ctx context.Context) (*webhooksv1.PartitionPlan, error) {
	topic := e.cfg.Topic(schemas.Control)
	end, err := e.controlEnd(ctx, topic)
	if err != nil || end == 0 {
		return nil, err
	}
	client, err := kgo.NewClient(append(Options(e.cfg, e.log),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		for r := range fetches.RecordsAll() {
			if string(r.Key) == planKey {
				plan := new(webhooksv1.PartitionPlan)
				if err := proto.Unmarshal(r.Value, plan); err != nil {
					return nil, fmt.Errorf("decode partition plan at %s offset %d: %w", topic, r.Offset, err)
				}
				return plan, nil
			}
			if r.Offset >= end-1 {
				return nil, nil
			}
		}
	}
}

// controlEnd waits for the topic's leader too: a topic just made has none for a moment.
func (e *ensurer) controlEnd(ctx context.Context, topic string) (int64, error) {
	for {
		ends, err := e.adm.ListEndOffsets(ctx, topic)
		if err == nil {
			end, ok := ends.Lookup(topic, 0)
			if ok && end.Err == nil {
				return end.Offset, nil
			}
			err = end.Err
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("find the end of %s: %w", topic, err)
		}
	}
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
