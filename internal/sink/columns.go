package sink

import (
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"google.golang.org/protobuf/proto"
)

// Table says how records of a topic become rows of a ClickHouse table. Make one with Plain or Replacing.
type Table struct {
	// Topic is the topic's name without the prefix; Name is the table's.
	Topic, Name string

	replacing bool
	names     []string
	exprs     []string
	newRows   func() rows
}

// Plain describes a table whose rows are inserted once and counted by src_topic, src_part and src_offset, which the sink
// adds.
// partition is the number of the table partition a row falls into, in the table's own PARTITION BY: see Week, Month.
func Plain[M proto.Message](topic, name string, newMessage func() M, partition func(M) int64, columns ...Column[M]) Table {
	return newTable(topic, name, false, newMessage, partition, columns)
}

// Replacing describes a ReplacingMergeTree: the row with the highest version holds, and a batch may be inserted again.
func Replacing[M proto.Message](topic, name string, newMessage func() M, columns ...Column[M]) Table {
	return newTable(topic, name, true, newMessage, func(M) int64 { return 0 }, columns)
}

func newTable[M proto.Message](topic, name string, replacing bool, newMessage func() M, partition func(M) int64, columns []Column[M]) Table {
	t := Table{Topic: topic, Name: name, replacing: replacing}
	for _, c := range columns {
		t.names = append(t.names, c.name)
		t.exprs = append(t.exprs, c.expr)
	}
	if !replacing {
		t.names = append(t.names, "src_part", "src_offset", "src_topic")
		t.exprs = append(t.exprs, "src_part", "src_offset")
	}
	t.newRows = func() rows {
		r := &messageRows[M]{message: newMessage(), partition: partition, columns: columns, placed: !replacing}
		for _, c := range columns {
			r.cells = append(r.cells, c.cells())
		}
		return r
	}
	return t
}

// Week numbers the weeks, from Monday to Sunday in UTC, that ClickHouse's toMonday tells apart.
func Week(unixMS int64) int64 {
	const day = int64(24 * time.Hour / time.Millisecond)
	// The epoch was a Thursday, the fourth day of its week.
	since := unixMS + 3*day
	week := since / (7 * day)
	if since%(7*day) < 0 {
		week--
	}
	return week
}

// Month numbers the calendar months in UTC, as ClickHouse's toYYYYMM does.
func Month(unixMS int64) int64 {
	t := time.UnixMilli(unixMS).UTC()
	return int64(t.Year())*100 + int64(t.Month())
}

// Column is one column of a table: its name, the form it is sent in, the expression that the server stores, and the
// field it is filled from.
type Column[M any] struct {
	name string
	typ  column.Type
	expr string
	// cells makes a buffer for the column's values in one batch.
	cells func() cells[M]
}

// String fills a String or LowCardinality(String) column. The server builds dictionaries: strings go over as they are.
func String[M any](name string, get func(M) string) Column[M] {
	return newColumn(name, "String", name, get)
}

// Bytes fills a String column.
func Bytes[M any](name string, get func(M) []byte) Column[M] {
	return newColumn(name, "String", name, get)
}

// UInt16 fills a UInt16 column; larger values are stored as 65,535.
func UInt16[M any](name string, get func(M) uint32) Column[M] {
	return newColumn(name, "UInt16", name, func(m M) uint16 { return uint16(min(get(m), 65_535)) })
}

// UInt32 fills a UInt32 column.
func UInt32[M any](name string, get func(M) uint32) Column[M] {
	return newColumn(name, "UInt32", name, get)
}

// UInt64 fills a UInt64 column.
func UInt64[M any](name string, get func(M) uint64) Column[M] {
	return newColumn(name, "UInt64", name, get)
}

// Bool fills a UInt8 column with 0 or 1.
func Bool[M any](name string, get func(M) bool) Column[M] {
	return newColumn(name, "UInt8", name, func(m M) uint8 {
		if get(m) {
			return 1
		}
		return 0
	})
}

// NullInt64 fills a Nullable(Int64) column.
func NullInt64[M any](name string, get func(M) *int64) Column[M] {
	return newColumn(name, "Nullable(Int64)", name, get)
}

// Time fills a DateTime64(3, 'UTC') column from milliseconds since the epoch.
func Time[M any](name string, get func(M) int64) Column[M] {
	return newColumn(name, "Int64", fmt.Sprintf("fromUnixTimestamp64Milli(%s, 'UTC')", name), get)
}

// NullTime fills a Nullable(DateTime64(3, 'UTC')) column from milliseconds since the epoch; 0 is NULL.
func NullTime[M any](name string, get func(M) int64) Column[M] {
	return newColumn(name, "Int64", fmt.Sprintf("if(%[1]s = 0, NULL, fromUnixTimestamp64Milli(%[1]s, 'UTC'))", name), get)
}

// IPv6 fills an IPv6 column from 16 bytes; anything else is stored as ::.
func IPv6[M any](name string, get func(M) []byte) Column[M] {
	return newColumn(name, "IPv6", name, func(m M) (addr [16]byte) {
		if raw := get(m); len(raw) == len(addr) {
			copy(addr[:], raw)
		}
		return addr
	})
}

func newColumn[M, V any](name string, typ column.Type, expr string, get func(M) V) Column[M] {
	return Column[M]{name: name, typ: typ, expr: expr, cells: func() cells[M] { return &typedCells[M, V]{get: get} }}
}

// cells are one column's values of a batch.
type cells[M any] interface {
	add(m M)
	reset()
	// values is a typed slice, which the driver appends whole.
	values() any
}

type typedCells[M, V any] struct {
	get func(M) V
	v   []V
}

func (c *typedCells[M, V]) add(m M)     { c.v = append(c.v, c.get(m)) }
func (c *typedCells[M, V]) values() any { return c.v }

func (c *typedCells[M, V]) reset() {
	clear(c.v)
	c.v = c.v[:0]
}

// rows are a batch under construction: records are decoded one at a time and appended column by column.
type rows interface {
	// decode reads a record's value and says which table partition its row belongs to.
	decode(value []byte) (partition int64, err error)
	// append adds the row decoded last.
	append(partition int32, offset int64)
	len() int
	reset()
	// external makes batches, of which this is the first, a temporary table for one query, which holds until the next call.
	external(name string, batches []rows) (*ext.Table, error)
}

type messageRows[M proto.Message] struct {
	message   M
	partition func(M) int64
	columns   []Column[M]
	cells     []cells[M]
	// placed rows carry src_part and src_offset.
	placed  bool
	parts   []int32
	offsets []int64
	// sent is the temporary table of the batch before, kept for its buffers: one that grows anew for each batch is copied
	// several times over, and was half of all that the deliverer allocated.
	sent *ext.Table
}

func (r *messageRows[M]) decode(value []byte) (int64, error) {
	if err := proto.Unmarshal(value, r.message); err != nil {
		return 0, err
	}
	return r.partition(r.message), nil
}

func (r *messageRows[M]) append(partition int32, offset int64) {
	for _, c := range r.cells {
		c.add(r.message)
	}
	r.parts = append(r.parts, partition)
	r.offsets = append(r.offsets, offset)
}

func (r *messageRows[M]) len() int { return len(r.offsets) }

func (r *messageRows[M]) reset() {
	for _, c := range r.cells {
		c.reset()
	}
	r.parts, r.offsets = r.parts[:0], r.offsets[:0]
}

func (r *messageRows[M]) external(name string, batches []rows) (*ext.Table, error) {
	if r.sent == nil {
		table, err := ext.NewTable(name, r.definitions()...)
		if err != nil {
			return nil, err
		}
		r.sent = table
	}
	columns := r.sent.Block().Columns
	for _, col := range columns {
		col.Reset()
	}
	for _, b := range batches {
		for i, values := range b.(*messageRows[M]).values() {
			if _, err := columns[i].Append(values); err != nil {
				return nil, fmt.Errorf("column %s: %w", columns[i].Name(), err)
			}
		}
	}
	return r.sent, nil
}

// values are the columns' as definitions names them.
func (r *messageRows[M]) values() []any {
	values := make([]any, 0, len(r.columns)+2)
	for _, c := range r.cells {
		values = append(values, c.values())
	}
	if r.placed {
		values = append(values, r.parts, r.offsets)
	}
	return values
}

func (r *messageRows[M]) definitions() []func(*ext.Table) error {
	defs := make([]func(*ext.Table) error, 0, len(r.columns)+2)
	for _, c := range r.columns {
		defs = append(defs, ext.Column(c.name, c.typ))
	}
	if r.placed {
		defs = append(defs, ext.Column("src_part", "Int32"), ext.Column("src_offset", "Int64"))
	}
	return defs
}

// insertSQL is the INSERT of a batch that was sent along as the temporary table `batch`. The check in WHERE runs on the
// server when the batch is about to be written: one that arrives or stalls past its deadline inserts nothing.
func (t Table) insertSQL(topicID string, deadlineUnixMS int64) string {
	exprs := strings.Join(t.exprs, ", ")
	if !t.replacing {
		exprs += ", '" + topicID + "'"
	}
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM batch "+
		"WHERE throwIf(nowInBlock64(3) > fromUnixTimestamp64Milli(%d), 'the deadline of this insert has passed') = 0",
		t.Name, strings.Join(t.names, ", "), exprs, deadlineUnixMS)
}
