// Package clickhouse opens connections to ClickHouse and keeps its tables up to date. Nothing here knows what the
// tables hold; schemas/clickhouse says that, and internal/sink fills them.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

const (
	// DefaultDatabase is used when the URL names none.
	DefaultDatabase = "webhooks"

	dialTimeout = 3 * time.Second
	// readTimeout bounds the wait for an answer when the caller set no deadline.
	readTimeout = 30 * time.Second
	// maxConns bounds connections: inserts of three sinks and the readers of an API.
	maxConns = 32

	// ClickHouse's UNKNOWN_TABLE and UNKNOWN_DATABASE (src/Common/ErrorCodes.cpp): migrations have not run yet.
	codeUnknownTable    = 60
	codeUnknownDatabase = 81
)

// Open makes a pool of connections for a clickhouse:// (native) or http(s):// URL with the database as its path. It
// does not connect: a server that is away is found out by the first query, and found again once it is back.
func Open(_ context.Context, url string) (driver.Conn, error) {
	opts, err := options(url)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	return conn, nil
}

// options reads the URL. Its errors do not repeat it: it may hold a password.
func options(url string) (*clickhouse.Options, error) {
	opts, err := clickhouse.ParseDSN(url)
	if err != nil {
		return nil, errors.New("CLICKHOUSE_URL is not of the form clickhouse://user:password@host:9000/database or http(s)://…")
	}
	if opts.Auth.Database == "" {
		opts.Auth.Database = DefaultDatabase
	}
	if opts.Protocol == clickhouse.HTTP && opts.TLS == nil && strings.HasPrefix(url, "https:") {
		opts.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	opts.DialTimeout, opts.ReadTimeout = dialTimeout, readTimeout
	opts.MaxOpenConns, opts.MaxIdleConns, opts.ConnMaxLifetime = maxConns, maxConns/2, time.Hour
	opts.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	return opts, nil
}

// Unavailable reports that err means that the server could not be asked, rather than that it refused the query.
func Unavailable(err error) bool {
	if err == nil {
		return false
	}
	var refused *clickhouse.Exception
	if errors.As(err, &refused) {
		return refused.Code == codeUnknownDatabase || refused.Code == codeUnknownTable
	}
	var network net.Error
	return errors.As(err, &network) || !errors.Is(err, context.Canceled)
}
