package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// rowsOf stands in for the copy of a table.
type rowsOf map[string]proto.Message

func (r rowsOf) Get(key []byte) ([]byte, bool, error) {
	row, ok := r[string(key)]
	if !ok {
		return nil, false, nil
	}
	value, err := proto.Marshal(row)
	return value, true, err
}

func TestWhenADeliveryMayBeSent(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	on := &webhooksv1.Endpoint{Enabled: true}
	paused := &webhooksv1.Endpoint{Enabled: true, Paused: true}
	broken := func(until time.Time) *webhooksv1.EndpointHealth {
		return &webhooksv1.EndpointHealth{Failures: 10, BreakerWaitMs: 4000, BreakerUntilUnixMs: until.UnixMilli()}
	}
	for name, c := range map[string]struct {
		due      time.Time
		endpoint *webhooksv1.Endpoint
		health   *webhooksv1.EndpointHealth
		next     time.Time
	}{
		"waits for its time": {in(time.Hour), on, nil, in(time.Hour)},
		"is due":             {in(-time.Hour), on, nil, in(-time.Hour)},
		"is due, and its endpoint has failed now and then": {in(-time.Hour), on, &webhooksv1.EndpointHealth{Failures: 9}, in(-time.Hour)},
		"is due behind an open breaker":                    {in(-time.Hour), on, broken(in(time.Second)), in(time.Second)},
		"is due before the probe":                          {in(time.Second), on, broken(in(time.Minute)), in(time.Minute)},
		"is due after the probe":                           {in(time.Hour), on, broken(in(time.Second)), in(time.Hour)},
		"is due, as the probe is":                          {in(-time.Hour), on, broken(in(-time.Second)), now},
		"is due after the probe, which is due":             {in(time.Hour), on, broken(in(-time.Second)), in(time.Hour)},
		"is paused":                                        {in(-time.Hour), paused, nil, now},
		"is paused, its time to come":                      {in(time.Hour), paused, nil, in(time.Hour)},
		"is paused behind an open breaker":                 {in(-time.Hour), paused, broken(in(time.Second)), in(time.Second)},
		"ends, its endpoint disabled":                      {in(time.Second), &webhooksv1.Endpoint{Paused: true}, broken(in(time.Hour)), in(time.Second)},
		"ends, its endpoint deleted":                       {in(time.Second), nil, broken(in(time.Hour)), in(time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			endpoints, health := rowsOf{}, rowsOf{}
			if c.endpoint != nil {
				endpoints[string(schemas.EndpointKey("org_1", "ep_1"))] = c.endpoint
			}
			if c.health != nil {
				health["ep_1"] = c.health
			}
			h, err := (&API{tables: Tables{Endpoints: endpoints, Health: health}}).holdOf("org_1", "ep_1")
			require.NoError(t, err)
			next := h.apply(c.due, now)
			require.True(t, c.next.Equal(next), "%v", next)
		})
	}
}

func TestDeliveriesThatAreHeldShowIt(t *testing.T) {
	w := newWorld(t)
	broken, paused := w.endpoint, w.id(id.Endpoint, 2)
	w.endpoints[string(schemas.EndpointKey("org_1", broken))] = &webhooksv1.Endpoint{Enabled: true}
	w.endpoints[string(schemas.EndpointKey("org_1", paused))] = &webhooksv1.Endpoint{Enabled: true, Paused: true}
	probe := time.Now().Add(time.Minute).Truncate(time.Millisecond)
	w.health[broken] = &webhooksv1.EndpointHealth{BreakerWaitMs: 60_000, BreakerUntilUnixMs: probe.UnixMilli()}
	w.eventRow(2, start)
	w.delivery(row{id: w.id(id.Delivery, 1), status: "waiting", next: start, created: start})
	w.delivery(row{id: w.id(id.Delivery, 2), status: "waiting", next: start, endpoint: paused, created: start.Add(time.Second)})
	w.delivery(row{id: w.id(id.Delivery, 3), status: "delivered", endpoint: paused, created: start.Add(2 * time.Second)})
	w.delivery(row{id: w.id(id.Delivery, 4), status: "delivered", next: start, created: start.Add(3 * time.Second)})

	shown := func(list any) (all []any) {
		for _, d := range list.([]any) {
			all = append(all, d.(map[string]any)["nextAttemptAt"])
		}
		return all
	}
	const layout = "2006-01-02T15:04:05.000Z"
	atProbe, asked := any(probe.UTC().Format(layout)), time.Now().UTC().Format(layout)
	all := shown(w.get(t, 200, "/v1/orgs/org_1/events/"+w.event)["deliveries"])
	require.GreaterOrEqual(t, all[1], asked, "as soon as it is resumed")
	require.Equal(t, []any{atProbe, all[1], nil, atProbe}, all)
	listed := shown(w.get(t, 200, "/v1/orgs/org_1/deliveries")["data"])
	require.Equal(t, []any{atProbe, nil, listed[2], atProbe}, listed)
	one := w.get(t, 200, "/v1/orgs/org_1/deliveries/"+w.id(id.Delivery, 1))
	require.Equal(t, atProbe, one["nextAttemptAt"])
}
