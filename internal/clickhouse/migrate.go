package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	migrations "github.com/betterdata/webhooks/schemas/clickhouse"
)

// minServer is the oldest ClickHouse whose synchronous inserts, tokens and nowInBlock64 behave as the sink was tried
// with.
const minServerMajor, minServerMinor = 26, 3

// Migrate creates the URL's database and brings its tables up to date. Any number of instances may run it at once, and
// one that dies half-way may be repeated: ClickHouse offers goose no lock, so every statement is safe to repeat, and
// the version table may hold a version twice.
func Migrate(ctx context.Context, url string, log *slog.Logger) error {
	opts, err := options(url)
	if err != nil {
		return err
	}
	if err := createDatabase(ctx, opts); err != nil {
		return err
	}
	// Said explicitly: async_insert is on by default since 26.3, and a version must be on disk when it is acknowledged.
	opts.Settings = clickhouse.Settings{"async_insert": 0}
	db := clickhouse.OpenDB(opts)
	defer db.Close()
	provider, err := goose.NewProvider(database.DialectClickHouse, db, migrations.Migrations)
	if err != nil {
		return fmt.Errorf("read ClickHouse migrations: %w", err)
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate ClickHouse: %w", err)
	}
	for _, m := range applied {
		log.Info("migrated ClickHouse", "version", m.Source.Version, "seconds", m.Duration.Seconds())
	}
	return nil
}

// createDatabase makes the database when it is missing, after checking the server's version. It connects to the
// database that every server has.
func createDatabase(ctx context.Context, opts *clickhouse.Options) error {
	first := *opts
	first.Auth.Database = "default"
	conn, err := clickhouse.Open(&first)
	if err != nil {
		return fmt.Errorf("open ClickHouse: %w", err)
	}
	defer conn.Close()
	version, err := conn.ServerVersion()
	if err != nil {
		return fmt.Errorf("connect to ClickHouse at %s: %w", strings.Join(opts.Addr, ", "), err)
	}
	if v := version.Version; v.Major < minServerMajor || v.Major == minServerMajor && v.Minor < minServerMinor {
		return fmt.Errorf("ClickHouse at %s is %d.%d; at least %d.%d is needed",
			strings.Join(opts.Addr, ", "), v.Major, v.Minor, minServerMajor, minServerMinor)
	}
	var exists uint8
	row := conn.QueryRow(ctx, "SELECT count() > 0 FROM system.databases WHERE name = ?", opts.Auth.Database)
	if err := row.Scan(&exists); err != nil {
		return fmt.Errorf("look for ClickHouse database %s: %w", opts.Auth.Database, err)
	}
	if exists == 1 {
		return nil
	}
	if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+quote(opts.Auth.Database)); err != nil {
		return fmt.Errorf("create ClickHouse database %s: %w", opts.Auth.Database, err)
	}
	return nil
}

// expiring are the tables whose rows live for RETENTION, and the time it counts from.
var expiring = map[string]string{
	"delivery_attempts": "started_at",
	"events":            "accepted_at",
	"deliveries":        "accepted_at",
	"inbound_events":    "received_at",
	"rejected_requests": "rejected_at",
}

// SetRetention makes rows of the expiring tables live for retention, in whole hours. It changes nothing, and costs one
// query, when they already do. Migrate must have run.
func SetRetention(ctx context.Context, conn driver.Conn, retention time.Duration) error {
	hours := int(retention / time.Hour)
	if hours < 1 {
		return fmt.Errorf("RETENTION is %s; at least 1h is needed", retention)
	}
	rows, err := conn.Query(ctx, "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()")
	if err != nil {
		return fmt.Errorf("read ClickHouse tables: %w", err)
	}
	defer rows.Close()
	var failed error
	for rows.Next() {
		var name, definition string
		if err := rows.Scan(&name, &definition); err != nil {
			return fmt.Errorf("read ClickHouse tables: %w", err)
		}
		column, ok := expiring[name]
		ttl := fmt.Sprintf("toDateTime(%s) + toIntervalHour(%d)", column, hours)
		if !ok || strings.Contains(definition, "TTL "+ttl+" ") {
			continue
		}
		// Parts that exist have to learn when they expire now.
		alter := "ALTER TABLE " + quote(name) + " MODIFY TTL " + ttl + " SETTINGS materialize_ttl_after_modify = 1"
		if err := conn.Exec(ctx, alter); err != nil {
			failed = errors.Join(failed, fmt.Errorf("set retention of %s: %w", name, err))
		}
	}
	return errors.Join(failed, rows.Err())
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "\\`") + "`" }
