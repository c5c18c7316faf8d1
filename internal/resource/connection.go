package resource

import (
	"errors"
	"regexp"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Status of a connection.
const ConnectionActive = "active"

const maxAccessToken = 4096

// ConnectionCreate is a valid request for a connection, its secret apart.
type ConnectionCreate struct {
	// Connection lacks id and creation time.
	Connection *webhooksv1.Connection
	// AccessToken in clear text, to be sealed; empty for none.
	AccessToken string
	// Move takes the account from another organization.
	Move bool
}

type connectionBody struct {
	Source      *string `json:"source"`
	Account     *string `json:"account"`
	AccessToken *string `json:"accessToken"`
	Move        *bool   `json:"move"`
	// Read-only: null, or the organization of the path.
	ID             any `json:"id"`
	OrganizationID any `json:"organizationId"`
	Status         any `json:"status"`
	Learned        any `json:"learned"`
	CreatedAt      any `json:"createdAt"`
}

// stripeCustomer is the form of a Stripe customer id.
var stripeCustomer = regexp.MustCompile(`^cus_[A-Za-z0-9_-]{1,250}$`)

// ParseConnectionCreate reads the body of POST …/connections.
func (r *Rules) ParseConnectionCreate(org string, body []byte) (*ConnectionCreate, *httpapi.Problem) {
	var b connectionBody
	if err := httpapi.DecodeStrict(body, &b); err != nil {
		return nil, asProblem(err)
	}
	ed := &edit{rules: r}
	ed.refuse("/source", b.checkSource())
	ed.refuse("/account", b.checkAccount())
	ed.refuse("/accessToken", b.checkAccessToken())
	b.checkReadOnly(ed, org)
	if problem := ed.problem(); problem != nil {
		return nil, problem
	}
	create := &ConnectionCreate{
		Connection: &webhooksv1.Connection{
			OrganizationId: org, Source: *b.Source, Account: *b.Account, Status: ConnectionActive,
		},
		Move: b.Move != nil && *b.Move,
	}
	if b.AccessToken != nil {
		create.AccessToken = *b.AccessToken
	}
	return create, nil
}

func (b *connectionBody) checkSource() error {
	switch {
	case b.Source == nil:
		return errors.New("is required")
	case *b.Source != schemas.SourceStripe:
		return &memberError{code: codeNotSupported, detail: `only "stripe" can be connected yet`}
	}
	return nil
}

func (b *connectionBody) checkAccount() error {
	switch {
	case b.Account == nil:
		return errors.New("is required")
	case b.Source != nil && *b.Source == schemas.SourceStripe && !stripeCustomer.MatchString(*b.Account):
		return errors.New(`must be a Stripe customer id ("cus_…")`)
	}
	return nil
}

func (b *connectionBody) checkAccessToken() error {
	if b.AccessToken == nil {
		return nil
	}
	return checkText(*b.AccessToken, 1, maxAccessToken)
}

func (b *connectionBody) checkReadOnly(ed *edit, org string) {
	for _, m := range []struct {
		name  string
		value any
	}{{"id", b.ID}, {"organizationId", b.OrganizationID}, {"status", b.Status}, {"learned", b.Learned}, {"createdAt", b.CreatedAt}} {
		if m.value != nil && !(m.name == "organizationId" && m.value == org) {
			ed.refuse("/"+m.name, errors.New("is read-only"))
		}
	}
}
