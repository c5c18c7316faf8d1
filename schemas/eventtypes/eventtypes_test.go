package eventtypes_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/schemas/eventtypes"
)

func catalogue(t testing.TB) *eventtypes.Catalogue {
	c, err := eventtypes.Load()
	require.NoError(t, err)
	return c
}

// TestContract lists every public event type: removing or renaming one breaks clients.
func TestContract(t *testing.T) {
	want := map[string]bool{ // name → made by the processor alone
		"loop.started": false, "loop.transition.requested": false, "loop.transition.executed": false, "loop.transition.blocked": false,
		"loop.guard.failed": false, "loop.completed": false, "loop.error": false, "loop.spawned": false, "loop.signal.received": false,
		"loop.outcome.recorded": false, "import.completed": false, "import.partial": false, "import.failed": false,
		"order.allocation_failed": false, "order.allocation_succeeded": false, "demand_signal.spike_detected": false,
		"demand_signal.stockout_risk": false, "subscription.updated": true, "loop_commitment.threshold_reached": true,
		"product.created": true, "product.updated": true, "product.deleted": true, "inventory.updated": true,
		"federation.merchant_registered": false, "federation.merchant_updated": false, "federation.merchant_unregistered": false,
		"federation.merchant_tier_changed": false, "federation.product_updated": false, "federation.inventory_updated": false,
		"endpoint.disabled": true, "delivery.exhausted": true,
	}
	c := catalogue(t)
	got := map[string]bool{}
	for _, typ := range c.All() {
		got[typ.Name] = typ.Derived
		found, ok := c.Lookup(typ.Name)
		require.True(t, ok)
		require.Equal(t, typ, found)
	}
	require.Equal(t, want, got)
	_, ok := c.Lookup("loop.unknown")
	require.False(t, ok)
}

func TestExamplesAreValidAndShowEveryRequiredMember(t *testing.T) {
	c := catalogue(t)
	for _, typ := range c.All() {
		t.Run(typ.Name, func(t *testing.T) {
			require.NotEmpty(t, typ.Category)
			require.NotEmpty(t, typ.Description)
			require.Equal(t, 1, typ.SchemaVersion)

			violations, err := c.Validate(typ.Name, typ.Example)
			require.NoError(t, err)
			require.Empty(t, violations)

			var schema struct{ Required []string }
			require.NoError(t, json.Unmarshal(typ.Schema, &schema))
			require.NotEmpty(t, schema.Required)
			for _, member := range schema.Required {
				var data map[string]any
				require.NoError(t, json.Unmarshal(typ.Example, &data))
				delete(data, member)
				without, err := json.Marshal(data)
				require.NoError(t, err)
				violations, err := c.Validate(typ.Name, without)
				require.NoError(t, err)
				require.NotEmpty(t, violations, "without %s", member)
			}
		})
	}
}

func TestMoreMembersAreAllowed(t *testing.T) {
	violations, err := catalogue(t).Validate("loop.started", []byte(`{"loopId":"dcm.order","aggregateId":"a","extra":{"b":1}}`))
	require.NoError(t, err)
	require.Empty(t, violations)
}

func TestViolationsNameTheirPlace(t *testing.T) {
	violations, err := catalogue(t).Validate("order.allocation_succeeded", []byte(`{"orderId":"o","lines":[{"sku":"a","quantity":1,"allocated":1},{"sku":"","quantity":true,"allocated":1}]}`))
	require.NoError(t, err)
	pointers := map[string]bool{}
	for _, v := range violations {
		require.NotEmpty(t, v.Detail)
		pointers[v.Pointer] = true
	}
	require.Equal(t, map[string]bool{"/lines/1/sku": true, "/lines/1/quantity": true}, pointers)
}

func TestWhatCannotBeJudged(t *testing.T) {
	_, err := catalogue(t).Validate("loop.unknown", []byte(`{}`))
	require.ErrorIs(t, err, eventtypes.ErrUnknown)
	_, err = catalogue(t).Validate("loop.started", []byte(`{`))
	require.Error(t, err)
}

func FuzzValidate(f *testing.F) {
	c := catalogue(f)
	for _, typ := range c.All() {
		f.Add(typ.Name, []byte(typ.Example))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		violations, err := c.Validate(name, data)
		require.False(t, err != nil && violations != nil)
	})
}
