package main

import (
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/betterdata/webhooks/internal/settings"
	"github.com/betterdata/webhooks/internal/testenv"
)

// elsewhere are the metrics that are on no dashboard, and why.
var elsewhere = map[string]string{
	"webhooks_processor_lag_records": "webhooks_stream_lag_records has it, by group",
	"webhooks_deliverer_lag_records": "webhooks_stream_lag_records has it, by group",
}

// question is an expression of a rule or a dashboard.
type question struct {
	where, expr string
	// shown are the labels that its text names.
	shown []string
}

// TestDashboardsAndRulesAskForWhatIsExported asks a real Prometheus, which scrapes the whole system put together and not
// started, every question of deploy/prometheus and deploy/grafana: its metrics and labels must be there, and every metric
// must have a place on a dashboard.
func TestDashboardsAndRulesAskForWhatIsExported(t *testing.T) {
	s := putTogether(t)
	p := testenv.NewPrometheus(t, s.admin.addr.String(), "deploy/prometheus/rules.yml")
	onDashboards, inRules := dashboardQuestions(t), ruleQuestions(t)
	testenv.Eventually(t, 30*time.Second, func() bool {
		return len(p.Query(t, "webhooks:deliveries_late:ratio_rate5m")) > 0 // needs two scrapes
	}, "rules have been evaluated")
	for _, q := range slices.Concat(onDashboards, inRules) {
		requireAnswerable(t, p, q)
	}

	asked := map[string]bool{}
	for _, q := range onDashboards {
		for _, selector := range selectors.FindAllString(q.expr, -1) {
			name, _, _ := strings.Cut(selector, "{")
			asked[name] = true
		}
	}
	families, err := s.reg.Gather()
	require.NoError(t, err)
	left := maps.Clone(elsewhere)
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "webhooks_") {
			continue
		}
		shown := asked[name] || asked[name+"_bucket"] || asked[name+"_count"]
		require.Equal(t, left[name] == "", shown, "%s: a dashboard shows it, or elsewhere says why none does", name)
		delete(left, name)
	}
	require.Empty(t, left, "are not exported")
}

// putTogether is the whole system as `webhooks run` has it, with nothing behind it.
func putTogether(t *testing.T) *service {
	t.Helper()
	cli, _, err := settings.Parse([]string{
		"run", "--data-dir", t.TempDir(), "--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
		"--kafka-brokers", "127.0.0.1:1", "--clickhouse-url", "clickhouse://127.0.0.1:1/webhooks", "--alertmanager-url", "http://127.0.0.1:1",
	}, io.Discard)
	require.NoError(t, err)
	s, err := newService(t.Context(), cli.Run.Process, cli.Run.HTTP, io.Discard)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.admin.cancel()
		require.NoError(t, <-s.admin.ended)
		require.NoError(t, s.http.Close())
		require.NoError(t, s.close())
	})
	require.NoError(t, s.addAll(t.Context(), cli.Run, io.Discard, io.Discard))
	return s
}

var (
	selectors = regexp.MustCompile(`\b(?:(?:webhooks|process|go)[_:][\w:]*|up)\b(?:\{[^}]*\})?`)
	groupings = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// requireAnswerable requires that Prometheus understands the question, that all it selects is there, and that the labels by
// which it groups, and which its text names, are too.
func requireAnswerable(t *testing.T, p *testenv.Prometheus, q question) {
	t.Helper()
	answer := p.Query(t, q.expr)
	labels := map[string]bool{}
	for _, selector := range selectors.FindAllString(q.expr, -1) {
		series := p.Query(t, "last_over_time("+selector+"[1m])") // the newest scrape may have failed
		require.NotEmpty(t, series, "%s: nothing is %s", q.where, selector)
		for name := range series[0].Metric {
			labels[name] = true
		}
	}
	grouped := map[string]bool{}
	for _, by := range groupings.FindAllStringSubmatch(q.expr, -1) {
		for name := range strings.SplitSeq(by[1], ", ") {
			require.True(t, labels[name], "%s: nothing has the label %s", q.where, name)
			grouped[name] = true
		}
	}
	for _, name := range q.shown {
		switch {
		case len(answer) > 0:
			require.Contains(t, answer[0].Metric, name, "%s: its answer has no such label", q.where)
		case len(grouped) > 0:
			require.True(t, grouped[name], "%s: its answer has no label %s", q.where, name)
		default:
			require.True(t, labels[name], "%s: its answer has no label %s", q.where, name)
		}
	}
}

func named(text string, pattern *regexp.Regexp) (names []string) {
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

func ruleQuestions(t *testing.T) (list []question) {
	t.Helper()
	source, err := os.ReadFile("deploy/prometheus/rules.yml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Record, Expr string
				Annotations         map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(source, &file))
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	for _, group := range file.Groups {
		for _, r := range group.Rules {
			text := strings.Join(slices.Collect(maps.Values(r.Annotations)), " ")
			list = append(list, question{r.Alert + r.Record, r.Expr, named(text, label)})
		}
	}
	return list
}

// dashboard is what this test reads of Grafana's format.
type dashboard struct {
	UID        string
	Templating struct{ List []struct{ Name string } }
	Panels     []struct {
		ID          int
		Type, Title string
		Datasource  struct{ UID string }
		FieldConfig struct{ Defaults struct{ Unit string } }
		Targets     []struct{ RefID, LegendFormat, Expr string }
	}
}

func dashboardQuestions(t *testing.T) (list []question) {
	t.Helper()
	files, err := filepath.Glob("deploy/grafana/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	variables := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "1m")
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		var d dashboard
		require.NoError(t, json.Unmarshal(source, &d), file)
		require.Equal(t, "webhooks-"+strings.TrimSuffix(filepath.Base(file), ".json"), d.UID, "rules name it")
		require.Len(t, d.Templating.List, 3, "%s: data source, job, instance", file)
		ids := map[int]bool{}
		for _, panel := range d.Panels {
			where := file + ": " + panel.Title
			require.False(t, ids[panel.ID], "%s: its id is another's", where)
			ids[panel.ID] = true
			if panel.Type == "row" {
				continue
			}
			require.Equal(t, "${datasource}", panel.Datasource.UID, where)
			require.NotEmpty(t, panel.FieldConfig.Defaults.Unit, "%s: no unit", where)
			require.NotEmpty(t, panel.Targets, where)
			for _, target := range panel.Targets {
				list = append(list, question{where, variables.Replace(target.Expr), named(target.LegendFormat, legend)})
			}
		}
	}
	return list
}
