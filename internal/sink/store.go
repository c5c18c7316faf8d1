package sink

import (
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// intent is a batch that was about to be inserted, as the committed offset's metadata tells it: [first..last] makes
// rows rows. After deadline (the server's time, Unix ms) the server no longer begins to write it.
type intent struct {
	first, last int64
	rows        uint32
	try         uint32
	deadline    int64
	// answered says that the server has answered the INSERT: it is not under way any more.
	answered bool
}

func (in intent) encode() (string, error) {
	raw, err := proto.Marshal(&webhooksv1.SinkCommit{
		LastOffset: in.last, Rows: in.rows, Try: in.try, DeadlineUnixMs: in.deadline,
	})
	return base64.RawURLEncoding.EncodeToString(raw), err
}

// decodeIntent reads the metadata of a committed offset; nil when no batch was open there.
func decodeIntent(offset int64, metadata string) (*intent, error) {
	if offset < 0 || metadata == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(metadata)
	if err != nil {
		return nil, err
	}
	var c webhooksv1.SinkCommit
	if err := proto.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if c.GetRows() == 0 || c.GetLastOffset() < offset {
		return nil, fmt.Errorf("a batch of %d rows up to offset %d cannot begin at %d", c.GetRows(), c.GetLastOffset(), offset)
	}
	return &intent{
		first: offset, last: c.GetLastOffset(), rows: c.GetRows(), try: c.GetTry(), deadline: c.GetDeadlineUnixMs(),
	}, nil
}

// verdict is what became of an INSERT that was not acknowledged.
type verdict int

const (
	// unknown: the worker has to end before it could find out.
	unknown verdict = iota
	// found: all rows are in the table.
	found
	// absent: none is, and none can still arrive.
	absent
	// wrong: some are, or too many.
	wrong
)

// settle finds out about the batch that an earlier owner left open; false when the worker has to end.
func (w *worker) settle() bool {
	if w.sink.table.replacing {
		return true
	}
	if w.committed < 0 {
		return w.settleLost()
	}
	in, err := decodeIntent(w.committed, w.metadata)
	if err != nil {
		w.stopPartition("the metadata of the committed offset is not ours, so that nobody knows which rows after it were inserted. "+
			"Delete the rows with this src_topic, src_part and src_offset or more from the table, commit the offset without "+
			"metadata, and restart", "offset", w.committed, "metadata", w.metadata, "error", err)
		return false
	}
	if in == nil {
		return true
	}
	log := w.sink.log.With("partition", w.partition, "offset", in.first, "last_offset", in.last, "try", in.try)
	log.Info("an earlier owner left a batch open: looking for its rows")
	switch w.judge(*in) {
	case found:
		w.sink.metrics.batches[resultFound].Inc()
		w.skipTo = in.last
		w.next.Store(in.last + 1)
		return true
	case absent:
		// Nothing of [first..last] is there or can still come, so the next batch may be cut anywhere; its number keeps
		// its token apart from those used before.
		w.sink.metrics.batches[resultAbsent].Inc()
		w.tries = in.try
		if r := w.peek(); r != nil && r.Offset > in.first {
			log.Error("rows are lost: the log no longer holds the first records of a batch that never reached the table",
				"first_offset", r.Offset)
		}
		return true
	default:
		return false
	}
}

// store inserts the gathered batch; false when the worker has to end.
func (w *worker) store() bool {
	switch {
	case w.batch.rows.len() == 0:
		// Markers, and records without a row.
		w.done()
		return true
	case w.sink.table.replacing:
		return w.replace()
	default:
		return w.insertOnce()
	}
}

// insertOnce inserts a plain table's batch, exactly once.
func (w *worker) insertOnce() bool {
	for try := w.tries + 1; ; try++ {
		in := intent{
			first: w.batch.first, last: w.batch.last, rows: uint32(w.batch.rows.len()), try: try,
		}
		if !w.commit(in.first, w.epoch, &in) {
			return false
		}
		err := w.sink.inserter.insert(w, in)
		if err == nil {
			w.inserted(resultInserted)
			return true
		}
		var refused *clickhouse.Exception
		in.answered = errors.As(err, &refused) && refused.Code != codeSameQueryRunning
		w.sink.log.Warn("insert was not acknowledged: looking for its rows", "partition", w.partition,
			"offset", in.first, "last_offset", in.last, "try", try, "error", err)
		switch w.judge(in) {
		case found:
			w.inserted(resultFound)
			return true
		case absent:
			w.sink.metrics.batches[resultAbsent].Inc()
			if !w.pause(w.sink.retryPause(try)) {
				return false
			}
		default:
			return false
		}
	}
}

// codeSameQueryRunning is ClickHouse's QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: an answer about another query.
const codeSameQueryRunning = 216

// retryPause grows from 100 ms to maxPause with the number of tries that failed.
func (s *Sink) retryPause(try uint32) time.Duration {
	return min(s.cfg.maxPause, 100*time.Millisecond<<min(try-1, 10))
}

// inserted counts the batch and moves past it.
func (w *worker) inserted(result string) {
	w.sink.metrics.batches[result].Inc()
	w.sink.metrics.rows.Add(float64(w.batch.rows.len()))
	w.tries = 0
	w.done()
}

// replace inserts a Replacing table's batch, again and again until it is acknowledged.
func (w *worker) replace() bool {
	for try := uint32(1); ; try++ {
		in := intent{first: w.batch.first, last: w.batch.last, try: try, deadline: w.sink.deadline()}
		err := w.sink.inserter.insert(w, in)
		if err == nil {
			w.inserted(resultInserted)
			return w.commit(w.next.Load(), w.epoch, nil)
		}
		w.sink.log.Warn("insert was not acknowledged: it is repeated", "partition", w.partition,
			"offset", in.first, "last_offset", in.last, "try", try, "error", err)
		w.sink.metrics.batches[resultAbsent].Inc()
		if !w.pause(w.sink.retryPause(try)) {
			return false
		}
	}
}

// commitDone commits what is in the table, when the next batch is not there to do it.
func (w *worker) commitDone() {
	if next := w.next.Load(); next > w.committed {
		w.commit(next, w.epoch, nil)
	}
}

// commit commits an offset with the batch that is about to begin there, if any; false when the worker has to end. It
// goes on trying: a commit that Kafka refuses because the group is rebalancing is decided by what happens to the
// partition, and a worker that loses it is stopped.
func (w *worker) commit(offset int64, epoch int32, in *intent) bool {
	for try := uint32(1); w.ctx.Err() == nil; try++ {
		metadata, err := "", error(nil)
		if in != nil {
			// The deadline runs from here: a commit that took long must not leave the INSERT too little time.
			in.deadline = w.sink.deadline()
			metadata, err = in.encode()
		}
		if err == nil {
			err = w.sink.commits.commit(w.ctx, w.partition, offset, epoch, metadata)
		}
		if err == nil {
			w.committed = offset
			return true
		}
		w.sink.log.Debug("commit was refused", "partition", w.partition, "offset", offset, "error", err)
		if !w.pause(w.sink.retryPause(try)) && (in != nil || try >= closingTries) {
			return false
		}
	}
	return false
}

// closingTries is how often a stopping worker tries to commit what it has done; its successor would find it out, too.
const closingTries = 3

// judge finds out what became of an INSERT that was not acknowledged. It asks until it knows.
func (w *worker) judge(in intent) verdict {
	wait, gone := w.sink.newBackOff(), in.answered
	for w.ctx.Err() == nil && !w.isStopping() {
		rows, now, err := w.sink.count(w.ctx, w.partition, in.first, in.last)
		w.sink.note(err)
		switch {
		case err != nil:
			w.sink.log.Warn("cannot count a batch's rows: will try again", "partition", w.partition, "offset", in.first, "error", err)
			w.pause(wait.NextBackOff())
		case rows == uint64(in.rows):
			return found
		case gone && rows == 0:
			return absent
		case gone:
			w.stopPartition("the table holds another number of a batch's rows than the log. Find out which of the rows with this "+
				"src_topic, src_part and src_offset are missing or double, delete the whole range from the table, and restart: "+
				"the batch is then inserted anew",
				"offset", in.first, "last_offset", in.last, "rows_in_table", rows, "rows_in_log", in.rows)
			return wrong
		case now <= in.deadline:
			w.pause(min(time.Second, time.Duration(in.deadline-now+1)*time.Millisecond))
		default:
			// Nothing that arrives now is taken; what began before has to end before the count is final.
			if err := w.sink.kill(w.ctx, w.partition); err != nil {
				w.sink.log.Warn("cannot end an overdue insert: will try again", "partition", w.partition, "offset", in.first, "error", err)
				w.pause(wait.NextBackOff())
				continue
			}
			gone = true
		}
	}
	return unknown
}

// stopPartition gives up on a partition that only a person can judge; why says what to do.
func (w *worker) stopPartition(why string, facts ...any) {
	w.mu.Lock()
	w.stuck.Store(true)
	w.mu.Unlock()
	s := w.sink
	s.metrics.batches[resultStopped].Inc()
	s.client.PauseFetchPartitions(map[string][]int32{s.topic(): {w.partition}})
	s.log.With("topic", s.topic(), "topic_id", s.topicID, "partition", w.partition, "group", s.group()).
		Error("partition stopped: "+why, facts...)
}
