package netguard_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/netguard"
)

// production allows what DELIVERY_* allow by default; loopback what `webhooks run` does.
func production() *netguard.Guard { return netguard.New(netguard.Policy{}) }

func loopback() *netguard.Guard {
	return netguard.New(netguard.Policy{
		AllowCIDRs:   []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("0.0.0.0:8081")},
	})
}

func TestAllowedAddresses(t *testing.T) {
	for _, tc := range []struct {
		addr       string
		production bool
		loopback   bool
	}{
		{"8.8.8.8", true, true},
		{"2001:4860:4860::8888", true, true},
		{"::ffff:8.8.8.8", true, true},
		{"127.0.0.1", false, true},
		{"127.255.255.254", false, true},
		{"::1", false, true},
		{"::ffff:127.0.0.1", false, true},
		{"10.0.0.1", false, false},
		{"::ffff:10.0.0.1", false, false},
		{"169.254.169.254", false, false},
		{"168.63.129.16", false, false},
		{"100.64.0.1", false, false},
		{"192.88.99.1", false, false},
		{"255.255.255.255", false, false},
		{"fe80::1%eth0", false, false},
		{"2001:4860:4860::8888%eth0", false, false},
		{"64:ff9b::808:808", false, false},
		{"2002:808:808::1", false, false},
		{"3fff::1", false, false},
	} {
		t.Run(tc.addr, func(t *testing.T) {
			addr := netip.MustParseAddr(tc.addr)
			require.Equal(t, tc.production, production().Allowed(addr), "production")
			require.Equal(t, tc.loopback, loopback().Allowed(addr), "loopback allowed")
		})
	}
	require.False(t, production().Allowed(netip.Addr{}), "no address")
}

func TestCheckDial(t *testing.T) {
	plain := netguard.New(netguard.Policy{AllowHTTP: true, AllowPorts: []uint16{80}})
	for _, tc := range []struct {
		name   string
		guard  *netguard.Guard
		secure bool
		to     string
		ok     bool
	}{
		{"public https", production(), true, "8.8.8.8:443", true},
		{"public https, other default port", production(), true, "8.8.8.8:8443", true},
		{"public, port not allowed", production(), true, "8.8.8.8:22", false},
		{"public http", production(), false, "8.8.8.8:80", false},
		{"public http where it is allowed", plain, false, "8.8.8.8:80", true},
		{"private", production(), true, "10.0.0.1:443", false},
		{"allowed CIDR by http on any port", loopback(), false, "127.0.0.1:39001", true},
		{"allowed CIDR, mapped address", loopback(), false, "[::ffff:127.0.0.1]:39001", true},
		{"own listener", loopback(), false, "127.0.0.1:8080", false},
		{"own listener, other address", loopback(), false, "127.0.0.2:8080", true},
		{"own listener on every address", loopback(), false, "127.0.0.2:8081", false},
		{"own listener on every address, by IPv6", loopback(), false, "[::1]:8081", false},
		{"public http where only loopback is allowed", loopback(), false, "8.8.8.8:80", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.guard.CheckDial(tc.secure, netip.MustParseAddrPort(tc.to))
			if tc.ok {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, netguard.ErrBlocked)
		})
	}
}

func TestPolicyIsCopied(t *testing.T) {
	cidrs := []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}
	g := netguard.New(netguard.Policy{AllowCIDRs: cidrs})
	require.True(t, g.Allowed(netip.MustParseAddr("10.1.2.3")))
	require.Equal(t, "::ffff:10.0.0.0/104", cidrs[0].String())
}
