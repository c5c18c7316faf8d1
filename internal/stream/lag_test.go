package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
)

// TestLagInTime follows a partition whose first input record is written at noon plus a second, the n-th at noon plus n.
func TestLagInTime(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	noon := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }
	record := func(n int) *kgo.Record { return &kgo.Record{Offset: int64(n - 1), Timestamp: at(n)} }
	process := func(n int) func(*owned, *shared) {
		return func(o *owned, _ *shared) { require.NoError(t, o.process(record(n), at(n))) }
	}
	read := func(ns ...int) func(*owned, *shared) {
		return func(o *owned, _ *shared) {
			o.backlog = nil
			for _, n := range ns {
				o.backlog, o.end = append(o.backlog, record(n)), int64(n)
			}
		}
	}
	seen := func(end int64) func(*owned, *shared) {
		return func(_ *owned, s *shared) { s.saw(map[int32]kadm.ListedOffset{0: {Offset: end}}) }
	}
	type step struct {
		at     int
		do     func(*owned, *shared)
		waited int
	}
	for name, steps := range map[string][]step{
		"nothing has ever come":                       {{at: 0}, {at: 3600}},
		"one has come and is not read":                {{at: 0}, {1, seen(1), 1}, {at: 5, waited: 5}},
		"after an idle hour, too":                     {{at: 0}, {at: 3600}, {3601, seen(1), 1}},
		"read, it tells its age":                      {{at: 0}, {at: 10}, {20, read(4, 5), 16}, {at: 30, waited: 26}},
		"a backlog that is there at the start, read":  {{at: 3600}, {3600, read(1, 2), 3599}},
		"the next one is younger than the last taken": {{at: 0}, {9, seen(100), 9}, {10, process(4), 6}, {at: 20, waited: 16}},
		"caught up": {{at: 0}, {9, seen(1), 9}, {10, process(1), 0}, {at: 20}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newSolo(t, db, 0, "").o
			s := &shared{places: map[int32]*place{0: {since: at(steps[0].at)}}}
			for _, step := range steps {
				if step.do != nil {
					step.do(o, s)
				}
				s.places[0].stand(o, at(step.at))
				require.EqualValues(t, step.waited, s.waited(at(step.at)).Seconds(), "at %d", step.at)
			}
		})
	}
}
