package netguard_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/netguard"
)

func TestParseURL(t *testing.T) {
	for _, tc := range []struct {
		name, raw, want string // want is the dialled host; empty = refused
		guard           *netguard.Guard
	}{
		{"https", "https://example.com/hook?a=b", "example.com", production()},
		{"case and trailing dot", "https://EXAMPLE.com./hook", "example.com", production()},
		{"port", "https://example.com:8443/hook", "example.com:8443", production()},
		{"internationalized", "https://bücher.example/hook", "xn--bcher-kva.example", production()},
		{"internationalized, ASCII form", "https://xn--bcher-kva.example/", "xn--bcher-kva.example", production()},
		{"underscore", "https://my_host.example.com/", "my_host.example.com", production()},
		{"mapped public address", "https://[::ffff:8.8.8.8]/hook", "8.8.8.8", production()},
		{"IPv6", "https://[2001:4860:4860::8888]:443/", "[2001:4860:4860::8888]:443", production()},
		{"http name", "http://example.com/", "", production()},
		{"http name where a CIDR is allowed: dialling decides", "http://example.com/", "example.com", loopback()},
		{"any port of a name where a CIDR is allowed", "http://receiver:3000/", "receiver:3000", loopback()},
		{"loopback", "http://127.0.0.1:8090/", "", production()},
		{"loopback where allowed", "http://127.0.0.1:8090/", "127.0.0.1:8090", loopback()},
		{"localhost", "https://localhost/", "", production()},
		{"name below localhost", "https://a.localhost./", "", production()},
		{"localhost where allowed", "http://localhost:8090/", "localhost:8090", loopback()},
		{"own listener", "http://127.0.0.1:8080/", "", loopback()},
		{"other forms of an address, even where allowed", "http://127.1:8090/", "", loopback()},
		{"public literal, http", "http://8.8.8.8/", "", loopback()},
		{"public literal, port", "https://8.8.8.8:22/", "", loopback()},
		{"userinfo", "https://user@example.com/", "", loopback()},
		{"fragment", "https://example.com/#f", "", loopback()},
		{"empty fragment", "https://example.com/#", "", loopback()},
		{"empty port", "https://example.com:/", "", loopback()},
		{"empty label", "https://example..com/", "", loopback()},
		{"newline", "https://example.com/\nhost: x", "", loopback()},
		{"space", "https://example.com/a b", "", loopback()},
		{"too long", "https://example.com/" + strings.Repeat("a", netguard.MaxURLBytes), "", loopback()},
		{"empty", "", "", loopback()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, err := tc.guard.ParseURL(tc.raw)
			if tc.want == "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, u.Host)
		})
	}
}

func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"https://example.com/", "http://127.1/", "https://[::1%25lo]/", "https://a@b/", "https://１２７.0.0.1/"} {
		f.Add(seed)
	}
	g := production()
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := g.ParseURL(raw)
		if err != nil {
			return
		}
		require.Equal(t, "https", u.Scheme)
		require.Nil(t, u.User)
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			require.True(t, g.Allowed(addr))
		}
		again, err := g.ParseURL(u.String())
		require.NoError(t, err, u.String())
		require.Equal(t, u.Host, again.Host)
	})
}
