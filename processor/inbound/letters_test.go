package inbound

import (
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/billing"
	"github.com/betterdata/webhooks/processor/deadletters"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// letterOn is the router's letter of evt_a, which names no account, as it came at an offset there.
func letterOn(r rig, offset int64) *webhooksv1.DeadInbound {
	record := r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro")
	record.Key, record.Partition, record.Offset = []byte("stripe/"), 3, offset
	record.Headers = append(record.Headers, kgo.RecordHeader{Key: "\xff", Value: []byte{}})
	return deadletters.New(schemas.InboundUnrouted, record, &webhooksv1.InboundRow{
		Source: schemas.SourceStripe, SourceEventId: "evt_a", EventId: id.Derive(id.Event, schemas.SourceStripe, "evt_a"),
		Type: billing.SubscriptionCreated, Outcome: schemas.OutcomeDead, Reason: "no_account", ReceivedUnixMs: 1000 + offset,
	}, r.Now)
}

func letters(t *testing.T, out streamtest.Outputs) []*webhooksv1.DeadInbound {
	return rows(t, out, schemas.InboundDead, func() *webhooksv1.DeadInbound { return &webhooksv1.DeadInbound{} })
}

func TestALetterOfTheRoutersIsBuriedAsItIs(t *testing.T) {
	r := newRig(t)
	letter := letterOn(r, 7)
	out := r.Process(deadletters.HandedOn(letter))
	require.Len(t, out.Emitted(), 2)
	require.True(t, proto.Equal(letter, letters(t, out)[0]))
	require.True(t, proto.Equal(letter.Event, inboundRows(t, out)[0]))
	require.Equal(t, letter.Event.EventId, string(out.Topic(schemas.InboundDead)[0].Key))
	require.Equal(t, float64(1), counter(t, r.reg, billing.SubscriptionCreated, "dead"))
}

// TestAnEventOfNoAccountIsBuriedOnce: the platform sends it again and again, whatever becomes of who is told.
func TestAnEventOfNoAccountIsBuriedOnce(t *testing.T) {
	for name, times := range map[string]func(r rig, give func(offset int64) *kgo.Record) streamtest.Outputs{
		"in one transaction": func(r rig, give func(int64) *kgo.Record) streamtest.Outputs {
			return r.Process(give(1), give(2), give(3))
		},
		"in several": func(r rig, give func(int64) *kgo.Record) streamtest.Outputs {
			return append(append(r.Process(give(1)), r.Process(give(2))...), r.Process(give(3))...)
		},
		"after a crash": func(r rig, give func(int64) *kgo.Record) streamtest.Outputs {
			out := r.Process(give(1))
			r.Crash()
			return append(out, r.Process(give(2))...)
		},
		"after an abort": func(r rig, give func(int64) *kgo.Record) streamtest.Outputs {
			r.Abort(give(1), give(2))
			return append(r.Redeliver(), r.Process(give(3))...)
		},
		"a month later": func(r rig, give func(int64) *kgo.Record) streamtest.Outputs {
			out := r.Process(give(1))
			out = append(out, r.Advance(r.Now.Add(31*day))...)
			return append(out, r.Process(give(2))...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			out := times(r, func(offset int64) *kgo.Record { return deadletters.HandedOn(letterOn(r, offset)) })
			require.Len(t, letters(t, out), 1)
			require.Equal(t, int64(1), letters(t, out)[0].Offset, "the first")
			require.Len(t, inboundRows(t, out), 1)
			require.Positive(t, counter(t, r.reg, billing.SubscriptionCreated, "duplicate"))
		})
	}
}

// TestAReplayedLetterOfTheRoutersTakesEffectOnce: mended, the router finds an organization for the record, which may be of this
// partition too.
func TestAReplayedLetterOfTheRoutersTakesEffectOnce(t *testing.T) {
	r := newRig(t)
	letter := letterOn(r, 1)
	r.Process(deadletters.HandedOn(letter))
	require.Empty(t, r.Process(deadletters.HandedOn(letter)).Emitted(), "replayed too early: no second letter, no row")

	for _, account := range []string{"", "cus_1"} { // still none, or one that is found now
		mended := func() *kgo.Record {
			record := deadletters.Original(letter)
			record.Headers = append(record.Headers, headers(schemas.HeaderAccount, account, schemas.HeaderOrganization, org+"_"+account)...)
			return record
		}
		out := r.Process(mended(), mended())
		require.Len(t, inboundRows(t, out), 1)
		require.Equal(t, "processed", inboundRows(t, out)[0].Outcome)
		require.Len(t, auditRows(t, out), 1)
		require.Empty(t, r.Process(mended()).Emitted())
	}
	require.Empty(t, r.Process(deadletters.HandedOn(letter)).Emitted(), "a repeat that was on its way")
}

func TestWhatIsNoLetterIsAnEventThatCannotBeUsed(t *testing.T) {
	r := newRig(t)
	for name, value := range map[string]string{"no message": "\xff", "no event": ""} {
		record := deadletters.HandedOn(letterOn(r, 1))
		record.Value = []byte(value)
		out := r.Process(record)
		require.Len(t, letters(t, out), 1, name)
		require.Equal(t, reasonNoOrganization, letters(t, out)[0].Event.Reason)
		require.Equal(t, schemas.Inbound, letters(t, out)[0].Topic)
	}
}

func TestWhatNamesNoOrganizationIsBuriedOnceWhereItHasAnID(t *testing.T) {
	r := newRig(t)
	sent := func(eventID string) *kgo.Record {
		return &kgo.Record{Key: []byte("x"), Headers: headers(schemas.HeaderSource, "stripe", schemas.HeaderEventID, eventID)}
	}
	out := r.Process(sent("evt_1"), sent("evt_1"), sent("evt_2"))
	require.Len(t, letters(t, out), 2)
	require.Len(t, inboundRows(t, out), 2)
	require.Empty(t, r.Process(sent("evt_2")).Emitted())

	require.Len(t, letters(t, r.Process(sent(""), sent(""))), 2, "these may be two events")
}

func TestWhatIsTooLargeToBeSentOnIsBuriedOnce(t *testing.T) {
	r := newRig(t)
	r.settle(r.Process(r.release(org, "org_2_of_a_longer_name")))
	sent := func() *kgo.Record {
		record := r.subscription("evt_a", billing.SubscriptionCreated, "active", "scm_pro")
		fill := make([]byte, stream.MaxOutput)
		whole := func(n int) *kgo.Record {
			full := *record
			full.Headers = append(slices.Clone(record.Headers), kgo.RecordHeader{Key: "x", Value: fill[:n]})
			return &full
		}
		return whole(sort.Search(len(fill), func(n int) bool { return !stream.Fits(whole(n)) }) - 1) // the largest there is
	}
	out := r.Process(sent(), sent())
	require.Len(t, letters(t, out), 1)
	require.Equal(t, reasonTooLarge, letters(t, out)[0].Event.Reason)
	require.Len(t, inboundRows(t, out), 1)
}
