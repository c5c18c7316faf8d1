package clickhouse

import "embed"

// Questions are what merchants' support, analysts and whoever is woken at night ask the tables. Each is a file: the
// question, its parameters, the query; `head -qn1 schemas/clickhouse/questions/*` lists them. Parameters are ClickHouse's own
// ({since:DateTime('UTC')}); since is inclusive, until exclusive, both in UTC:
//
//	clickhouse client -d webhooks --param_since='2026-11-27 00:00:00' --param_until='2026-11-28 00:00:00' \
//	    --queries-file schemas/clickhouse/questions/failing_endpoints.sql
//
//go:embed questions/*.sql
var Questions embed.FS
