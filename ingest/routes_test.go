package ingest

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func TestWhichEventsFollowARoute(t *testing.T) {
	var age time.Duration
	routes := newRoutes(slog.New(slog.DiscardHandler), func() time.Duration { return age })
	change := func(account string, r *webhooksv1.Route) {
		value, err := proto.Marshal(r)
		require.NoError(t, err)
		routes.changed([]byte(account), value)
	}
	change("stripe/made", &webhooksv1.Route{OrganizationId: "org_1"})
	change("stripe/learned", &webhooksv1.Route{OrganizationId: "org_1", Learned: true})
	change("stripe/gone", &webhooksv1.Route{OrganizationId: "org_1"})
	routes.changed([]byte("stripe/gone"), nil)

	for name, c := range map[string]struct {
		account, named string
		want           bool
	}{
		"made by API, event names none":        {"stripe/made", "", true},
		"made by API, event names another":     {"stripe/made", "org_2", true},
		"learned, event names none":            {"stripe/learned", "", true},
		"learned, event names the same":        {"stripe/learned", "org_1", true},
		"learned, event names another":         {"stripe/learned", "org_2", false},
		"an account that is not live":          {"stripe/other", "org_1", false},
		"an account that is not live any more": {"stripe/gone", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			age = maxRoutesAge
			require.Equal(t, c.want, routes.of(c.account).takes(c.named))
			age++
			require.False(t, routes.of(c.account).takes(c.named), "a table too old is not followed")
		})
	}
}
