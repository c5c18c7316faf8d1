package resource

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseReplay(t *testing.T) {
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC).UnixMilli()
	at := func(s string) int64 {
		parsed, err := time.Parse(time.RFC3339, s)
		require.NoError(t, err)
		return parsed.UnixMilli()
	}
	for _, tc := range []struct {
		name, body   string
		since, until int64
		only         string
		types        []string
	}{
		{"since alone", `{"since":"2026-01-01T00:00:00Z"}`, at("2026-01-01T00:00:00Z"), now, "undelivered", nil},
		{
			"all of it", `{"since":"2026-01-01T00:00:00.250Z","until":"2026-01-02T01:00:00+01:00","eventTypes":["loop.*","import.failed"],"only":"failed"}`,
			at("2026-01-01T00:00:00.250Z"), at("2026-01-02T00:00:00Z"), "failed", []string{"loop.*", "import.failed"},
		},
		{"ends now at the latest", `{"since":"2026-01-01T00:00:00Z","until":"2027-01-01T00:00:00Z"}`, at("2026-01-01T00:00:00Z"), now, "undelivered", nil},
		{"finer than milliseconds", `{"since":"2026-01-01T00:00:00.0001Z","until":"2026-01-02T00:00:00.0001Z"}`, at("2026-01-01T00:00:00.001Z"), at("2026-01-02T00:00:00.001Z"), "undelivered", nil},
		{"nulls", `{"since":"2026-01-01T00:00:00Z","until":null,"eventTypes":null,"only":null}`, at("2026-01-01T00:00:00Z"), now, "undelivered", nil},
		{"an empty range", `{"since":"2026-01-01T00:00:00Z","until":"2026-01-01T00:00:00Z"}`, at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z"), "undelivered", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, problem := ParseReplay("org_1", "ep_1", []byte(tc.body), now)
			require.Nil(t, problem)
			require.Equal(t, tc.since, r.SinceUnixMs)
			require.Equal(t, tc.since, r.CursorUnixMs, "where it begins")
			require.Equal(t, tc.until, r.UntilUnixMs)
			require.Equal(t, tc.only, r.Only)
			require.Equal(t, tc.types, r.EventTypes)
			require.Equal(t, "running", r.Status)
			require.Equal(t, now, r.CreatedUnixMs)
		})
	}
	for _, tc := range []struct{ name, body, pointer string }{
		{"nothing", `{}`, "/since"},
		{"no time", `{"since":"yesterday"}`, "/since"},
		{"no time at the end", `{"since":"2026-01-01T00:00:00Z","until":7}`, "/until"},
		{"backwards", `{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"}`, "/since"},
		{"the future", `{"since":"2026-02-02T00:00:00Z"}`, "/since"},
		{"not an event type", `{"since":"2026-01-01T00:00:00Z","eventTypes":["a b"]}`, "/eventTypes/0"},
		{"unknown only", `{"since":"2026-01-01T00:00:00Z","only":"dead"}`, "/only"},
		{"unknown member", `{"since":"2026-01-01T00:00:00Z","endpoint":"x"}`, "/endpoint"},
	} {
		t.Run("refused: "+tc.name, func(t *testing.T) {
			_, problem := ParseReplay("org_1", "ep_1", []byte(tc.body), now)
			require.NotNil(t, problem)
			require.Equal(t, 422, problem.Status)
			require.Equal(t, tc.pointer, problem.Errors[0].Pointer)
		})
	}
}
