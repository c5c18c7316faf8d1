package inbound

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// release is what the owner of cus_1 tells the organization that held it.
func (r rig) release(from, to string) *kgo.Record {
	return command(r.t, &webhooksv1.Command{Id: id.New(id.Command), OrganizationId: from, Action: &webhooksv1.Command_ReleaseAccount{
		ReleaseAccount: &webhooksv1.ReleaseAccount{
			Source: "stripe", Account: "cus_1", ToOrganizationId: to, MovedUnixMs: r.Now.UnixMilli(), Order: r.Watermark() + 1,
		},
	}})
}

// inboundOf are the records that a task sends to the topic it reads, as records to be given to it.
func inboundOf(out streamtest.Outputs) (list []*kgo.Record) {
	for _, r := range out.Emitted().Topic(schemas.Inbound) {
		list = append(list, &kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers})
	}
	return list
}

// settle gives the task what it sends to itself until nothing is left, and returns all outputs.
func (r rig) settle(out streamtest.Outputs) streamtest.Outputs {
	all := out
	for round := 0; len(inboundOf(out)) > 0; round++ {
		require.Less(r.t, round, 10, "records go round in circles")
		out = r.Process(inboundOf(out)...)
		all = append(all, out...)
	}
	return all
}

func (r rig) plan(org string) string {
	value := r.Newest(schemas.Entitlements, []byte(org))
	snapshot := &webhooksv1.TenantCapabilitySnapshot{}
	require.NoError(r.t, proto.Unmarshal(value, snapshot))
	return snapshot.Plan
}

func TestAMoveHandsTheSubscriptionsOver(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	out := r.settle(r.Process(r.release(org, "org_2")))

	require.Equal(t, "FREE", r.plan(org))
	require.Equal(t, "SCM_PRO", r.plan("org_2"))
	var told []string
	for _, event := range out.Topic(schemas.Events) {
		told = append(told, kafka.ReadHeader(event.Headers, schemas.HeaderOrganization)+" "+kafka.ReadHeader(event.Headers, schemas.HeaderType))
	}
	require.Equal(t, []string{"org_1 subscription.updated", "org_2 subscription.updated"}, told)
	require.Empty(t, out.Topic(schemas.InboundRows))
	require.Empty(t, out.Topic(schemas.CommandOutcomes), "nobody waits for one")
}

func TestWhatStillComesToTheOldOrganizationIsSentOn(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	r.settle(r.Process(r.release(org, "org_2")))
	r.Crash()

	out := r.settle(r.Process(r.subscription("evt_b", billing.SubscriptionDeleted, "canceled", "scm_pro")))
	rows := inboundRows(t, out)
	require.Len(t, rows, 1)
	require.Equal(t, "org_2", rows[0].OrganizationId)
	require.Equal(t, "processed", rows[0].Outcome)
	require.Equal(t, "FREE", r.plan("org_2"))
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionDeleted, "forwarded"))
}

func TestASentOnEventIsSeenOnlyWhereItTakesEffect(t *testing.T) {
	r := newRig(t)
	r.settle(r.Process(r.release(org, "org_2")))
	event := r.subscription("evt_b", billing.SubscriptionCreated, "active", "scm_pro")
	again := *event
	out := r.settle(r.Process(event, &again))
	require.Len(t, out.Topic(schemas.Events), 1)
}

func TestWhatCannotBeSentOnIsADeadLetter(t *testing.T) {
	r := newRig(t)
	r.settle(r.Process(r.release(org, "org_2")))
	large := r.subscription("evt_b", billing.SubscriptionCreated, "active", "scm_pro")
	large.Value = append(large.Value, bytes.Repeat([]byte(" "), schemas.MaxInboundBody-len(large.Value))...)
	require.Len(t, inboundOf(r.Process(large)), 1, "the largest that the edge takes can")

	larger := r.subscription("evt_c", billing.SubscriptionCreated, "active", "scm_pro")
	larger.Value = make([]byte, stream.MaxOutput)
	out := r.Process(larger)
	require.Empty(t, inboundOf(out))
	require.Equal(t, reasonTooLarge, inboundRows(t, out)[0].Reason)
	require.Len(t, out.Topic(schemas.InboundDead), 1)
}

func TestAMoveThatIsAbortedIsMadeOnce(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	r.Abort(r.release(org, "org_2"))
	require.Empty(t, r.moved(), "the mark went with the transaction")
	r.settle(r.Redeliver())
	require.Equal(t, "SCM_PRO", r.plan("org_2"))
	require.Equal(t, []string{"moved/org_1/stripe/cus_1"}, r.moved())
}

// moved are the keys of the marks that the store holds.
func (r rig) moved() (keys []string) {
	for _, org := range []string{org, "org_2", "org_3"} {
		if key := movedKey(org, "stripe", "cus_1"); r.Get(schemas.Billing, []byte(key)) != nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestAnAccountThatComesBackIsNoLongerSentOn(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	r.settle(r.Process(r.release(org, "org_2")))
	r.Now = r.Now.Add(time.Second)
	r.settle(r.Process(r.release("org_2", org)))
	require.Equal(t, "SCM_PRO", r.plan(org))
	require.Equal(t, "FREE", r.plan("org_2"))
	require.Equal(t, []string{"moved/org_2/stripe/cus_1"}, r.moved())
	out := r.Process(r.subscription("evt_b", billing.SubscriptionDeleted, "canceled", "scm_pro"))
	require.Equal(t, org, inboundRows(t, out)[0].OrganizationId)
}

func TestMovesThatOvertakeEachOther(t *testing.T) {
	r := newRig(t)
	r.Process(r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro"))
	first := r.Process(r.release(org, "org_2"))
	r.Now = r.Now.Add(-time.Hour) // the clock of the accounts' owner is set back
	// The second organization is told to release before it has been handed the account.
	second := r.Process(r.release("org_2", "org_3"))
	r.settle(second)
	r.settle(first)
	require.Equal(t, "SCM_PRO", r.plan("org_3"))
	require.Nil(t, r.Newest(schemas.Entitlements, []byte("org_2")), "it never had it")
}

func TestAMarkHasNoSayOverLaterEvents(t *testing.T) {
	r := newRig(t)
	r.settle(r.Process(r.release(org, "org_2")))
	r.Now = r.Now.Add(moveWindow + time.Second)
	out := r.Process(r.subscription("evt_b", billing.SubscriptionCreated, "active", "scm_pro"))
	require.Equal(t, org, inboundRows(t, out)[0].OrganizationId)
}

func TestAReleaseToNobodyIsADeadLetter(t *testing.T) {
	r := newRig(t)
	require.Len(t, r.Process(r.release(org, "")).Topic(schemas.InboundDead), 1)
}
