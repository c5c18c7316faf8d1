package inbound

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
)

func TestWhatIsReadAhead(t *testing.T) {
	r := newRig(t)
	update := r.subscription("evt_1", billing.SubscriptionUpdated, "active", "scm_pro")
	for _, test := range []struct {
		name string
		in   *kgo.Record
		want []string
	}{
		{"an event that may be told on", update, []string{"billing org_1", "endpoints org_1"}},
		{"an event that is not", r.paymentFailed("evt_2"), []string{"billing org_1"}},
		{"an event without an effect", stripeEvent("evt_3", "customer.created", r.Now, "{}"), nil},
		{"a command", &kgo.Record{Key: []byte(org)}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			r.Task().(stream.Prefetcher).Prefetch(test.in, func(store string, key []byte) {
				got = append(got, store+" "+string(key))
			})
			require.Equal(t, test.want, got)
		})
	}
	r.Process(update)
	r.Task().(stream.Prefetcher).Prefetch(update, func(store string, _ []byte) {
		require.NotEqual(t, schemas.Endpoints, store, "its version is at hand by now")
	})
}
