// Package clickhouse holds the ClickHouse tables as migrations, in the order of their numbers, and Questions,
// the queries that people start from. internal/clickhouse applies the migrations.
//
// Rules for a migration: several instances may run it at the same time, and one may die half-way, so every statement
// must be safe to repeat (IF NOT EXISTS, IF EXISTS); one that was released is never edited, the next number changes it.
//
// Rules for a table that a sink fills:
//   - a plain table carries src_topic (the topic's id), src_part and src_offset, the row's place in the log, with a
//     minmax index on src_offset: the sink counts a batch by them, and offsets of recent rows lie together in recent
//     parts. Offsets alone would be mistaken for those of an earlier topic of the same name;
//   - it is partitioned by a time whose unit the sink knows (sink.Week, sink.Month), because one insert is one part
//     only within one partition;
//   - default_compression_codec is ZSTD(1), for whatever names no codec of its own;
//   - non_replicated_deduplication_window and fsync: an acknowledged insert is on disk and a repeated token is ignored.
//     The window is the count of tokens remembered, hours of inserts at one a second from each of 64 partitions would
//     need more; it is only the second line, the count is the first.
package clickhouse

import "embed"

// Migrations are the numbered .sql files, in goose's format.
//
//go:embed *.sql
var Migrations embed.FS
