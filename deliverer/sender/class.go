package sender

// Class is the coarse reason of a failed attempt (CONTRACT §5, errorClass). It is a closed set: it labels a metric and
// is all that a merchant learns of a failure below HTTP, because dial errors tell what lies inside our network.
type Class uint8

// The classes. None is success.
const (
	None Class = iota
	HTTP3xx
	HTTP4xx
	HTTP410
	HTTP429
	HTTP5xx
	// DNS: the name could not be resolved in time, or at all.
	DNS
	// Blocked: the URL or the address it resolved to must not be dialled.
	Blocked
	// Refused: no listener, or no route to the address.
	Refused
	// Reset: the connection ended before the answer was complete.
	Reset
	// TLS: the handshake failed, verification of the certificate included.
	TLS
	TimeoutConnect
	TimeoutTLS
	// TimeoutHeaders: the request was sent, the answer's headers were not complete when the time was up.
	TimeoutHeaders
	// TimeoutBody: the headers had come, then the receiver fell silent.
	TimeoutBody
	// TimeoutTotal: the time was up while the receiver was still sending, or before a second try could be made.
	TimeoutTotal
	// Protocol: what came is not HTTP/1.1.
	Protocol
	// TooLarge: the answer's headers or body are over the limit.
	TooLarge
	classes
)

var classNames = [classes]string{
	None: "", HTTP3xx: "http_3xx", HTTP4xx: "http_4xx", HTTP410: "http_410", HTTP429: "http_429", HTTP5xx: "http_5xx",
	DNS: "dns", Blocked: "blocked", Refused: "refused", Reset: "reset", TLS: "tls",
	TimeoutConnect: "timeout_connect", TimeoutTLS: "timeout_tls", TimeoutHeaders: "timeout_headers",
	TimeoutBody: "timeout_body", TimeoutTotal: "timeout_total", Protocol: "protocol", TooLarge: "too_large",
}

// String is the class as the contract spells it; "" for None.
func (c Class) String() string {
	if c >= classes {
		return "protocol"
	}
	return classNames[c]
}

// Classes lists every class of failure.
func Classes() []Class {
	all := make([]Class, 0, classes-1)
	for c := None + 1; c < classes; c++ {
		all = append(all, c)
	}
	return all
}

// classOfStatus judges a complete or incomplete answer by its status alone.
func classOfStatus(status int) Class {
	switch {
	case status >= 200 && status < 300:
		return None
	case status >= 300 && status < 400:
		return HTTP3xx
	case status == 410:
		return HTTP410
	case status == 429:
		return HTTP429
	case status >= 400 && status < 500:
		return HTTP4xx
	case status >= 500 && status < 600:
		return HTTP5xx
	}
	return Protocol
}
