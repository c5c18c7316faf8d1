package dispatch_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// asked is a command as a record of `deliveries`; change sets its action.
func (w *world) asked(change func(*webhooksv1.Command)) *kgo.Record {
	w.t.Helper()
	cmd := &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, IssuedUnixMs: w.Now.UnixMilli()}
	change(cmd)
	r, err := cloudevent.Command(cmd)
	require.NoError(w.t, err)
	return r
}

// outcomes decodes the answers to commands among outputs.
func outcomes(t streamtest.TB, out streamtest.Outputs) []*webhooksv1.CommandOutcome {
	return rows(t, out, schemas.CommandOutcomes, func() *webhooksv1.CommandOutcome { return new(webhooksv1.CommandOutcome) })
}

// metric is the sum of a counter's values that have these labels.
func (w *world) metric(name string, labels ...string) (sum float64) {
	w.t.Helper()
	families, err := w.registry.Gather()
	require.NoError(w.t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if subset(labels, values) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func subset(some, all []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

func TestACommandThatIsNotKnownIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	asked := w.asked(func(*webhooksv1.Command) {})
	w.Abort(asked)
	out := w.Redeliver()
	require.Len(t, outcomes(t, out), 1)
	require.Equal(t, header(asked, schemas.HeaderID), outcomes(t, out)[0].CommandId)
	require.EqualValues(t, 400, outcomes(t, out)[0].GetRefusal().GetStatus())
	require.EqualValues(t, 1, w.Watermark())
}

func TestACommandIsAnsweredOnceWhateverIsUnfinishedBeforeIt(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdBack("e1")
	out := w.settle(w.Process(w.event("e1", ep), w.asked(func(*webhooksv1.Command) {})))
	require.Len(t, outcomes(t, out), 1)
	require.Zero(t, w.Watermark())
	w.Crash()
	w.receiver.releaseAll()
	require.Empty(t, outcomes(t, w.settle(w.Redeliver())))
	require.EqualValues(t, 2, w.Watermark())
}

func TestACommandWithAnIdempotencyKeyIsConcluded(t *testing.T) {
	w := newWorld(t, nil)
	asked := w.asked(func(cmd *webhooksv1.Command) {
		cmd.IdempotencyKey = &webhooksv1.IdempotencyKey{Hash: []byte("k")}
	})
	out := w.Process(asked)
	require.Empty(t, outcomes(t, out), "its organization's owner answers")
	concluded := out.Topic(schemas.Inbound)
	require.Len(t, concluded, 1)
	require.True(t, cloudevent.IsCommandRecord(concluded[0]))
	cmd := new(webhooksv1.Command)
	require.NoError(t, proto.Unmarshal(concluded[0].Value, cmd))
	require.Equal(t, org, cmd.OrganizationId)
	require.Equal(t, []byte("k"), cmd.GetConcludeCommand().GetKeyHash())
	require.Equal(t, header(asked, schemas.HeaderID), cmd.GetConcludeCommand().GetOutcome().GetCommandId())
}

func TestTooManyCommandsWaitForADelivery(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.holdBack("e1")
	w.settle(w.Process(w.event("e1", ep), w.event("e2", ep)))
	for range 16 {
		require.Empty(t, outcomes(t, w.settle(w.Process(w.retry("e1", ep)))))
	}
	out := w.settle(w.Process(w.retry("e1", ep)))
	require.Equal(t, "too_many_commands", refusal(t, out))
	require.EqualValues(t, 503, outcomes(t, out)[0].GetRefusal().GetStatus())
	answered(t, w.settle(w.Process(w.retry("e2", ep))))
	w.receiver.release("e1")
	require.Len(t, outcomes(t, w.settle(w.Commit())), 16)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestTooManyCommandsWaitForAPartition(t *testing.T) {
	w := newWorld(t, nil)
	ep := w.endpoint("a", nil)
	w.receiver.answer(500)
	w.settle(w.Process(w.event("e1", ep)))
	w.archive.holdBack()
	var many []*kgo.Record
	for _, name := range names("x", 1000) {
		many = append(many, w.retry(name, ep))
	}
	w.Abort(many...)
	require.Empty(t, outcomes(t, w.settle(w.Redeliver())), "what was taken back does not count")
	require.Equal(t, "too_many_commands", refusal(t, w.settle(w.Process(w.retry("y", ep)))))
	require.Equal(t, "too_many_commands", refusal(t, w.settle(w.Process(w.try("t1", ep)))))
	require.Equal(t, "canceled", answered(t, w.settle(w.Process(w.cancel("e1", ep)))).Reason, "what need not wait is done")
	w.Crash()
	w.settle(w.Redeliver())
	require.Equal(t, "too_many_commands", refusal(t, w.settle(w.Process(w.retry("y", ep)))), "the next owner keeps them too")
	w.archive.release()
	require.Len(t, outcomes(t, w.settle(w.Commit())), 1000)
	require.Equal(t, "not_found", refusal(t, w.settle(w.Process(w.retry("y", ep)))))
	require.Len(t, w.receiver.sent(), 1)
	require.Empty(t, w.Keys(schemas.Retries))
}

func TestACommandThatCannotBeReadIsKeptAsDeadLetter(t *testing.T) {
	for name, change := range map[string]func(*webhooksv1.Command, *kgo.Record){
		"no protobuf":     func(_ *webhooksv1.Command, r *kgo.Record) { r.Value = []byte("\xff") },
		"no id":           func(cmd *webhooksv1.Command, _ *kgo.Record) { cmd.Id = "" },
		"no organization": func(cmd *webhooksv1.Command, _ *kgo.Record) { cmd.OrganizationId = "" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.asked(func(cmd *webhooksv1.Command) { change(cmd, &kgo.Record{}) })
			change(new(webhooksv1.Command), r)
			ep := w.endpoint("a", nil)
			out := w.settle(w.Process(r, w.event("e1", ep)))
			require.Empty(t, outcomes(t, out))
			require.Len(t, out.Topic(schemas.DeliveriesDead), 1)
			require.Len(t, attempts(t, out), 1, "the next record is taken")
			require.EqualValues(t, 2, w.Watermark())
		})
	}
}
