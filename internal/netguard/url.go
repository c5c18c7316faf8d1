package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// MaxURLBytes bounds an endpoint's URL.
const MaxURLBytes = 2048

// CheckURL judges a URL by its text alone. It refuses what is no plain http or https URL, userinfo, a fragment, a host
// that is or may be read as an address that must not be reached, and a scheme or port that CheckDial would refuse
// whatever the name resolves to. The error's text may be shown to whoever wrote the URL.
func (g *Guard) CheckURL(raw string) error {
	_, err := g.ParseURL(raw)
	return err
}

// ParseURL is CheckURL, returning the URL as it is to be dialled: the host in ASCII, lower case, without the trailing
// dot of an absolute name.
func (g *Guard) ParseURL(raw string) (*url.URL, error) {
	u, err := splitURL(raw)
	if err != nil {
		return nil, err
	}
	port, err := effectivePort(u)
	if err != nil {
		return nil, err
	}
	host, addr, err := canonicalHost(u.Hostname())
	if err != nil {
		return nil, err
	}
	if addr.IsValid() {
		err = g.checkLiteral(u.Scheme, netip.AddrPortFrom(addr, port))
	} else {
		err = g.checkName(u.Scheme, host, port)
	}
	if err != nil {
		return nil, err
	}
	u.Host = joinHost(host, u.Port())
	return u, nil
}

// splitURL holds the shape rules. Parsers disagree about backslashes, control characters and whitespace, and a request
// goes where the other parser reads it: none of them is let through.
func splitURL(raw string) (*url.URL, error) {
	if len(raw) > MaxURLBytes {
		return nil, fmt.Errorf("the URL is longer than %d bytes", MaxURLBytes)
	}
	if i := strings.IndexFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }); i >= 0 {
		return nil, fmt.Errorf("character %q is not allowed in a URL; escape it", raw[i])
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("not a valid URL")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("an absolute https URL is required")
	case u.User != nil:
		return nil, errors.New("user information is not allowed; send credentials as a header")
	case strings.Contains(raw, "#"):
		return nil, errors.New("a fragment is not allowed")
	case u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	}
	return u, nil
}

func effectivePort(u *url.URL) (uint16, error) {
	text := u.Port()
	if text == "" {
		if strings.HasSuffix(u.Host, ":") {
			return 0, errors.New("the port is empty")
		}
		if u.Scheme == "http" {
			return 80, nil
		}
		return 443, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q is not between 1 and 65535", text)
	}
	return uint16(n), nil
}

// canonicalHost returns the host as it is dialled, and the address when it is a literal.
func canonicalHost(host string) (string, netip.Addr, error) {
	if strings.Contains(host, ":") {
		addr, err := netip.ParseAddr(host)
		if err != nil || addr.Zone() != "" {
			return "", netip.Addr{}, fmt.Errorf("%q is not an IPv6 address a delivery may use", host)
		}
		return addr.Unmap().String(), addr.Unmap(), nil
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(name); err == nil {
		return name, addr, nil
	}
	if numericTail(name) {
		return "", netip.Addr{}, fmt.Errorf("%q can be read as an IPv4 address in another form; write it as four decimal numbers", host)
	}
	ascii, err := asciiName(name)
	return ascii, netip.Addr{}, err
}

// numericTail reports a last label that makes the host an IPv4 address for inet_aton and the WHATWG URL standard
// ("ends in a number"): 127.1, 0x7f000001, 2130706433. No top-level domain is numeric.
func numericTail(name string) bool {
	label := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

// asciiName turns an internationalized name into its ASCII form (UTS 46, as browsers look names up). A name that the
// mapping would change into another one is refused: it was written to look like something it is not.
func asciiName(name string) (string, error) {
	ascii := name
	if !isASCII(name) || strings.HasPrefix(name, "xn--") || strings.Contains(name, ".xn--") {
		var err error
		if ascii, err = idna.Lookup.ToASCII(name); err != nil {
			return "", fmt.Errorf("%q is not a host name", name)
		}
		back, err := idna.Lookup.ToUnicode(ascii)
		if err != nil || (back != name && ascii != name) {
			return "", fmt.Errorf("%q is not a host name in its normal form", name)
		}
	}
	if !dnsName(ascii) {
		return "", fmt.Errorf("%q is not a host name", name)
	}
	return ascii, nil
}

// dnsName holds the length limits of RFC 1035 §2.3.4 and letters, digits, hyphen and underscore, which is no host name
// by the letter but stands in many that work.
func dnsName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > 0x7f }) < 0
}

// checkLiteral does not repeat CheckDial's text, which is for operators.
func (g *Guard) checkLiteral(scheme string, ap netip.AddrPort) error {
	if !g.Allowed(ap.Addr()) {
		return fmt.Errorf("the address %s must not be reached", ap.Addr())
	}
	if err := g.CheckDial(scheme == "https", ap); err != nil {
		return fmt.Errorf("%s on port %d must not be reached by %s", ap.Addr(), ap.Port(), scheme)
	}
	return nil
}

// checkName judges a name for what holds wherever it resolves to. Where some CIDRs are allowed, the name may resolve
// into one of them, by http and on any port: then only dialling can tell.
func (g *Guard) checkName(scheme, host string, port uint16) error {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		// RFC 6761 §6.3: always the loopback address.
		if !g.Allowed(netip.AddrFrom4([4]byte{127, 0, 0, 1})) && !g.Allowed(netip.IPv6Loopback()) {
			return fmt.Errorf("%s must not be reached", host)
		}
		return nil
	}
	if len(g.policy.AllowCIDRs) > 0 {
		return nil
	}
	if scheme == "http" && !g.policy.AllowHTTP {
		return errors.New("https is required")
	}
	if !slices.Contains(g.policy.AllowPorts, port) {
		return fmt.Errorf("port %d is not one of %v", port, g.policy.AllowPorts)
	}
	return nil
}

func joinHost(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" {
		return host
	}
	return host + ":" + port
}
