package httpapi

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
)

type thing struct {
	URL    string             `json:"url"`
	Count  *int               `json:"count"`
	Nested struct{ A string } `json:"nested"`
	List   []struct {
		B bool `json:"b"`
	} `json:"list"`
}

func TestDecodeStrict(t *testing.T) {
	for name, c := range map[string]struct {
		body    string
		status  int
		pointer string
	}{
		"all":                   {`{"url":"x","count":1,"nested":{"A":"y"},"list":[{"b":true}]}`, 0, ""},
		"nothing":               {`{}`, 0, ""},
		"null is none":          {`{"url":"x","count":null}`, 0, ""},
		"unknown":               {`{"urll":"x"}`, 422, "/urll"},
		"other case":            {`{"URL":"x"}`, 422, "/URL"},
		"unknown inside":        {`{"nested":{"B":1}}`, 422, "/nested/B"},
		"unknown in list":       {`{"list":[{},{"c":1}]}`, 422, "/list/1/c"},
		"pointer is escaped":    {`{"a/b~c":1}`, 422, "/a~1b~0c"},
		"wrong type":            {`{"url":7}`, 422, "/url"},
		"no integer":            {`{"count":1.5}`, 422, "/count"},
		"too large":             {`{"count":99999999999999999999}`, 422, "/count"},
		"array":                 {`[]`, 422, ""},
		"empty":                 {``, 400, ""},
		"cut":                   {`{"url":"x"`, 400, ""},
		"misfit, then no JSON":  {`{"url":7,}`, 400, ""},
		"two values":            {`{} {}`, 400, ""},
		"not UTF-8":             {"{\"url\":\"\xff\"}", 400, ""},
		"comment":               {`{} // x`, 400, ""},
		"unknown, then no JSON": {`{"x":1`, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var v thing
			err := DecodeStrict([]byte(c.body), &v)
			if c.status == 0 {
				require.NoError(t, err)
				return
			}
			var p *Problem
			require.ErrorAs(t, err, &p)
			require.Equal(t, c.status, p.Status, "%v %v", p, p.Errors)
			if c.status == 422 {
				require.Equal(t, c.pointer, p.Errors[0].Pointer)
				require.NotEmpty(t, p.Errors[0].Detail)
			}
		})
	}
}

func TestDecodeStrictTakesTheLastOfDuplicates(t *testing.T) {
	var v thing
	require.NoError(t, DecodeStrict([]byte(`{"url":"x","url":"y"}`), &v))
	require.Equal(t, "y", v.URL)
}

func TestJSONBody(t *testing.T) {
	for name, c := range map[string]struct {
		contentType, encoding, code string
	}{
		"json":        {"application/json", "", ""},
		"charset":     {"application/json; charset=utf-8", "", ""},
		"merge patch": {"application/merge-patch+json", "", ""},
		"none":        {"", "", "content_type_unsupported"},
		"form":        {"application/x-www-form-urlencoded", "", "content_type_unsupported"},
		"gzip":        {"application/json", "gzip", "encoding_unsupported"},
	} {
		var ctx fasthttp.RequestCtx
		ctx.Request.Header.SetContentType(c.contentType)
		ctx.Request.Header.SetContentEncoding(c.encoding)
		ctx.Request.SetBodyString("{}")
		body, err := JSONBody(&ctx)
		if c.code == "" {
			require.NoError(t, err, name)
			require.Equal(t, "{}", string(body))
			continue
		}
		var p *Problem
		require.ErrorAs(t, err, &p, name)
		require.Equal(t, 415, p.Status, name)
		require.Equal(t, c.code, p.Code, name)
	}
}

func TestTimes(t *testing.T) {
	require.Equal(t, "2026-01-02T03:04:05.600Z",
		FormatTime(time.Date(2026, 1, 2, 4, 4, 5, 600e6, time.FixedZone("", 3600))))
	require.Nil(t, Time(0))
	require.Equal(t, "1970-01-01T00:00:00.001Z", *Time(1))
}

func TestWriteJSONKeepsTextAsItIs(t *testing.T) {
	var ctx fasthttp.RequestCtx
	WriteJSON(&ctx, 201, map[string]string{"a": "<&>"})
	require.Equal(t, 201, ctx.Response.StatusCode())
	require.Equal(t, "{\"a\":\"<&>\"}\n", string(ctx.Response.Body()))
	SetETag(&ctx, 7)
	require.Equal(t, `"7"`, string(ctx.Response.Header.Peek("ETag")))
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(`{"url":"x","list":[{"b":true}]}`))
	f.Add([]byte(`{"a/b":[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var v thing
		if err := DecodeStrict(body, &v); err != nil {
			var p *Problem
			require.ErrorAs(t, err, &p)
			require.True(t, p.Status == 400 || p.Status == 422)
		}
	})
}
