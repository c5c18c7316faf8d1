package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/kafka"
)

func TestExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		"help":            {"--help", exitOK, "deliverer", ""},
		"help of command": {"send stripe --help", exitOK, "--new-ids", ""},
		"version":         {"version", exitOK, "webhooks ", ""},
		"nothing":         {"", exitRefused, "", "say what to run"},
		"unknown":         {"fly", exitRefused, "", "fly"},
		"missing":         {"ingest", exitRefused, "", "ADMIN_API_KEY"},
		"wrong":           {"run --retry-jitter=2", exitRefused, "", "from 0 to 1"},
		"cannot listen":   {"run --http-addr=192.0.2.1:0", exitRefused, "", "HTTP_ADDR"},
		"no plans":        {"run --plans-file=/nowhere/plans.yaml", exitRefused, "", "PLANS_FILE"},
		"broken plans":    {"run --plans-file=main_test.go", exitRefused, "", "PLANS_FILE"},
		"no sample":       {"send stripe nothing --url=http://127.0.0.1:1 --secret=x", exitFailed, "", "subscription.created"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, c.code, run(strings.Fields(c.args), &stdout, &stderr))
			require.Contains(t, stdout.String(), c.stdout)
			require.Contains(t, stderr.String(), c.stderr)
			if c.code != exitOK {
				require.Equal(t, 1, strings.Count(stderr.String(), "\n"), "one line says it: %s", stderr.String())
			}
		})
	}
}

func TestAWrongSettingThatShowsLaterIsARefusalToo(t *testing.T) {
	var stderr bytes.Buffer
	require.Equal(t, exitRefused, exitCode("run", fmt.Errorf("stage topics: %w", kafka.ErrPartitions), &stderr))
	require.Equal(t, exitRefused, exitCode("run", refuse(errors.New("port taken")), &stderr))
	require.Equal(t, exitFailed, exitCode("run", errors.Join(errors.New("stage sink"), errors.New("stage x")), &stderr))
	require.Contains(t, stderr.String(), "stage sink; stage x\n")
}
