// Command record measures what the record in ClickHouse costs and how fast it answers: bytes a row of the large tables,
// and the time of each question of schemas/clickhouse/questions and of the API's reads. Beside it, in the same run, the
// same rows, by the same inserts, in tables that nobody furnished: sorted by time, ClickHouse's default codec, no skip
// index, no partitions.
//
//	go run ./bench/record [-deliveries 5000000] [-organizations 1000] [-days 30] [-runs 5] [-columns]
//
// The rows are made up: organizations of very different sizes, one to four endpoints each, of which one in ten always
// fails and is tried ten times, so that there are about twice as many attempts as deliveries.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	client "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/betterdata/webhooks/bench/measure"
	"github.com/betterdata/webhooks/deploy/local/engine"
	"github.com/betterdata/webhooks/internal/clickhouse"
)

type options struct {
	deliveries, organizations, days, runs int
	columns                               bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == engine.Command {
		os.Exit(engine.Main(os.Args[2:]))
	}
	var o options
	flag.IntVar(&o.deliveries, "deliveries", 5_000_000, "deliveries, of half as many events")
	flag.IntVar(&o.organizations, "organizations", 1000, "merchants")
	flag.IntVar(&o.days, "days", 30, "over which they are spread, up to now")
	flag.IntVar(&o.runs, "runs", 5, "of each query")
	flag.BoolVar(&o.columns, "columns", false, "print the bytes of each column, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/record:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	folder, err := os.MkdirTemp("", "record-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	log := slog.New(slog.DiscardHandler)
	server, err := engine.Start(ctx, engine.Config{
		Folder: filepath.Join(folder, "clickhouse"), Addr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Database: furnished, Progress: os.Stderr,
	}, log)
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop(context.WithoutCancel(ctx)) }()
	url := "clickhouse://" + server.Addr() + "/" + furnished
	if err := clickhouse.Migrate(ctx, url, log); err != nil {
		return err
	}
	b := &bench{options: o, addr: server.Addr(), now: time.Now().UTC().Truncate(time.Hour)}
	if b.conn, err = clickhouse.Open(ctx, url); err != nil {
		return err
	}
	defer b.conn.Close()
	version, err := b.conn.ServerVersion()
	if err != nil {
		return err
	}
	fmt.Printf("%s/%s, %d CPUs; ClickHouse %s; everything in the page cache\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), version.Version)
	fmt.Printf("%d deliveries of %d organizations over %d days; medians of %d runs\n\n", o.deliveries, o.organizations, o.days, o.runs)
	for _, step := range []func(context.Context) error{b.fill, b.sizes, b.times} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// longest bounds a statement.
const longest = time.Hour

// The databases: the tables of schemas/clickhouse, and the same rows in plain ones.
const furnished, plain = "webhooks", "plain"

type bench struct {
	options
	addr string
	conn client.Conn
	now  time.Time
}

// sizes prints bytes a row, of a table whose parts are merged.
func (b *bench) sizes(ctx context.Context) error {
	fmt.Printf("%-20s %12s %14s %14s\n", "", "rows", "bytes a row", "plain")
	for _, table := range tables {
		var rows, bytes, plainBytes uint64
		err := b.conn.QueryRow(ctx, `SELECT sumIf(rows, database = $1), sumIf(bytes_on_disk, database = $1), sumIf(bytes_on_disk, database = $2)
			FROM system.parts WHERE active AND table = $3`, furnished, plain, table).Scan(&rows, &bytes, &plainBytes)
		if err != nil {
			return fmt.Errorf("size of %s: %w", table, err)
		}
		fmt.Printf("%-20s %12d %14.1f %14.1f\n", table, rows, float64(bytes)/float64(rows), float64(plainBytes)/float64(rows))
		if b.columns {
			if err := b.columnSizes(ctx, table, rows); err != nil {
				return err
			}
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) columnSizes(ctx context.Context, table string, rows uint64) error {
	columns, err := b.conn.Query(ctx, `SELECT name, sumIf(data_compressed_bytes, database = $1), sumIf(data_compressed_bytes, database = $2)
		FROM system.columns WHERE table = $3 GROUP BY name ORDER BY 2 DESC`, furnished, plain, table)
	if err != nil {
		return fmt.Errorf("columns of %s: %w", table, err)
	}
	defer columns.Close()
	for columns.Next() {
		var name string
		var bytes, plainBytes uint64
		if err := columns.Scan(&name, &bytes, &plainBytes); err != nil {
			return err
		}
		fmt.Printf("  %-31s %14.2f %14.2f\n", name, float64(bytes)/float64(rows), float64(plainBytes)/float64(rows))
	}
	return columns.Err()
}

// times prints what each query takes. What one asks about is a middling organization: rank 100 of 1,000.
func (b *bench) times(ctx context.Context) error {
	queries, err := b.queries(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-24s %8s %8s %11s %9s %8s %11s\n", "", "ms", "ms CPU", "rows read", "plain ms", "ms CPU", "rows read")
	for _, q := range queries {
		fmt.Printf("%-24s", q.name)
		for _, database := range []string{furnished, plain} {
			c, err := b.ask(ctx, database, q)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", q.name, database, err)
			}
			fmt.Printf(" %8.1f %8.1f %11d ", c.ms, c.cpu, c.rows)
		}
		fmt.Println()
	}
	return nil
}

// cost is what a query takes: milliseconds by the clock and of the server's processors, rows read.
type cost struct {
	ms, cpu float64
	rows    uint64
}

// ask is the median cost of a query over some runs; one more, the first, fills caches.
func (b *bench) ask(ctx context.Context, database string, q question) (cost, error) {
	conn, err := clickhouse.Open(ctx, "clickhouse://"+b.addr+"/"+database)
	if err != nil {
		return cost{}, err
	}
	defer conn.Close()
	var ms, cpu []float64
	var c cost
	for run := range b.runs + 1 {
		if c, err = once(ctx, conn, q); err != nil {
			return cost{}, err
		}
		if run > 0 {
			ms, cpu = append(ms, c.ms), append(cpu, c.cpu)
		}
	}
	return cost{measure.Median(ms), measure.Median(cpu), c.rows}, nil
}

func once(ctx context.Context, conn client.Conn, q question) (c cost, err error) {
	var micros int64
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	ctx = client.Context(ctx, client.WithParameters(q.parameters),
		client.WithProgress(func(p *client.Progress) { c.rows += p.Rows }),
		client.WithProfileEvents(func(events []client.ProfileEvent) {
			for _, e := range events {
				if e.Name == "UserTimeMicroseconds" || e.Name == "SystemTimeMicroseconds" {
					micros += e.Value
				}
			}
		}))
	began := time.Now()
	rows, err := conn.Query(ctx, q.sql)
	if err != nil {
		return c, err
	}
	for rows.Next() {
	}
	err = errors.Join(rows.Err(), rows.Close())
	c.ms, c.cpu = float64(time.Since(began).Microseconds())/1000, float64(micros)/1000
	return c, err
}
