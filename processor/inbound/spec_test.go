package inbound

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A store is trusted at any age exactly where its topic drops records for theirs.
func TestStoresWhoseTopicsDropByAge(t *testing.T) {
	dropsByAge := map[string]bool{}
	for _, topic := range schemas.Topics() {
		dropsByAge[topic.Name] = topic.Retention > 0
	}
	for _, store := range newInbound(t, prometheus.NewRegistry()).Spec().Stores {
		require.Equal(t, dropsByAge[store.Topic], store.ByAge, store.Topic)
	}
}

// What expired while nobody owned the partition is on disk, or comes back from the log.
func TestANewOwnerForgetsWhatIsOver(t *testing.T) {
	r := newRig(t)
	remembered := command(t, &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: org,
		IdempotencyKey: &webhooksv1.IdempotencyKey{Hash: []byte("hash"), Fingerprint: []byte("fingerprint")},
		Action: &webhooksv1.Command_DeleteEndpoint{
			DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: id.New(id.Endpoint)},
		},
	})
	r.Process(stripeEvent("evt_a", "customer.created", r.Now, `{}`), remembered)
	require.Len(t, r.Keys(schemas.InboundSeen), 1)
	require.Len(t, r.Keys(schemas.Idempotency), 1)
	r.Now = r.Now.Add(schemas.MaxDedupeRetention + 16*day)
	r.Crash()
	r.WaitWoken()
	r.Commit()
	require.Empty(t, r.Keys(schemas.InboundSeen))
	require.Empty(t, r.Keys(schemas.Idempotency))
}
