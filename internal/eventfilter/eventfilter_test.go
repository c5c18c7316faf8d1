package eventfilter_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/eventfilter"
)

const body = `{"id":"evt_1","type":"loop.completed","timestamp":"2026-01-02T03:04:05.000Z","organizationId":"org_1",` +
	`"source":"/loops","subject":null,"correlationId":null,"causationId":null,"schemaVersion":1,` +
	`"data":{"loopId":"dcm.order","total":5,"lines":[{"sku":"A"},{"sku":"B"}],"ok":true}}`

func compiler(t testing.TB) *eventfilter.Compiler {
	c, err := eventfilter.NewCompiler()
	require.NoError(t, err)
	return c
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		filter string
		want   bool
	}{
		{`type == "loop.completed"`, true},
		{`type.startsWith("import.")`, false},
		{`event.organizationId == "org_1"`, true},
		{`event.data.total == data.total`, true},
		{`data.total == 5`, true},
		{`data.total > 5`, false},
		{`schemaVersion == 1`, true},
		{`subject == null`, true},
		{`has(data.missing) && data.missing == 1`, false},
		{`data.lines.exists(l, l.sku == "B")`, true},
		{`data.ok`, true},
		{`timestamp(timestamp) > timestamp("2026-01-01T00:00:00Z")`, true},
		{`data.loopId in ["dcm.order", "dcm.returns"]`, true},
	} {
		t.Run(tc.filter, func(t *testing.T) {
			event, err := eventfilter.Decode([]byte(body))
			require.NoError(t, err)
			f, err := compiler(t).Compile(tc.filter)
			require.NoError(t, err)
			got, err := f.Match(event)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, filter := range map[string]string{
		"empty":            "",
		"no CEL":           "data.total >",
		"unknown variable": `secret == "x"`,
		"no bool":          `"text"`,
		"too long":         `"` + strings.Repeat("a", eventfilter.MaxBytes) + `" == type`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := compiler(t).Compile(filter)
			require.Error(t, err)
		})
	}
}

func TestMatchFailsWhenTheFilterCannotSay(t *testing.T) {
	event, err := eventfilter.Decode([]byte(body))
	require.NoError(t, err)
	list := "[" + strings.Repeat("1,", 99) + "1]"
	for name, filter := range map[string]string{
		"missing member": `data.missing == 1`,
		"no bool":        `data.total`,
		"cost":           list + `.all(a, ` + list + `.all(b, ` + list + `.all(c, a == b || c == 1)))`,
	} {
		t.Run(name, func(t *testing.T) {
			f, err := compiler(t).Compile(filter)
			require.NoError(t, err)
			_, err = f.Match(event)
			require.Error(t, err)
		})
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`data.total == 5`)
	f.Add(`data.lines.exists(l, l.sku == "B")`)
	c := compiler(f)
	event, err := eventfilter.Decode([]byte(body))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, filter string) {
		compiled, err := c.Compile(filter)
		if err != nil {
			return
		}
		_, _ = compiled.Match(event)
	})
}
