package id

import (
	"regexp"
	"strings"
	"testing"

	"github.com/gofrs/uuid/v5"
	"github.com/stretchr/testify/require"
	typeid "go.jetify.com/typeid/v2"
)

// contract is the form that CONTRACT §1 promises for every id of ours.
var contract = regexp.MustCompile(`^(evt|ep|dlv|att|con|key|rpl|req|cmd|aud)_[0-9a-hjkmnp-tv-z]{26}$`)

var prefixes = []string{Event, Endpoint, Delivery, Attempt, Connection, Key, Replay, Request, Command, Audit}

func TestNewIDsAreTypeIDsOfUUIDv7(t *testing.T) {
	for _, prefix := range prefixes {
		s := New(prefix)
		require.Regexp(t, contract, s)
		require.True(t, Valid(prefix, s))

		parsed, err := typeid.Parse(s)
		require.NoError(t, err)
		require.Equal(t, prefix, parsed.Prefix())
		require.Equal(t, byte(7), uuid.FromBytesOrNil(parsed.Bytes()).Version())
	}
}

func TestNewIDsDifferAndSortByMillisecond(t *testing.T) {
	const milliseconds = len("evt_") + 10 // 48 bits and 2 of padding, five a character
	seen := map[string]bool{}
	previous := ""
	for range 1000 {
		s := New(Event)
		require.False(t, seen[s])
		seen[s] = true
		require.GreaterOrEqual(t, s[:milliseconds], previous)
		previous = s[:milliseconds]
	}
}

// Computed by another implementation. The values are bound to rows and records that exist: a change of the algorithm is a loss of identity.
func TestDerivedIDsAreFixedForEver(t *testing.T) {
	require.Equal(t, "evt_7pzk4ebfmkgv9v11yc6xq1bbej", Derive(Event, "stripe", "evt_1NG8Du2eZvKYlo2CUI79vXWy"))
	require.Equal(t, "dlv_24ph58j7x6hv4tx42w5nkypg0f", Derive(Delivery, "evt_a", "ep_b", ""))
}

func TestDerivedIDsDependOnEveryPartAndItsPlace(t *testing.T) {
	base := Derive(Event, "ab", "c")
	require.Equal(t, base, Derive(Event, "ab", "c"))
	for name, parts := range map[string][]string{
		"split elsewhere": {"a", "bc"},
		"joined":          {"abc"},
		"order":           {"c", "ab"},
		"empty part":      {"ab", "c", ""},
		"none":            {},
	} {
		require.NotEqual(t, base, Derive(Event, parts...), name)
	}
}

func TestDerivedIDsAreUUIDv8(t *testing.T) {
	parsed, err := typeid.Parse(Derive(Attempt, "dlv_x", "3"))
	require.NoError(t, err)
	u := uuid.FromBytesOrNil(parsed.Bytes())
	require.Equal(t, byte(8), u.Version())
	require.Equal(t, uuid.VariantRFC9562, u.Variant())
}

func TestDeriveTakesPartsOfAnyLength(t *testing.T) {
	require.True(t, Valid(Event, Derive(Event, strings.Repeat("x", 10_000), "y")))
}

func TestValid(t *testing.T) {
	good := Derive(Endpoint, "x")
	for name, c := range map[string]struct {
		s    string
		want bool
	}{
		"good":           {good, true},
		"other prefix":   {Derive(Event, "x"), false},
		"upper case":     {"ep_" + strings.ToUpper(good[3:]), false},
		"too short":      {good[:len(good)-1], false},
		"too long":       {good + "0", false},
		"beyond 128 bit": {"ep_8" + good[4:], false},
		"letter u":       {good[:len(good)-1] + "u", false},
		"no separator":   {"ep" + good[3:], false},
		"empty":          {"", false},
		"prefix only":    {"ep_", false},
	} {
		require.Equal(t, c.want, Valid(Endpoint, c.s), name)
	}
}

func TestValidOrg(t *testing.T) {
	for s, want := range map[string]bool{
		"acme":                  true,
		"Org_1-x":               true,
		strings.Repeat("a", 64): true,
		strings.Repeat("a", 65): false,
		"":                      false,
		"a b":                   false,
		"a/b":                   false,
		"ü":                     false,
		"a.b":                   false,
	} {
		require.Equal(t, want, ValidOrg(s), "%q", s)
	}
}

func TestDeriveAllocatesOnlyItsResult(t *testing.T) {
	allocs := testing.AllocsPerRun(100, func() { Derive(Event, "stripe", "evt_1NG8Du2eZvKYlo2CUI79vXWy") })
	require.LessOrEqual(t, allocs, 1.0)
}

func FuzzValid(f *testing.F) {
	f.Add("evt_7pzk4ebfmkgv9v11yc6xq1bbej")
	f.Add("evt_")
	f.Fuzz(func(t *testing.T, s string) {
		if Valid(Event, s) {
			parsed, err := typeid.Parse(s)
			require.NoError(t, err)
			require.Equal(t, s, parsed.String())
		}
	})
}
