package sink

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestLagIsToldWhileClickHouseIsAwayFromTheStart(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	f.produce(100)
	s := f.start(plainTable(), func(c *Config) {
		c.Prepare = func(context.Context) error { return errors.New("away") }
	})
	require.Eventually(t, func() bool { return s.lag() == 100 }, 10*time.Second, 10*time.Millisecond)
	before := s.age()
	require.Positive(t, before)
	f.produce(50)
	require.Eventually(t, func() bool { return s.lag() == 150 && s.age() > before }, 10*time.Second, 10*time.Millisecond)
	require.Error(t, s.Check(t.Context()))
}

func TestLagIsTheGroupsOnEveryInstance(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	f.produce(100)
	idle := f.start(plainTable(), func(c *Config) {
		c.Prepare = func(context.Context) error { return errors.New("away") }
	})
	require.Eventually(t, func() bool { return idle.lag() == 100 && idle.age() > 0 }, 10*time.Second, 10*time.Millisecond)
	s := f.start(plainTable())
	f.exactlyOnce()
	for _, each := range []*running{s, idle} {
		require.Eventually(t, func() bool { return each.lag() == 0 && each.age() == 0 }, 10*time.Second, 10*time.Millisecond)
	}
}

func TestAgeIsThatOfTheOldestRecordHeld(t *testing.T) {
	s := &Sink{table: plainTable(), workers: map[int32]*worker{}}
	w := newWorker(s, 0, 0, "")
	w.started = true // by nobody: the test moves it
	s.workers[0] = w
	now := time.Now()
	record := func(offset int64) *kgo.Record { return &kgo.Record{Offset: offset} }
	insertUpTo := func(last int64) {
		w.batch.last = last
		w.done()
	}
	require.Zero(t, s.age())
	w.push([]*kgo.Record{record(0), record(1)}, now.Add(-2*time.Hour), 5)
	w.push([]*kgo.Record{record(2), record(3)}, now.Add(-time.Hour), 5)
	w.push([]*kgo.Record{record(4)}, now.Add(-time.Minute), 5)
	hours := func(want float64) {
		t.Helper()
		require.InDelta(t, want*3600, s.age(), 30)
	}
	hours(2)
	insertUpTo(0)
	hours(2)
	insertUpTo(2)
	hours(1)
	insertUpTo(3)
	hours(1. / 60)
	insertUpTo(4)
	require.Zero(t, s.age())
}
