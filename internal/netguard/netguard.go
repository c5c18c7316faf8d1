// Package netguard decides which addresses a delivery may reach, so that a merchant's URL cannot be used to reach
// inside (SSRF). The rule is pure: it resolves and dials nothing.
//
// It is asked twice. When an endpoint is created or changed, CheckURL refuses what can be judged from the text alone: a
// courtesy to whoever typed it. When a connection is made, the deliverer's dialer asks CheckDial with the address that
// is really dialled, every time: that is the protection, because a name may resolve to anything at any moment
// (DNS rebinding). Both use one rule, so that a URL refused at dialling for its literal address was refused before.
//
// It must never look at what a name resolves to, nor keep a verdict.
package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"code.dny.dev/ssrf"
)

// ErrBlocked is wrapped by every refusal of an address, port or scheme.
var ErrBlocked = errors.New("destination not allowed")

// DefaultPorts may be dialled where Policy names none.
var DefaultPorts = []uint16{443, 8443, 80}

// azureWireServer is Azure's virtual public address of the host: metadata, DNS and health probes. It is in no special
// registry, so no list of reserved ranges has it.
var azureWireServer = netip.MustParsePrefix("168.63.129.16/32")

// Policy is what the operator allows beyond public addresses by https.
type Policy struct {
	// AllowCIDRs may be dialled although they are not public, also by http and on any port (DELIVERY_ALLOW_CIDRS).
	AllowCIDRs []netip.Prefix
	// AllowHTTP lets http reach public addresses too (DELIVERY_ALLOW_HTTP).
	AllowHTTP bool
	// AllowPorts on public addresses (DELIVERY_ALLOW_PORTS); nil is DefaultPorts.
	AllowPorts []uint16
	// OwnListeners are never dialled, whatever AllowCIDRs says: a delivery to ourselves could loop. An unspecified
	// address (0.0.0.0, ::) stands for every address within AllowCIDRs.
	OwnListeners []netip.AddrPort
}

// Guard is a Policy made ready for use. It is safe for concurrent use and never changes.
type Guard struct {
	policy Policy
	public *ssrf.Guardian
}

// New makes a Guard.
func New(p Policy) *Guard {
	if p.AllowPorts == nil {
		p.AllowPorts = DefaultPorts
	}
	p.AllowCIDRs = slices.Clone(p.AllowCIDRs)
	for i, prefix := range p.AllowCIDRs {
		p.AllowCIDRs[i] = unmapPrefix(prefix)
	}
	return &Guard{
		policy: p,
		public: ssrf.New(ssrf.WithAnyNetwork(), ssrf.WithAnyPort(), ssrf.WithDeniedV4Prefixes(azureWireServer)),
	}
}

// Allowed reports whether a delivery may reach the address at all: it lies in an allowed CIDR, or is public.
//
// An IPv4 address written as IPv6 (::ffff:a.b.c.d) is judged as the IPv4 address, since that is what the system
// dials: ::ffff:8.8.8.8 is allowed, ::ffff:127.0.0.1 is not. An address with a zone is never public.
func (g *Guard) Allowed(addr netip.Addr) bool {
	addr = addr.Unmap()
	if g.inAllowed(addr) {
		return true
	}
	return addr.IsValid() && addr.Zone() == "" && g.public.SafeAddr(addr) == nil
}

// CheckDial judges a connection about to be made to ap, secure by TLS or not. A refusal wraps ErrBlocked; its text is
// for the log, not for the merchant, whom it would tell what lies inside.
func (g *Guard) CheckDial(secure bool, ap netip.AddrPort) error {
	addr := ap.Addr().Unmap()
	switch {
	case g.own(addr, ap.Port()):
		return fmt.Errorf("%w: %s is a listener of this service", ErrBlocked, ap)
	case g.inAllowed(addr):
		return nil
	case !g.Allowed(addr):
		return fmt.Errorf("%w: %s is not a public address", ErrBlocked, addr)
	case !slices.Contains(g.policy.AllowPorts, ap.Port()):
		return fmt.Errorf("%w: port %d is not one of %v", ErrBlocked, ap.Port(), g.policy.AllowPorts)
	case !secure && !g.policy.AllowHTTP:
		return fmt.Errorf("%w: %s must be reached by https", ErrBlocked, addr)
	}
	return nil
}

// inAllowed takes an unmapped address. A zone is ignored: it names an interface, not an address.
func (g *Guard) inAllowed(addr netip.Addr) bool {
	addr = addr.WithZone("")
	return slices.ContainsFunc(g.policy.AllowCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (g *Guard) own(addr netip.Addr, port uint16) bool {
	return slices.ContainsFunc(g.policy.OwnListeners, func(l netip.AddrPort) bool {
		if l.Port() != port {
			return false
		}
		if l.Addr().IsUnspecified() {
			return g.inAllowed(addr)
		}
		return l.Addr().Unmap() == addr
	})
}

// unmapPrefix turns ::ffff:10.0.0.0/104 into 10.0.0.0/8, because addresses are compared unmapped.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}
