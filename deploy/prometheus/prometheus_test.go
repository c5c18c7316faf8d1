// Package prometheus has no code: it is where the rules are tested that this folder holds.
package prometheus

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/betterdata/webhooks/internal/testenv"
)

func TestRules(t *testing.T) {
	testenv.Promtool(t, "check", "config", "prometheus.yml")
	testenv.Promtool(t, "test", "rules", "rules_test.yml")
}

// TestWhoIsWokenKnowsWhatToDo holds every alert to what a page needs, and to a test.
func TestWhoIsWokenKnowsWhatToDo(t *testing.T) {
	source, err := os.ReadFile("rules.yml")
	require.NoError(t, err)
	tests, err := os.ReadFile("rules_test.yml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Record, For  string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(source, &file))
	alerts := 0
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			require.True(t, strings.Contains(string(tests), rule.Alert+rule.Record), "%s has a test", rule.Alert+rule.Record)
			if rule.Alert == "" {
				continue
			}
			alerts++
			require.True(t, strings.HasPrefix(rule.Alert, "Webhooks"), rule.Alert)
			require.NotEmpty(t, rule.For, "%s says for how long", rule.Alert)
			require.Contains(t, []string{"page", "ticket"}, rule.Labels["severity"], rule.Alert)
			for _, name := range []string{"summary", "description", "action"} {
				require.NotEmpty(t, rule.Annotations[name], "%s: %s", rule.Alert, name)
			}
			require.FileExists(t, "../grafana/"+strings.TrimPrefix(rule.Annotations["dashboard"], "webhooks-")+".json", rule.Alert)
		}
	}
	require.NotZero(t, alerts)
}
