package sender

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/signing"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// secret is one secret of an endpoint, opened.
type secret struct {
	text    string
	private string
	// expires is zero for the current secret; a rotated-out one signs until then.
	expires time.Time
}

// signers are an endpoint's signers by time: the first that is not over signs with every secret active then.
type signers []timedSigner

type timedSigner struct {
	// until is zero for the last.
	until time.Time
	*signing.Signer
}

// openSigners prepares the secrets of an endpoint, newest first as they stand.
func openSigners(ep *webhooksv1.Endpoint, opener Opener) (signers, error) {
	secrets := make([]secret, 0, len(ep.GetSecrets()))
	for i, sealed := range ep.GetSecrets() {
		one, err := openSecret(ep.GetId(), sealed, opener)
		if err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
		secrets = append(secrets, one)
	}
	if !slices.ContainsFunc(secrets, func(s secret) bool { return s.expires.IsZero() }) {
		return nil, errors.New("the endpoint has no current secret")
	}
	return newSigners(secrets, ep.GetSignatures())
}

func openSecret(endpointID string, sealed *webhooksv1.SigningSecret, opener Opener) (secret, error) {
	text, err := opener.Open(sealed.GetSealedSecret(), seal.EndpointSecret(endpointID))
	if err != nil {
		return secret{}, err
	}
	one := secret{text: string(text)}
	if ms := sealed.GetExpiresUnixMs(); ms != 0 {
		one.expires = time.UnixMilli(ms)
	}
	if len(sealed.GetSealedPrivateKey()) == 0 {
		return one, nil
	}
	private, err := opener.Open(sealed.GetSealedPrivateKey(), seal.EndpointPrivateKey(endpointID))
	one.private = string(private)
	return one, err
}

// newSigners makes a signer for each span of time in which the same secrets are active.
func newSigners(secrets []secret, schemes []string) (signers, error) {
	ends := []time.Time{}
	for _, s := range secrets {
		if !s.expires.IsZero() {
			ends = append(ends, s.expires)
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	ends = append(slices.CompactFunc(ends, time.Time.Equal), time.Time{})
	v1 := len(schemes) == 0 || slices.Contains(schemes, "v1")
	v1a := slices.Contains(schemes, "v1a")
	var all signers
	for _, end := range ends {
		var texts, privates []string
		for _, s := range secrets {
			if !s.expires.IsZero() && (end.IsZero() || s.expires.Before(end)) {
				continue
			}
			texts = append(texts, s.text)
			if v1a && s.private != "" {
				privates = append(privates, s.private)
			}
		}
		one, err := signing.NewSigner(texts, v1, privates)
		if err != nil {
			return nil, err
		}
		all = append(all, timedSigner{end, one})
	}
	return all, nil
}

// at is the signer of that time.
func (s signers) at(now time.Time) *signing.Signer {
	for _, one := range s {
		if one.until.IsZero() || now.Before(one.until) {
			return one.Signer
		}
	}
	return s[len(s)-1].Signer
}
