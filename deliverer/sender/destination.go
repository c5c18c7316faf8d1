package sender

import (
	"encoding/json"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/net/http/httpguts"

	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Opener opens what the edge sealed; *seal.Keyring is one.
type Opener interface {
	Open(sealed []byte, context string) ([]byte, error)
}

// Destination is one version of an endpoint, ready to be sent to. It holds opened secrets and must never be printed.
// It does not change and is safe for concurrent use.
type Destination struct {
	// Timeout is the total time of one attempt.
	Timeout time.Duration

	key     hostKey
	host    string
	path    string
	headers []header
	keys    signers
	// refusal says why the URL must not be reached: every attempt then fails as Blocked.
	refusal error
}

type header struct{ name, value string }

// NewDestination prepares an endpoint. A URL that must not be reached is no error here: attempts on it fail as Blocked
// and are recorded. Secrets that do not open are an error; it names the endpoint and never a secret.
func NewDestination(ep *webhooksv1.Endpoint, guard Guard, opener Opener, defaultTimeout time.Duration) (*Destination, error) {
	d := &Destination{Timeout: time.Duration(ep.GetTimeoutMs()) * time.Millisecond}
	if d.Timeout <= 0 {
		d.Timeout = defaultTimeout
	}
	d.refusal = d.setURL(ep.GetUrl(), guard)
	var err error
	if d.keys, err = openSigners(ep, opener); err != nil {
		return nil, fmt.Errorf("endpoint %s: open its signing secrets: %w", ep.GetId(), err)
	}
	if d.headers, err = openHeaders(ep, opener); err != nil {
		return nil, fmt.Errorf("endpoint %s: open its headers: %w", ep.GetId(), err)
	}
	return d, nil
}

func (d *Destination) setURL(raw string, guard Guard) error {
	u, err := guard.ParseURL(raw)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	d.key = hostKey{secure: u.Scheme == "https", name: u.Hostname(), addr: net.JoinHostPort(u.Hostname(), port)}
	d.host = u.Host
	d.path = u.RequestURI()
	return nil
}

// openHeaders reads the endpoint's own headers, in a fixed order. One that must not be set is left out: they were
// checked when they were written, and a rule made stricter since must not stop deliveries.
func openHeaders(ep *webhooksv1.Endpoint, opener Opener) ([]header, error) {
	if len(ep.GetSealedHeaders()) == 0 {
		return nil, nil
	}
	plain, err := opener.Open(ep.GetSealedHeaders(), seal.EndpointHeaders(ep.GetId()))
	if err != nil {
		return nil, err
	}
	var values map[string]string
	if err := json.Unmarshal(plain, &values); err != nil {
		// The error may quote what it could not read.
		return nil, fmt.Errorf("not a JSON object of strings")
	}
	headers := make([]header, 0, len(values))
	for name, value := range values {
		if MayBeSet(name) && httpguts.ValidHeaderFieldValue(value) {
			headers = append(headers, header{name, value})
		}
	}
	sort.Slice(headers, func(i, j int) bool { return headers[i].name < headers[j].name })
	return headers, nil
}

// MayBeSet reports whether an endpoint may set a header of its own: not those that carry the message's identity,
// signature and framing, and none that speaks to the next hop only (RFC 9110 §7.6.1).
func MayBeSet(name string) bool {
	if !httpguts.ValidHeaderFieldName(name) {
		return false
	}
	name = strings.ToLower(name)
	for _, prefix := range []string{"webhook-", "x-betterdata-", "proxy-"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	switch name {
	case "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "accept-encoding", "user-agent", "connection",
		"keep-alive", "te", "trailer", "upgrade", "expect":
		return false
	}
	return true
}

const (
	userAgent   = "BetterData-Webhooks/1"
	contentType = "application/json"
)

// fill writes the request of CONTRACT §4.
func (d *Destination) fill(req *fasthttp.Request, m *Message, now time.Time) {
	h := &req.Header
	h.DisableNormalizing()
	h.SetMethod(fasthttp.MethodPost)
	h.SetRequestURI(d.path)
	h.SetHost(d.host)
	h.SetUserAgent(userAgent)
	h.SetContentType(contentType)
	for _, own := range d.headers {
		h.Set(own.name, own.value)
	}
	ts, signer := now.Unix(), d.keys.at(now)
	var room [512]byte
	h.Set(signing.HeaderID, m.EventID)
	h.SetBytesV(signing.HeaderTimestamp, strconv.AppendInt(room[:0], ts, 10))
	h.SetBytesV(signing.HeaderSignature, signer.AppendStandard(room[:0], m.EventID, ts, m.Body))
	h.SetBytesV(signing.HeaderBetterData, signer.AppendBetterData(room[:0], ts, m.Body))
	h.Set("x-betterdata-delivery", m.DeliveryID)
	h.SetBytesV("x-betterdata-attempt", strconv.AppendUint(room[:0], uint64(m.Number), 10))
	if m.ReplayID != "" {
		h.Set("x-betterdata-replay", m.ReplayID)
	}
	req.SetBodyRaw(m.Body)
}
