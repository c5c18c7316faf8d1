package sink

import (
	"context"
	"fmt"
	"time"
)

// scanTimeout bounds the look for a partition's newest row, which has no index.
const scanTimeout = 2 * time.Minute

// settleLost finds out where a partition without a committed offset stands; false when the worker has to end. Kafka
// forgets a group that was away for long (offsets.retention.minutes), and a broker can lose its offsets; the
// rows in the table are still the truth. They were inserted in sequence, so all up to the last one are there.
func (w *worker) settleLost() bool {
	last, now, ok := w.findLast()
	if !ok || last < 0 {
		return ok
	}
	w.sink.log.Warn("the group has no committed offset, and the table has rows: going on after the last of them",
		"partition", w.partition, "offset", last)
	if !w.awaitEarlierInserts(now) {
		return false
	}
	if last, _, ok = w.findLast(); !ok {
		return false
	}
	if end := w.logEnd(); last >= end {
		w.stopPartition("the table has rows of offsets that the log does not have yet, and the group has no committed offset: the log "+
			"has lost its newest records, and nobody knows which rows are theirs. Delete the rows with this src_topic, src_part "+
			"and an src_offset of the log's end or more from the table, and restart", "offset", last, "log_end", end)
		return false
	}
	w.skipTo = last
	w.next.Store(last + 1)
	return true
}

// awaitEarlierInserts waits until an INSERT that an earlier owner began before now (the server's time) has ended or can
// never begin: its deadline went with the committed offset.
func (w *worker) awaitEarlierInserts(now int64) bool {
	over := now + w.sink.cfg.InsertTimeout.Milliseconds()
	for now <= over {
		if !w.pause(min(time.Second, time.Duration(over-now+1)*time.Millisecond)) {
			return false
		}
		now = time.Now().UnixMilli() + w.sink.clock.Load()
	}
	return w.insist("end earlier inserts", func() error {
		return w.sink.kill(w.ctx, w.partition)
	})
}

// findLast is the offset of the partition's last row, -1 when it has none, and the server's time.
func (w *worker) findLast() (last, now int64, ok bool) {
	ok = w.insist("find the last row", func() (err error) {
		last, now, err = w.sink.lastRow(w.ctx, w.partition)
		return err
	})
	return last, now, ok
}

// insist repeats do until it succeeds; false when the worker has to end.
func (w *worker) insist(what string, do func() error) bool {
	for wait := w.sink.newBackOff(); ; {
		err := do()
		w.sink.note(err)
		if err == nil {
			return true
		}
		w.sink.log.Warn(what+": will try again", "partition", w.partition, "error", err)
		if !w.pause(wait.NextBackOff()) {
			return false
		}
	}
}

// logEnd is the end of the partition as the newest poll told it.
func (w *worker) logEnd() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end
}

// lastRow is the highest offset of a partition in the table, -1 when there is none, and the server's time (Unix ms).
func (s *Sink) lastRow(ctx context.Context, partition int32) (last, now int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	var rows uint64
	err = s.cfg.ClickHouse.QueryRow(ctx, fmt.Sprintf(
		"SELECT count(), max(src_offset), toUnixTimestamp64Milli(now64(3)) FROM %s WHERE src_topic = '%s' AND src_part = %d",
		s.table.Name, s.topicID, partition)).Scan(&rows, &last, &now)
	if rows == 0 {
		last = -1
	}
	return last, now, err
}
