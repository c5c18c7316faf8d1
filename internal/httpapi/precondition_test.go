package httpapi

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
)

func TestReadIfMatch(t *testing.T) {
	versions := func(list ...uint64) *Precondition { return &Precondition{Versions: list} }
	for name, c := range map[string]struct {
		lines []string
		want  *Precondition
	}{
		"none":                      {nil, nil},
		"any":                       {[]string{"*"}, &Precondition{Any: true}},
		"any, with room":            {[]string{" * "}, &Precondition{Any: true}},
		"one":                       {[]string{`"7"`}, versions(7)},
		"the largest":               {[]string{`"18446744073709551615"`}, versions(1<<64 - 1)},
		"several":                   {[]string{`"7", "8","9"`}, versions(7, 8, 9)},
		"the same twice":            {[]string{`"7","7"`}, versions(7)},
		"in several headers":        {[]string{`"7"`, `"8"`}, versions(7, 8)},
		"empty members":             {[]string{`, "7" ,, "8",`}, versions(7, 8)},
		"a weak one":                {[]string{`W/"7"`}, versions()},
		"a weak one among others":   {[]string{`W/"7", "8"`}, versions(8)},
		"a foreign one":             {[]string{`"abc"`}, versions()},
		"a foreign one with commas": {[]string{`"7,8", "9"`}, versions(9)},
		"an empty tag":              {[]string{`""`}, versions()},
		"another spelling":          {[]string{`"07", "+8", "0x9"`}, versions()},
		"larger than any":           {[]string{`"18446744073709551616"`}, versions()},
		"not ASCII":                 {[]string{"\"\xe9\", \"7\""}, versions(7)},
	} {
		t.Run(name, func(t *testing.T) {
			got, problem := readIfMatch(c.lines)
			require.Nil(t, problem)
			require.Equal(t, c.want, got)
		})
	}
}

func TestReadIfMatchRefuses(t *testing.T) {
	for name, lines := range map[string][]string{
		"nothing in it":          {""},
		"commas alone":           {" , ,"},
		"no quotes":              {"7"},
		"no end":                 {`"7`},
		"no beginning":           {`7"`},
		"half a list":            {`"7", 8`},
		"no comma":               {`"7" "8"`},
		"joined":                 {`"7""8"`},
		"a small w":              {`w/"7"`},
		"weak without a tag":     {`W/`},
		"any among others":       {`*, "7"`},
		"any beside others":      {`"7"`, "*"},
		"any twice":              {"*", "*"},
		"a space in a tag":       {`"7 8"`},
		"a control character":    {"\"7\x01\""},
		"something behind a tag": {`"7"x`},
	} {
		t.Run(name, func(t *testing.T) {
			got, problem := readIfMatch(lines)
			require.Nil(t, got)
			require.NotNil(t, problem)
			require.Equal(t, 400, problem.Status)
			require.Equal(t, "malformed_if_match", problem.Code)
		})
	}
}

func readIfMatch(lines []string) (*Precondition, *Problem) {
	var ctx fasthttp.RequestCtx
	for _, line := range lines {
		ctx.Request.Header.Add("if-match", line)
	}
	return ReadIfMatch(&ctx)
}
