package resource

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/httpapi"
)

func TestParseRotation(t *testing.T) {
	for body, want := range map[string]time.Duration{
		"":                        24 * time.Hour,
		`{}`:                      24 * time.Hour,
		`{"overlapMs":null}`:      24 * time.Hour,
		`{"overlapMs":0}`:         0,
		`{"overlapMs":1500}`:      1500 * time.Millisecond,
		`{"overlapMs":604800000}`: 7 * 24 * time.Hour,
	} {
		overlap, err := ParseRotation([]byte(body))
		require.NoError(t, err, body)
		require.Equal(t, want, overlap, body)
	}
}

func TestParseRotationRefuses(t *testing.T) {
	for body, status := range map[string]int{
		`{"overlapMs":-1}`:        422,
		`{"overlapMs":604800001}`: 422,
		`{"overlapMs":1.5}`:       422,
		`{"overlapMs":"1"}`:       422,
		`{"overlap":1}`:           422,
		`[]`:                      422,
		`{`:                       400,
	} {
		_, err := ParseRotation([]byte(body))
		problem := &httpapi.Problem{}
		require.ErrorAs(t, err, &problem, body)
		require.Equal(t, status, problem.Status, body)
	}
}
