// Package clickhouse opens connections to ClickHouse and keeps its tables up to date. Nothing here knows what the
// tables hold; schemas/clickhouse says that, and internal/sink fills them.
package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// unavailableCodes are the exceptions by which a server says that it cannot answer now (src/Common/ErrorCodes.cpp).
var unavailableCodes = map[int32]string{
	60:  "UNKNOWN_TABLE: the migrations have not run yet",
	81:  "UNKNOWN_DATABASE: nor has the database been made",
	159: "TIMEOUT_EXCEEDED",
	202: "TOO_MANY_SIMULTANEOUS_QUERIES",
	209: "SOCKET_TIMEOUT",
	210: "NETWORK_ERROR",
	236: "ABORTED: it is stopping",
	241: "MEMORY_LIMIT_EXCEEDED",
	394: "QUERY_WAS_CANCELLED: it is stopping",
}

// Unavailable reports that err means that the server could not be asked or cannot answer now, rather than that it
// refused the query.
func Unavailable(err error) bool {
	var refused *clickhouse.Exception
	if errors.As(err, &refused) {
		return unavailableCodes[refused.Code] != ""
	}
	return err != nil && !errors.Is(err, context.Canceled)
}
