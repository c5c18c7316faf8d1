package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/betterdata/webhooks/"

// TestLayout holds the rules of ARCHITECTURE.md about who may import whom: they are what lets a service run apart, and
// the domain be tested as functions.
func TestLayout(t *testing.T) {
	// What may import what of ours, by the first element of the path; deploy and bench may import everything.
	may := map[string]string{
		"schemas": "schemas", "internal": "schemas internal",
		"ingest": "schemas internal ingest", "processor": "schemas internal processor", "deliverer": "schemas internal deliverer",
	}
	domain := map[string]bool{
		"processor/billing": true, "processor/plans": true, "processor/commands": true, "processor/idempotency": true,
		"deliverer/schedule": true,
	}
	outside := []string{"github.com/twmb/franz-go", module + "internal/kafka", module + "internal/table", module + "internal/sink",
		module + "internal/clickhouse", "math/rand", "net/http/httptest", "log/slog"}
	clock := regexp.MustCompile(`\btime\.(Now|Since|Until|After|AfterFunc|Sleep|NewTimer|NewTicker|Tick)\(`)

	list := exec.Command("go", "list", "-f", `{{.ImportPath}}|{{.Dir}}|{{join .GoFiles " "}}|{{join .Imports " "}}`, "./...")
	out, err := list.Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		parts := strings.Split(strings.TrimSpace(line), "|")
		name, imports := strings.TrimPrefix(parts[0], module), strings.Fields(parts[3])
		top, _, _ := strings.Cut(name, "/")
		if strings.HasPrefix(name, "internal/testenv") {
			continue // runs the whole system for tests
		}
		for _, imported := range imports {
			if ours, is := strings.CutPrefix(imported, module); is && may[top] != "" {
				of, _, _ := strings.Cut(ours, "/")
				require.Contains(t, strings.Fields(may[top]), of, "%s imports %s", name, ours)
			}
			for _, prefix := range outside {
				require.False(t, domain[name] && strings.HasPrefix(imported, prefix), "%s is domain logic and imports %s", name, imported)
			}
		}
		if !domain[name] {
			continue
		}
		delete(domain, name)
		for _, file := range strings.Fields(parts[2]) {
			source, err := os.ReadFile(filepath.Join(parts[1], file))
			require.NoError(t, err)
			require.Empty(t, clock.FindString(string(source)), "%s/%s has a clock: its caller gives it the time", name, file)
		}
	}
	require.Empty(t, domain, "packages that are not there")
}
