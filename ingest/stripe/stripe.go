// Package stripe verifies and reads Stripe's webhooks.
//
// The signature is checked by stripe-go; its age is checked here, in both directions, since stripe-go accepts any time
// in the future. Bodies are not decoded by stripe-go: its structs lose fields of newer API versions and its version
// check refuses them.
package stripe

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
	"github.com/valyala/fasthttp"

	"github.com/betterdata/webhooks/ingest/source"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/jsonscan"
	"github.com/betterdata/webhooks/schemas"
)

const (
	// tolerance is how far, in seconds, a signature's time may be off (https://docs.stripe.com/webhooks#replay-attacks).
	tolerance = 300
	// maxName bounds an event's id and type; Stripe's are below 100 bytes.
	maxName = 255
)

// Livemode says which events are taken.
type Livemode string

// Modes. An event of the other mode is answered 200 and goes no further.
const (
	Any  Livemode = "any"
	Live Livemode = "live"
	Test Livemode = "test"
)

// Config is how Stripe's webhooks are taken.
type Config struct {
	// Secrets are the endpoint secrets (whsec_…), several while they are rotated. At least one.
	Secrets []string
	// Livemode; "" is Any.
	Livemode Livemode
}

// Source implements source.Source.
type Source struct {
	secrets  []string
	livemode Livemode
	envelope *jsonscan.Scanner
}

// New makes a Source.
func New(cfg Config) (*Source, error) {
	if len(cfg.Secrets) == 0 {
		return nil, errors.New("stripe: no webhook secret; set STRIPE_WEBHOOK_SECRET")
	}
	for _, secret := range cfg.Secrets {
		// stripe-go verifies with an empty secret too, and anybody can sign with that.
		if strings.TrimSpace(secret) == "" {
			return nil, errors.New("stripe: STRIPE_WEBHOOK_SECRET has an empty secret")
		}
	}
	switch cfg.Livemode {
	case "":
		cfg.Livemode = Any
	case Any, Live, Test:
	default:
		return nil, fmt.Errorf("stripe: STRIPE_LIVEMODE is %q, not any, live or test", cfg.Livemode)
	}
	return &Source{secrets: cfg.Secrets, livemode: cfg.Livemode, envelope: envelope()}, nil
}

// Name implements source.Source.
func (s *Source) Name() string { return schemas.SourceStripe }

// Verify implements source.Source: any v1 in the header made with any secret will do; v0, which Stripe sends along in
// test mode, is not a signature.
func (s *Source) Verify(header *fasthttp.RequestHeader, body []byte, now time.Time) *source.Refusal {
	signature := string(header.Peek("Stripe-Signature"))
	if signature == "" {
		return &source.Refusal{Reason: source.SignatureMissing, Detail: "The request has no stripe-signature header."}
	}
	if !s.signed(signature, body) {
		return &source.Refusal{Reason: source.SignatureInvalid,
			Detail: "No v1 signature in stripe-signature was made from this body with a secret configured here."}
	}
	if off := signedAt(signature) - now.Unix(); off > tolerance || off < -tolerance {
		return &source.Refusal{Reason: source.OutOfTolerance,
			Detail: "The signature is valid, but its time is more than 300 s away from this server's."}
	}
	return nil
}

func (s *Source) signed(signature string, body []byte) bool {
	for _, secret := range s.secrets {
		if webhook.ValidatePayloadIgnoringTolerance(body, signature, secret) == nil {
			return true
		}
	}
	return false
}

// signedAt is the time that stripe-go checked the signature with: the last t of the header.
func signedAt(signature string) int64 {
	at := int64(0)
	for item := range strings.SplitSeq(signature, ",") {
		if seconds, ok := strings.CutPrefix(item, "t="); ok {
			// stripe-go has parsed it; what does not parse would have been refused.
			at, _ = strconv.ParseInt(seconds, 10, 64)
		}
	}
	return at
}

// Paths of the envelope; what they mean is in https://docs.stripe.com/api/events/object.
const (
	pathID = iota
	pathType
	pathCreated
	pathLivemode
	pathObjectID
	pathObject
	pathCustomer
	pathExpandedCustomer
	pathOrganization // and all that follow
	paths            = pathOrganization + 9
)

func envelope() *jsonscan.Scanner {
	list := []string{"/id", "/type", "/created", "/livemode", "/data/object/id", "/data/object/object",
		"/data/object/customer", "/data/object/customer/id"}
	for _, metadata := range []string{
		// The object's own; then the subscription's, as invoices carry it since API 2025-03-31 and as before.
		"/data/object/metadata", "/data/object/parent/subscription_details/metadata", "/data/object/subscription_details/metadata",
	} {
		list = append(list, metadata+"/organizationId", metadata+"/org_id", metadata+"/organization_id")
	}
	return jsonscan.Compile(list...)
}

// Read implements source.Source. Stripe's v2 "thin" events have no data.object: they are read like any other and name no
// account.
func (s *Source) Read(_ *fasthttp.RequestHeader, body []byte) (source.Event, *source.Refusal) {
	var v [paths]jsonscan.Value
	if err := s.envelope.Scan(body, v[:]); err != nil {
		return source.Event{}, &source.Refusal{Reason: source.Malformed, Detail: err.Error()}
	}
	e := source.Event{ID: v[pathID].String(), Type: v[pathType].String(), Account: account(&v),
		Organization: organization(v[pathOrganization:]), Occurred: occurred(v[pathCreated])}
	if e.ID == "" || e.Type == "" || len(e.ID) > maxName || len(e.Type) > maxName {
		return source.Event{}, &source.Refusal{Reason: source.Malformed,
			Detail: "The members id and type must be strings of 1 to 255 bytes."}
	}
	if live, ok := v[pathLivemode].Bool(); ok && (s.livemode == Live && !live || s.livemode == Test && live) {
		e.Ignored = "livemode"
	}
	return e, nil
}

// account is the customer that the event's object belongs to, or is.
func account(v *[paths]jsonscan.Value) string {
	customer := v[pathCustomer].String()
	if customer == "" {
		customer = v[pathExpandedCustomer].String()
	}
	if customer == "" && v[pathObject].String() == "customer" {
		customer = v[pathObjectID].String()
	}
	if len(customer) > maxName {
		return ""
	}
	return customer
}

// organization is the first that the metadata names. What is not the form of an organization's id names none.
func organization(named []jsonscan.Value) string {
	for i := range named {
		if org := named[i].String(); id.ValidOrg(org) {
			return org
		}
	}
	return ""
}

// occurred reads `created`: Unix seconds, or RFC 3339 in v2 events.
func occurred(created jsonscan.Value) time.Time {
	if seconds, ok := created.Int64(); ok && seconds > 0 && seconds < maxUnix {
		return time.Unix(seconds, 0).UTC()
	}
	if t, err := time.Parse(time.RFC3339, created.String()); err == nil && t.Unix() > 0 && t.Unix() < maxUnix {
		return t.UTC()
	}
	return time.Time{}
}

// maxUnix is the first second of the year 10000, which RFC 3339 cannot write.
const maxUnix = 253402300800
