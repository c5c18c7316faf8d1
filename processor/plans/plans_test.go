package plans

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const sample = `
version: 2026-11
defaultPlan: FREE
graceDays: 3
plans:
  FREE: {tier: 0}
  SCM_PRO:
    tier: 2
    match: [price_1, "lookup:pro", prod_9]
    capabilities: [FORECASTING, OWN_KEY, FORECASTING]
    limits: {locations: 5}
    loopCommitments: {scm.procurement: 1000}
  TEAM: {tier: 1, match: [price_2]}
`

func TestBuiltin(t *testing.T) {
	p := Builtin()
	require.Equal(t, "FREE", p.Default.Name)
	require.Equal(t, 7*24*time.Hour, p.Grace)
	require.Equal(t, builtinCapabilities[:], p.Capabilities)
	for name, tier := range map[string]uint32{"FREE": 0, "HOSTED": 1, "SCM_STARTER": 1, "SCM_PRO": 2, "SCM_ENTERPRISE": 3} {
		require.NotNil(t, p.Named(name), name)
		require.Equal(t, tier, p.Named(name).Tier, name)
	}
	require.Equal(t, "SCM_PRO", p.Match("price_any", "scm_pro", "prod_any").Name)
	require.Equal(t, p.Capabilities, p.Named("SCM_ENTERPRISE").Capabilities)
}

func TestParse(t *testing.T) {
	p, err := Parse([]byte(sample))
	require.NoError(t, err)
	require.Equal(t, "2026-11", p.Version)
	require.Equal(t, 3*24*time.Hour, p.Grace)
	require.Contains(t, p.Capabilities, "OWN_KEY")
	require.Contains(t, p.Capabilities, "PLANNING")
	pro := p.Named("SCM_PRO")
	require.Equal(t, []string{"FORECASTING", "OWN_KEY"}, pro.Capabilities)
	require.Equal(t, int64(5), pro.Limits["locations"])
	require.Equal(t, int64(1000), pro.LoopCommitments["scm.procurement"])
	require.True(t, pro.Has("OWN_KEY"))
	require.False(t, pro.Has("PLANNING"))
}

func TestMatch(t *testing.T) {
	p, err := Parse([]byte(sample))
	require.NoError(t, err)
	for name, test := range map[string]struct{ price, lookup, product, want string }{
		"price":                       {"price_1", "", "", "SCM_PRO"},
		"lookup key":                  {"price_x", "pro", "", "SCM_PRO"},
		"product":                     {"price_x", "", "prod_9", "SCM_PRO"},
		"the price before all":        {"price_2", "pro", "prod_9", "TEAM"},
		"nothing":                     {"price_x", "other", "prod_1", ""},
		"a product is not a price":    {"prod_9", "", "", ""},
		"empty":                       {"", "", "", ""},
		"a lookup key is not a price": {"lookup:pro", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan := p.Match(test.price, test.lookup, test.product)
			if test.want == "" {
				require.Nil(t, plan)
				return
			}
			require.Equal(t, test.want, plan.Name)
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"nothing":               {"", "is empty"},
		"not YAML":              {"{", "yaml"},
		"an unknown field":      {"version: a\ndefaultPlan: A\nplans: {A: {tier: 0, prices: [x]}}", "field prices not found"},
		"no version":            {"defaultPlan: A\nplans: {A: {tier: 0}}", "version: missing"},
		"no default":            {"version: a\nplans: {A: {tier: 0}}", "defaultPlan: missing"},
		"an unknown default":    {"version: a\ndefaultPlan: B\nplans: {A: {tier: 0}}", `there is no plan "B"`},
		"a tier too high":       {"version: a\ndefaultPlan: A\nplans: {A: {tier: 4}}", "tier: 4"},
		"negative grace":        {"version: a\ndefaultPlan: A\ngraceDays: -1\nplans: {A: {tier: 0}}", "graceDays"},
		"a price in two plans":  {"version: a\ndefaultPlan: A\nplans: {A: {match: [price_1]}, B: {match: [price_1]}}", "belongs to plan A"},
		"an unknown match kind": {"version: a\ndefaultPlan: A\nplans: {A: {match: ['lookpu:x']}}", "lookpu:x"},
		"an empty lookup":       {"version: a\ndefaultPlan: A\nplans: {A: {match: ['lookup:']}}", "lookup:"},
		"a lower-case key":      {"version: a\ndefaultPlan: A\nplans: {A: {capabilities: [forecasting]}}", "forecasting"},
		"a negative limit":      {"version: a\ndefaultPlan: A\nplans: {A: {limits: {x: -1}}}", "limits.x"},
		"a commitment of none":  {"version: a\ndefaultPlan: A\nplans: {A: {loopCommitments: {x: 0}}}", "loopCommitments.x"},
		"a plan twice":          {"version: a\ndefaultPlan: A\nplans: {A: {}, A: {}}", "already defined"},
		"two documents":         {"version: a\ndefaultPlan: A\nplans: {A: {}}\n---\nversion: b", "more than one"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestParseNamesEverythingThatIsWrong(t *testing.T) {
	_, err := Parse([]byte("plans: {A: {tier: 9}}"))
	require.ErrorContains(t, err, "version")
	require.ErrorContains(t, err, "defaultPlan")
	require.ErrorContains(t, err, "tier: 9")
}

func TestLoad(t *testing.T) {
	p, err := Load("")
	require.NoError(t, err)
	require.Equal(t, "builtin-1", p.Version)

	path := filepath.Join(t.TempDir(), "plans.yaml")
	require.NoError(t, os.WriteFile(path, []byte(sample), 0o600))
	p, err = Load(path)
	require.NoError(t, err)
	require.Equal(t, "2026-11", p.Version)

	_, err = Load(path + ".absent")
	require.ErrorContains(t, err, "read plans")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add(builtin)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		require.True(t, (p == nil) != (err == nil))
	})
}
