package commands

import (
	"net/http"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// maxSecrets bounds the secrets that sign a request of one endpoint: each is a signature in its headers.
const maxSecrets = 5

// rotate makes a new secret the current one. No secret before it signs for longer than the overlap from now, so that one
// rotation without overlap ends them all.
func rotate(org *organization, ifMatch *webhooksv1.Precondition, cmd *webhooksv1.RotateSecret) (*webhooksv1.Endpoint, *httpapi.Problem, error) {
	current, problem, err := org.matching(cmd.EndpointId, ifMatch)
	if problem != nil || err != nil {
		return nil, problem, err
	}
	if len(cmd.GetSecret().GetSealedSecret()) == 0 {
		return nil, httpapi.NewProblem(http.StatusBadRequest, "unknown_command", "The command has no secret."), nil
	}
	next := proto.CloneOf(current)
	newest := &webhooksv1.SigningSecret{SealedSecret: cmd.Secret.SealedSecret}
	if current.PublicKey != "" {
		newest.SealedPrivateKey, next.PublicKey = cmd.Secret.SealedPrivateKey, cmd.PublicKey
	}
	next.Secrets = []*webhooksv1.SigningSecret{newest}
	until := org.nowMS + int64(cmd.OverlapMs)
	for _, secret := range proto.CloneOf(current).Secrets {
		if secret.ExpiresUnixMs == 0 || secret.ExpiresUnixMs > until {
			secret.ExpiresUnixMs = until
		}
		if secret.ExpiresUnixMs > org.nowMS {
			next.Secrets = append(next.Secrets, secret)
		}
	}
	if len(next.Secrets) > maxSecrets {
		return nil, httpapi.NewProblem(http.StatusConflict, "rotation_limit_reached",
			"%d secrets of the endpoint sign its requests, which is all that may. Wait until the overlap of an earlier rotation "+
				"is over, or rotate with a shorter one.", maxSecrets), nil
	}
	return next, nil, org.change(next)
}
