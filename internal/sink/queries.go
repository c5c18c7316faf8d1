package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

const (
	// queryTimeout bounds the small queries: counting a batch, ending a query, reading the clock.
	queryTimeout = 10 * time.Second
	// answerMargin is how much longer than the deadline an INSERT's answer is waited for.
	answerMargin = time.Second
)

// deadline is when an INSERT that begins now has to be written, in the server's time (Unix ms).
func (s *Sink) deadline() int64 {
	return time.Now().Add(s.cfg.InsertTimeout).UnixMilli() + s.clock.Load()
}

// insert writes a bundle in one synchronous INSERT, of one block and so of one part. An error says nothing about
// whether it was written.
//
// The rows go over as a temporary table, which the server has whole before it begins to write: an INSERT cannot stall
// half-sent and be finished late. Its deadline is kept twice by the server, when the block is about to be written and
// as the query's maximal time.
func (s *Sink) insert(b bundle) error {
	batch, err := b[0].rows.external("batch", b.rows())
	if err != nil {
		return fmt.Errorf("build batch: %w", err)
	}
	token, deadline := b.token(s.topicID), b.deadline()
	left := time.Until(time.UnixMilli(deadline - s.clock.Load()))
	if left <= 0 {
		return errors.New("the deadline passed before the insert began")
	}
	ctx, cancel := b.context(time.Now().Add(left + answerMargin))
	defer cancel()
	ctx = clickhouse.Context(ctx,
		clickhouse.WithQueryID(token),
		clickhouse.WithExternalTable(batch),
		clickhouse.WithSettings(clickhouse.Settings{
			// Said explicitly: on by default since 26.3, and acknowledged before it is written.
			"async_insert":               0,
			"insert_deduplication_token": token,
			// A token on an INSERT … SELECT is only taken when the server is told that it may.
			"deduplicate_insert_select": "enable_even_for_bad_queries",
			"max_execution_time":        max(1, int(left/time.Second)),
			// One thread and no splitting: the block stays one part.
			"max_threads":                 1,
			"max_insert_threads":          1,
			"max_block_size":              s.cfg.MaxRows * 2,
			"min_insert_block_size_rows":  s.cfg.MaxRows * 2,
			"min_insert_block_size_bytes": s.cfg.MaxBytes * 64,
		}))
	s.metrics.inserts.Inc()
	err = s.cfg.ClickHouse.Exec(ctx, s.table.insertSQL(s.topicID, deadline))
	s.note(err)
	return err
}

// count is how many rows of a batch the table holds, and the server's time (Unix ms) as it counted.
func (s *Sink) count(ctx context.Context, partition int32, first, last int64) (rows uint64, now int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	asked := time.Now().UnixMilli()
	err = s.cfg.ClickHouse.QueryRow(ctx, fmt.Sprintf(
		"SELECT count(), toUnixTimestamp64Milli(now64(3)) FROM %s WHERE src_topic = '%s' AND src_part = %d AND src_offset BETWEEN %d AND %d",
		s.table.Name, s.topicID, partition, first, last)).Scan(&rows, &now)
	if err == nil {
		s.clock.Store(now - asked)
	}
	return rows, now, err
}

// kill ends the INSERTs that carry rows of a partition, and returns nil when there is none any more. Those of other
// partitions in them are inserted again by their workers.
func (s *Sink) kill(ctx context.Context, partition int32) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	// As bundle.token names them. The topic's id may have slashes of its own.
	cond := fmt.Sprintf("startsWith(query_id, ?) AND position(query_id, ?, %d) > 0", len(s.topicID)+1)
	topic, part := s.topicID+"/", fmt.Sprintf("/%d/", partition)
	if err := s.cfg.ClickHouse.Exec(ctx, "KILL QUERY WHERE "+cond+" SYNC", topic, part); err != nil {
		return err
	}
	var left uint64
	row := s.cfg.ClickHouse.QueryRow(ctx, "SELECT count() FROM system.processes WHERE "+cond, topic, part)
	if err := row.Scan(&left); err != nil {
		return err
	}
	if left != 0 {
		return errors.New("the query is still running")
	}
	return nil
}

// readClock notes how far the server's clock is from ours.
func (s *Sink) readClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var now int64
	asked := time.Now().UnixMilli()
	if err := s.cfg.ClickHouse.QueryRow(ctx, "SELECT toUnixTimestamp64Milli(now64(3))").Scan(&now); err != nil {
		return err
	}
	s.clock.Store(now - asked)
	return nil
}
