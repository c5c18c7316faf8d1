package sink

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
)

// forgetGroup makes Kafka lose a group's offsets, as it does some days after the group's last member left.
func (f *fixture) forgetGroup(group string) {
	f.t.Helper()
	_, err := kadm.NewClient(f.producer).DeleteGroup(f.t.Context(), f.kafka.Topic(group))
	require.NoError(f.t, err)
}

func TestRowsAreNotInsertedAgainWhenKafkaForgetsTheGroup(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	s := f.start(plainTable())
	f.produce(100)
	f.exactlyOnce()
	f.settled()
	s.stop()
	f.forgetGroup("sink.inbound_events")

	// One partition has news, the others are as they were.
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(1, f.now), f.record(1, f.now)).FirstErr())
	s = f.start(plainTable())
	f.exactlyOnce()
	f.settled()
	f.produce(50)
	f.exactlyOnce()
	require.Zero(t, counted(s, resultStopped))
}

// The group is lost while the last INSERT of a killed owner is still on its way.
func TestInsertUnderWayIsWaitedForWhenKafkaForgetsTheGroup(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	frozen := f.start(plainTable())
	f.produce(40)
	f.exactlyOnce()
	f.proxy.breakNext(delayInsert, 1, 400*time.Millisecond)
	require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(0, f.now), f.record(0, f.now)).FirstErr())
	require.Eventually(t, func() bool { return f.proxy.hit.Load() <= 0 }, 10*time.Second, time.Millisecond)
	frozen.kill()
	f.forgetGroup("sink.inbound_events")

	f.start(plainTable())
	f.exactlyOnce()
	f.proxy.allCome(t)
	f.exactlyOnce()
	f.settled()
}

func TestReplacingTableIsInsertedAgainWhenKafkaForgetsTheGroup(t *testing.T) {
	t.Parallel()
	f := quickFixture(t)
	rows := func() uint64 { return f.query("SELECT count() FROM deliveries FINAL WHERE status = 'delivered'") }
	s := f.start(replacingTable())
	f.putDelivery("a", "delivered", 1, 0)
	require.Eventually(t, func() bool { return rows() == 1 }, 20*time.Second, 10*time.Millisecond)
	s.stop()
	f.forgetGroup("sink.deliveries")
	// Lost from the table, too: it comes back from the log.
	require.NoError(t, f.conn.Exec(t.Context(), "TRUNCATE TABLE deliveries"))

	f.start(replacingTable())
	f.putDelivery("b", "delivered", 1, 0)
	require.Eventually(t, func() bool { return rows() == 2 }, 20*time.Second, 10*time.Millisecond)
}

func TestRowsThatTheLogDoesNotHaveStopThePartition(t *testing.T) {
	cases := map[string]func(f *fixture){
		"without a committed offset":     func(*fixture) {},
		"with one that was not yet read": func(f *fixture) { f.commit(1, 3, "") },
	}
	for name, commit := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := quickFixture(t)
			for offset := range int64(3) {
				f.insertRow(1, offset, "earlier")
			}
			commit(f)
			require.NoError(t, f.producer.ProduceSync(t.Context(), f.record(1, f.now), f.record(1, f.now)).FirstErr())
			s := f.start(plainTable())
			require.Eventually(t, func() bool { return s.stoppedPartitions() == 1 }, 20*time.Second, 10*time.Millisecond)
			require.Equal(t, uint64(3), f.query("SELECT count() FROM inbound_events"))
		})
	}
}

func TestOffsetsThatComeAgainAreRecognised(t *testing.T) {
	plain, again := newWorker(&Sink{table: plainTable()}, 0, 10, ""), newWorker(&Sink{table: replacingTable()}, 0, 10, "")
	require.True(t, plain.backwards(9))
	require.False(t, plain.backwards(10))
	require.False(t, again.backwards(9))
	plain.batch.first, plain.batch.last = 10, 20
	require.True(t, plain.backwards(20))
	require.False(t, plain.backwards(21))
}
