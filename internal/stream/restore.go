package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/betterdata/webhooks/internal/store"
)

// A restore brings the stores of some partitions to the end of their changelogs. The end is the high watermark, asked
// for read uncommitted before reading begins; reading is read committed and goes on until past it. So what a writer
// committed whose markers are still under way, or what a dead writer left open, is waited for, not missed.
type restore struct {
	g     *Group
	log   *slog.Logger
	tails map[tailKey]*tail
	lost  map[*owned]bool // to another session of this process
	count int64
	left  int64 // as last exported
	held  int   // bytes read and not written
}

// restore runs beside the loop; a letter tells of each partition when it is ready.
func (s *session) restore(parts []*owned) {
	began := time.Now()
	starts, err := s.inputStarts(s.restoring)
	told := map[*owned]bool{}
	tell := func(o *owned, err error) {
		told[o] = true
		s.g.metrics.restoreTime.Add(time.Since(began).Seconds())
		s.mail.put(letter{restored: o, start: starts[o.id], err: err})
	}
	if err == nil {
		err = s.g.restoreTails(s.restoring, s.log, parts, func(o *owned) { tell(o, nil) })
	}
	for _, o := range parts {
		// Without an error the rest is given up, or another session of this process has it: its loss is under way.
		if !told[o] && err != nil {
			tell(o, err)
		}
	}
}

// restoreNow is the same within the loop, for partitions that are at work.
func (s *session) restoreNow(ctx context.Context, parts []*owned) error {
	return s.g.restoreTails(ctx, s.log, parts, func(*owned) {})
}

// inputStarts are the first offsets of the input's partitions.
func (s *session) inputStarts(ctx context.Context) (map[int32]int64, error) {
	listed, err := s.g.adm.ListStartOffsets(ctx, s.input)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list start offsets of %s: %w", s.input, err)
	}
	starts := map[int32]int64{}
	for id, o := range listed[s.input] {
		starts[id] = o.Offset
	}
	return starts, nil
}

// restoreTails calls ready for each partition whose stores are current. It returns when all are, or given up.
func (g *Group) restoreTails(ctx context.Context, log *slog.Logger, parts []*owned, ready func(*owned)) error {
	r := &restore{g: g, log: log, tails: map[tailKey]*tail{}, lost: map[*owned]bool{}}
	if err := r.plan(ctx, parts); err != nil {
		return err
	}
	began := time.Now()
	waiting := map[*owned]int{}
	for _, t := range r.tails {
		waiting[t.o]++
	}
	for _, o := range parts {
		if waiting[o] == 0 && !r.lost[o] {
			ready(o)
		}
	}
	if len(r.tails) == 0 {
		return nil
	}
	err := r.read(ctx, func(o *owned) {
		if waiting[o]--; waiting[o] == 0 {
			ready(o)
		}
	})
	if took := time.Since(began); took > 2*time.Second {
		log.Info("state restored", "records", r.count, "seconds", took.Seconds())
	}
	return err
}

// plan decides for each store what of it can be kept, and what is to be read. Stores that are current need no reading.
func (r *restore) plan(ctx context.Context, parts []*owned) error {
	spec := &r.g.spec
	if len(spec.Stores) == 0 {
		return nil
	}
	began := time.Now()
	names := make([]string, len(spec.Stores))
	for i := range spec.Stores {
		names[i] = r.g.cfg.Kafka.Topic(spec.Stores[i].Topic)
	}
	topics, err := r.g.adm.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("look up changelogs: %w", err)
	}
	if err := topics.Error(); err != nil {
		return fmt.Errorf("look up changelogs: %w; topics are made at start (kafka.EnsureTopics)", err)
	}
	ends, err := r.g.adm.ListEndOffsets(ctx, names...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets of changelogs: %w", err)
	}
	starts, err := r.g.adm.ListStartOffsets(ctx, names...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("list start offsets of changelogs: %w", err)
	}
	for _, o := range parts {
		o.topics = o.topics[:0]
		for i, name := range names {
			o.topics = append(o.topics, topics[name].ID)
			start, _ := starts.Lookup(name, o.id)
			end, _ := ends.Lookup(name, o.id)
			t := &tail{o: o, i: i, topic: name, target: end.Offset, moved: began, began: began, age: began}
			if err := r.begin(ctx, t, start.Offset); err != nil {
				return err
			}
			if t.from.offset < t.target {
				r.tails[tailKey{name, o.id}] = t
				continue
			}
			err := t.apply(ctx, t.began)
			if errors.Is(err, store.ErrSuperseded) {
				r.lost[o] = true
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// begin finds where to read from, wiping a store that cannot be trusted.
func (r *restore) begin(ctx context.Context, t *tail, start int64) error {
	pos, ok, err := t.o.store.Position(t.i)
	if err != nil {
		return err
	}
	t.load = t.o.store.Load(t.i, t.o.spec.Stores[t.i].Index)
	t.from = position{pos.Offset, pos.LeaderEpoch}
	reason := ""
	if ok {
		if reason, err = r.distrust(ctx, t, pos, start); err != nil {
			return err
		}
	}
	if ok && reason == "" {
		if pos.AppliedAt.Before(t.began) {
			t.age = pos.AppliedAt
		}
		return nil
	}
	if ok {
		r.log.Warn("local state cannot be trusted and is rebuilt", "topic", t.topic, "partition", t.o.id, "reason", reason)
		r.g.metrics.wiped.Inc()
	}
	t.wipe(start)
	return nil
}

func (t *tail) wipe(start int64) {
	t.load.Wipe()
	t.from = position{start, -1}
}

// distrust says why a store is not a prefix of its changelog, or "".
func (r *restore) distrust(ctx context.Context, t *tail, pos store.Position, start int64) (string, error) {
	spec := &t.o.spec.Stores[t.i]
	log := store.Log{TopicID: t.o.topics[t.i], Start: start, End: t.target, ByAge: spec.ByAge}
	if why := pos.Distrust(log, t.began); why != "" {
		return why, nil
	}
	switch {
	case pos.IndexVersion != spec.IndexVersion:
		return "its index was made by other rules", nil
	case pos.LeaderEpoch < 0:
		return "", nil
	}
	// KIP-101: the log up to the offset is the one that was read if the epoch it was read in did not end before it.
	var req kadm.OffsetForLeaderEpochRequest
	req.Add(t.topic, t.o.id, pos.LeaderEpoch)
	resp, err := r.g.adm.OffsetForLeaderEpoch(ctx, req)
	if err != nil {
		return "", fmt.Errorf("check epoch %d of %s/%d: %w", pos.LeaderEpoch, t.topic, t.o.id, err)
	}
	end := resp[t.topic][t.o.id]
	if end.Err != nil {
		return "", fmt.Errorf("check epoch %d of %s/%d: %w", pos.LeaderEpoch, t.topic, t.o.id, end.Err)
	}
	if end.EndOffset < pos.Offset {
		return fmt.Sprintf("epoch %d ended at offset %d, before the store's %d", pos.LeaderEpoch, end.EndOffset, pos.Offset), nil
	}
	return "", nil
}
