package subscription_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/internal/subscription"
)

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		name     string
		patterns []string
		kind     string
		want     bool
	}{
		{"none", nil, "loop.started", false},
		{"exact", []string{"loop.started"}, "loop.started", true},
		{"exact, a longer one", []string{"loop.started"}, "loop.started.late", false},
		{"beginning", []string{"loop.*"}, "loop.transition.executed", true},
		{"beginning of a word", []string{"loop.tr*"}, "loop.transition.executed", true},
		{"beginning of another", []string{"import.*"}, "loop.started", false},
		{"all", []string{"*"}, "loop.started", true},
		{"all but operational ones", []string{"*"}, "endpoint.disabled", false},
		{"all beside an operational one", []string{"*", "endpoint.*"}, "endpoint.disabled", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := subscription.Parse(tc.patterns)
			require.Equal(t, tc.want, p.Match(tc.kind))
		})
	}
}

func TestLoops(t *testing.T) {
	for _, tc := range []struct {
		name  string
		loops subscription.Loops
		data  string
		want  bool
	}{
		{"all", nil, `{}`, true},
		{"asked for", subscription.Loops{"dcm.order", "dcm.returns"}, `{"loopId":"dcm.returns"}`, true},
		{"another", subscription.Loops{"dcm.order"}, `{"loopId":"dcm.returns"}`, false},
		{"of no loop", subscription.Loops{"dcm.order"}, `{"data":{"loopId":"dcm.order"}}`, false},
		{"no string", subscription.Loops{"7"}, `{"loopId":7}`, false},
		{"the last of two", subscription.Loops{"b"}, `{"loopId":"a","loopId":"b"}`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			loopID, err := subscription.LoopID([]byte(tc.data))
			require.NoError(t, err)
			require.Equal(t, tc.want, tc.loops.Match(loopID))
		})
	}
	_, err := subscription.LoopID([]byte(`[]`))
	require.Error(t, err)
}
