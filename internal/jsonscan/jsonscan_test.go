package jsonscan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/jsonscan"
)

func nested(depth int) string {
	return strings.Repeat(`{"a":`, depth-1) + `{}` + strings.Repeat(`}`, depth-1)
}

func TestWhatIsAccepted(t *testing.T) {
	for name, body := range map[string]string{
		"empty object":              `{}`,
		"white space everywhere":    " \t\r\n{ \"a\" \n:\t[ ] , \"b\" : { } } \n",
		"every kind":                `{"a":null,"b":true,"c":false,"d":-0.5e+10,"e":"x","f":[1,[2]],"g":{"h":{}}}`,
		"numbers":                   `{"a":[0,-0,10,0.0,1e1,1E-1,123456789012345678901234567890]}`,
		"escapes":                   `{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}`,
		"a lone surrogate":          `{"a":"\ud800","b":"\udc00x"}`,
		"text that is not ASCII":    `{"é":"日本語 😀"}`,
		"as deep as allowed":        nested(jsonscan.MaxDepth),
		"arrays as deep as allowed": `{"a":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`,
		"duplicate keys":            `{"a":1,"a":2}`,
		"an empty key":              `{"":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, jsonscan.Compile("/a/a", "/g/h").Scan([]byte(body), make([]jsonscan.Value, 2)))
			require.True(t, jsonscan.Valid([]byte(body)))
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ body, reason string }{
		"nothing":                         {``, "not an object at byte 0"},
		"white space only":                {"  ", "not an object at byte 2"},
		"a byte order mark":               {"\ufeff{}", "not an object at byte 0"},
		"null":                            {`null`, "not an object at byte 0"},
		"an array":                        {`[{}]`, "not an object at byte 0"},
		"a string":                        {`"x"`, "not an object at byte 0"},
		"a second object":                 {`{} {}`, "something follows the object at byte 3"},
		"cut after a bracket":             {`{`, "a key is missing at byte 1"},
		"cut in a key":                    {`{"a`, "ends too early at byte 3"},
		"cut in a value":                  {`{"a":{"b":[`, "ends too early at byte 11"},
		"cut after a comma":               {`{"a":{"b":1,`, "a key is missing at byte 12"},
		"no colon":                        {`{"a" 1}`, "a colon is missing at byte 5"},
		"no value":                        {`{"a":}`, "a value is missing at byte 5"},
		"no comma":                        {`{"a":1 "b":2}`, "a comma or a closing bracket is missing at byte 7"},
		"a trailing comma":                {`{"a":1,}`, "a key is missing at byte 7"},
		"a trailing comma in an array":    {`{"a":[1,]}`, "a value is missing at byte 8"},
		"a leading comma":                 {`{,"a":1}`, "a key is missing at byte 1"},
		"a leading comma in an array":     {`{"x":[,1]}`, "a value is missing at byte 6"},
		"the wrong closing bracket":       {`{"x":[1}}`, "a comma or a closing bracket is missing at byte 7"},
		"the wrong bracket for an object": {`{"x":{"y":1]}`, "a comma or a closing bracket is missing at byte 11"},
		"a key without quotes":            {`{a:1}`, "a key is missing at byte 1"},
		"single quotes":                   {`{'a':1}`, "a key is missing at byte 1"},
		"a comment":                       {`{/**/"a":1}`, "a key is missing at byte 1"},
		"a leading zero":                  {`{"a":01}`, "a malformed number at byte 5"},
		"a plus sign":                     {`{"a":+1}`, "a value is missing at byte 5"},
		"a bare minus":                    {`{"a":-}`, "a malformed number at byte 6"},
		"a bare point":                    {`{"a":1.}`, "a malformed number at byte 7"},
		"a bare exponent":                 {`{"a":1e+}`, "a malformed number at byte 8"},
		"NaN":                             {`{"a":NaN}`, "a value is missing at byte 5"},
		"a half literal":                  {`{"a":tru}`, "a value is missing at byte 5"},
		"a line break in a string":        {"{\"a\":\"x\n\"}", "a control character in a string at byte 7"},
		"a NUL in a long string":          {"{\"a\":\"0123456789\x00\"}", "a control character in a string at byte 16"},
		"an unknown escape":               {`{"a":"\x"}`, "an unknown escape sequence at byte 7"},
		"a bad unicode escape":            {`{"a":"\u00g0"}`, "an unknown escape sequence at byte 10"},
		"a cut unicode escape":            {`{"a":"\u00`, "ends too early at byte 10"},
		"not UTF-8 in a value":            {"{\"a\":\"x\xff\"}", "not UTF-8 at byte 7"},
		"not UTF-8 in a key":              {"{\"\xc3\x28\":1}", "not UTF-8 at byte 2"},
		"a surrogate as bytes":            {"{\"a\":\"\xed\xa0\x80\"}", "not UTF-8 at byte 6"},
		"too deep":                        {nested(jsonscan.MaxDepth + 1), "nested deeper than 64 at byte 320"},
		"much too deep":                   {`{"x":` + strings.Repeat("[", 100000), "nested deeper than 64 at byte 68"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range []*jsonscan.Scanner{jsonscan.Compile(), jsonscan.Compile("/a/b/0", "/a", "/x/0")} {
				err := s.Scan([]byte(c.body), make([]jsonscan.Value, 3))
				require.ErrorContains(t, err, c.reason)
				var syntax *jsonscan.SyntaxError
				require.ErrorAs(t, err, &syntax)
			}
			require.False(t, jsonscan.Valid([]byte(c.body)))
		})
	}
}

func TestWhatIsCaptured(t *testing.T) {
	for name, c := range map[string]struct{ path, body, want string }{
		"a member":                               {"/id", `{"x":1,"id":"evt_1","y":[]}`, `"evt_1"`},
		"a nested member":                        {"/data/object/id", `{"data":{"x":{"object":0},"object":{"id":"sub_1"}}}`, `"sub_1"`},
		"a container, without its surroundings":  {"/a", `{"a" : { "b" : [ 1 ] } , "c":2}`, `{ "b" : [ 1 ] }`},
		"an element":                             {"/a/1", `{"a":[1,{"b":2},3]}`, `{"b":2}`},
		"a member of an element":                 {"/a/1/b", `{"a":[1,{"b":2},3]}`, `2`},
		"a member whose key is a number":         {"/a/1", `{"a":{"1":"x"}}`, `"x"`},
		"the document":                           {"", ` {"a":1} `, `{"a":1}`},
		"null":                                   {"/a", `{"a":null}`, `null`},
		"nothing there":                          {"/a/b", `{"a":{"c":1}}`, ``},
		"a scalar on the way":                    {"/a/b", `{"a":"b"}`, ``},
		"no element of that index":               {"/a/2", `{"a":[0,1]}`, ``},
		"an index with a leading zero":           {"/a/01", `{"a":[0,1]}`, ``},
		"a key with an escape":                   {"/id", `{"\u0069\u0064":1}`, `1`},
		"a key with slash and tilde":             {"/a~1b~0c", `{"a/b~c":1}`, `1`},
		"a key that begins alike":                {"/id", `{"idx":1,"i":2}`, ``},
		"keys differ in case":                    {"/id", `{"ID":1}`, ``},
		"the last of two":                        {"/id", `{"id":1,"id":2}`, `2`},
		"the last of two, one of them escaped":   {"/id", `{"id":1,"i\u0064":2}`, `2`},
		"the last parent":                        {"/a/b", `{"a":{"b":1},"a":{"b":2}}`, `2`},
		"the last parent, which has no such key": {"/a/b", `{"a":{"b":1},"a":{"c":2}}`, ``},
		"the last parent, a scalar":              {"/a/b", `{"a":{"b":1},"a":0}`, ``},
		"the last parent, an array":              {"/a/b", `{"a":{"b":1},"a":["b"]}`, ``},
		"the last element's parent":              {"/a/0", `{"a":[1],"a":[]}`, ``},
		"a lone surrogate as key":                {"/\ufffd", `{"\ud800":1}`, `1`},
	} {
		t.Run(name, func(t *testing.T) {
			out := make([]jsonscan.Value, 1)
			require.NoError(t, jsonscan.Compile(c.path).Scan([]byte(c.body), out))
			require.Equal(t, c.want, string(out[0].Raw))
			require.Equal(t, c.want == "", out[0].Kind == jsonscan.Absent)
		})
	}
}

func TestParentAndChildAreBothCaptured(t *testing.T) {
	out := make([]jsonscan.Value, 3)
	require.NoError(t, jsonscan.Compile("/a", "/a/b", "/a").Scan([]byte(`{"a":{"b":7}}`), out))
	require.Equal(t, `{"b":7}`, string(out[0].Raw))
	require.Equal(t, `7`, string(out[1].Raw))
	require.Equal(t, out[0], out[2])
}

func TestPathsThatAreRefused(t *testing.T) {
	for _, path := range []string{"id", "/a~", "/a~2b", strings.Repeat("/a", 64)} {
		_, err := jsonscan.Parse(path)
		require.Error(t, err, path)
		require.Panics(t, func() { jsonscan.Compile(path) })
	}
}

func TestValues(t *testing.T) {
	s := jsonscan.Compile("/v")
	read := func(v string) jsonscan.Value {
		out := make([]jsonscan.Value, 1)
		require.NoError(t, s.Scan([]byte(`{"v":`+v+`}`), out))
		return out[0]
	}
	t.Run("text", func(t *testing.T) {
		require.Equal(t, "a/é\n😀�x", read(`"a\/\u00e9\n\ud83d\ude00\ud800x"`).String())
		require.Equal(t, "plain", read(`"plain"`).String())
		require.Equal(t, "", read(`12`).String())
		require.Equal(t, "x-é", string(read(`"\u00e9"`).Append([]byte("x-"))))
		require.True(t, read(`""`).Empty())
		require.True(t, read(`1`).Empty())
		require.False(t, read(`"\u0020"`).Empty())
	})
	t.Run("integers", func(t *testing.T) {
		for text, want := range map[string]bool{"0": true, "-9223372036854775808": true, "9223372036854775808": false, "1.0": false, "1e3": false, `"1"`: false, "null": false} {
			_, ok := read(text).Int64()
			require.Equal(t, want, ok, text)
		}
		n, _ := read("1700000000").Int64()
		require.EqualValues(t, 1700000000, n)
	})
	t.Run("booleans", func(t *testing.T) {
		truth, ok := read("true").Bool()
		require.True(t, truth && ok)
		truth, ok = read("false").Bool()
		require.True(t, !truth && ok)
		_, ok = read("0").Bool()
		require.False(t, ok)
	})
	t.Run("existence", func(t *testing.T) {
		require.False(t, read("null").Exists())
		require.False(t, jsonscan.Value{}.Exists())
		require.True(t, read("false").Exists())
	})
	t.Run("elements", func(t *testing.T) {
		var got []string
		for v := range read(` [ 1, {"a":[2]} ,"x" ] `).Elements() {
			got = append(got, string(v.Raw))
		}
		require.Equal(t, []string{"1", `{"a":[2]}`, `"x"`}, got)
		for range read(`[]`).Elements() {
			t.Fatal("an empty array has no elements")
		}
	})
	t.Run("members", func(t *testing.T) {
		var got []string
		for k, v := range read(` { "a\n" : 1, "b":{} , "b" : [ ] } `).Members() {
			got = append(got, fmt.Sprintf("%q=%s", k, v.Raw))
		}
		require.Equal(t, []string{`"a\n"=1`, `"b"={}`, `"b"=[ ]`}, got)
		for range read(`7`).Members() {
			t.Fatal("a number has no members")
		}
	})
}

func TestScanningAllocatesNothing(t *testing.T) {
	s := jsonscan.Compile("/id", "/data/object/metadata/org_id", "/data/object/items/data/0/id")
	body := []byte(`{"id":"evt_1","data":{"object":{"metadata":{"org_id":"o"},"items":{"data":[{"\u0069d":"si_1"}]}}}}`)
	out := make([]jsonscan.Value, s.Paths())
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if s.Scan(body, out) != nil {
			panic("refused")
		}
	}))
	require.Equal(t, `"si_1"`, string(out[2].Raw))
}

// FuzzScan compares with encoding/json: what is accepted, and what is found at the paths.
func FuzzScan(f *testing.F) {
	for _, seed := range []string{
		`{"id":"evt_1","data":{"object":{"id":"x"}}}`, `{"a":{"b":1},"a":{"c":[{}]}}`, `{"a":[0,{"b":"\ud83d\ude00\ud800\n"}]}`,
		`{"\u0061":{"b":-1.5e3}}`, `{"a":tru}`, "{\"a\":\"\xff\"}", `{"a":"\ud800\udc00\udc00\ud800"}`, nested(64), nested(65), `{} x`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	s := jsonscan.Compile("", "/a", "/a/b", "/a/1/b", "/id")
	f.Fuzz(func(t *testing.T, body []byte) {
		out := make([]jsonscan.Value, s.Paths())
		err := s.Scan(body, out)
		require.Equal(t, err == nil, jsonscan.Valid(body), "with and without paths")
		var want any
		accepted := json.Unmarshal(body, &want) == nil && utf8.Valid(body)
		object, isObject := want.(map[string]any)
		require.Equal(t, accepted && isObject && depthOf(body) <= jsonscan.MaxDepth, err == nil, "%v", err)
		if err != nil {
			var syntax *jsonscan.SyntaxError
			require.True(t, errors.As(err, &syntax) && syntax.Offset <= len(body))
			return
		}
		require.Equal(t, object, decode(t, out[0]))
		require.Equal(t, object["a"], decode(t, out[1]))
		require.Equal(t, object["id"], decode(t, out[4]))
		a, _ := object["a"].(map[string]any)
		require.Equal(t, a["b"], decode(t, out[2]))
		require.Equal(t, at1b(object["a"]), decode(t, out[3]))
	})
}

// at1b is the value at /1/b.
func at1b(v any) any {
	switch x := v.(type) {
	case map[string]any:
		v = x["1"]
	case []any:
		v = nil
		if len(x) > 1 {
			v = x[1]
		}
	}
	m, _ := v.(map[string]any)
	return m["b"]
}

// decode reads a captured value with encoding/json and checks the accessors against it.
func decode(t *testing.T, v jsonscan.Value) (decoded any) {
	if v.Kind == jsonscan.Absent {
		return nil
	}
	require.NoError(t, json.Unmarshal(v.Raw, &decoded))
	switch x := decoded.(type) {
	case string:
		require.Equal(t, x, v.String())
		require.Equal(t, x == "", v.Empty())
	case float64:
		var n int64
		fits := json.Unmarshal(v.Raw, &n) == nil
		got, ok := v.Int64()
		require.Equal(t, fits, ok)
		require.Equal(t, n, got)
	case []any:
		i := 0
		for e := range v.Elements() {
			require.Equal(t, x[i], decode(t, e))
			i++
		}
		require.Len(t, x, i)
	case map[string]any:
		got := map[string]any{}
		for k, m := range v.Members() {
			got[k] = decode(t, m)
		}
		require.Equal(t, x, got)
	}
	return decoded
}

func depthOf(body []byte) (deepest int) {
	depth := 0
	for d := json.NewDecoder(bytes.NewReader(body)); ; {
		token, err := d.Token()
		if err != nil {
			if err != io.EOF {
				return -1
			}
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		deepest = max(deepest, depth)
	}
}
