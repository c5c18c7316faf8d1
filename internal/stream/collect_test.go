package stream

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/store"
)

// crowded is a task without room.
type crowded struct{ counter }

func (*crowded) Full() bool { return true }

func TestAPartitionIsPolledOnlyWhenWhatComesHasAPlace(t *testing.T) {
	db, err := store.OpenMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	waiting := func(n int) []*kgo.Record { return make([]*kgo.Record, n) }
	for name, c := range map[string]struct {
		task    Task
		backlog int
		session int
		paused  bool
		enough  bool
	}{
		"nothing waits, the task is full":       {task: &crowded{}},
		"a record waits, there is room":         {task: &counter{}, backlog: 1},
		"a record waits, the task is full":      {task: &crowded{}, backlog: 1, enough: true},
		"many wait":                             {task: &counter{}, backlog: maxBacklogRecords, enough: true},
		"the session's budget is spent":         {task: &counter{}, backlog: 1, session: maxBacklogBytes, enough: true},
		"spent, by other partitions' backlogs":  {task: &counter{}, session: maxBacklogBytes},
		"paused, until its backlog is used up":  {task: &counter{}, backlog: 1, paused: true, enough: true},
		"paused, and its backlog is used up":    {task: &counter{}, paused: true},
		"paused, used up, and the task is full": {task: &crowded{}, paused: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSolo(t, db, 0, "")
			s.o.task, s.o.backlog, s.o.paused = c.task, waiting(c.backlog), c.paused
			require.Equal(t, c.enough, s.o.hasEnough(c.session))
		})
	}
}

func TestBacklogsAreCountedTogether(t *testing.T) {
	s := &session{}
	a, b := &owned{}, &owned{}
	records := []*kgo.Record{
		{Key: []byte("k"), Value: []byte("value"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("123")}}},
		{Value: []byte("v")},
	}
	s.backlogBytes += a.take(records)
	s.backlogBytes += b.take(records)
	require.Equal(t, 22, s.backlogBytes)
	s.dropBacklog(a)
	require.Equal(t, 11, s.backlogBytes)
	s.dropBacklog(b)
	require.Zero(t, s.backlogBytes)
	require.Empty(t, b.backlog)
}

func TestPartitionsAreWrittenAsRanges(t *testing.T) {
	for want, ids := range map[string][]int32{
		"": nil, "4": {4}, "0-3,7": {0, 1, 2, 3, 7}, "1,3-4": {1, 3, 4}, "0,2,4": {0, 2, 4}, "0-63": ids(64),
	} {
		require.Equal(t, want, ranges(ids))
	}
}

func ids(n int32) (out []int32) {
	for i := range n {
		out = append(out, i)
	}
	return out
}
