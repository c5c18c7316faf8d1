package inbound

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/internal/stream/streamtest"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/plans"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// guardedEndpoint asks for a new endpoint with an Idempotency-Key. The edge gives each request an id, and its endpoint
// another, also when it is a repeat.
func guardedEndpoint(key, request, uid string) *webhooksv1.Command {
	return &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: org, IdempotencyKey: &webhooksv1.IdempotencyKey{Hash: []byte(key), Fingerprint: []byte(request)},
		Action: &webhooksv1.Command_CreateEndpoint{CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: &webhooksv1.Endpoint{
			Id: id.New(id.Endpoint), Url: "https://example.com", EventTypes: []string{"*"}, Enabled: true, Uid: &uid,
			Secrets: []*webhooksv1.SigningSecret{{SealedSecret: []byte("sealed secret")}}, SealedHeaders: []byte("sealed headers"),
		}}},
	}
}

func guardedConnection(key, request string) *webhooksv1.Command {
	return &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: org, IdempotencyKey: &webhooksv1.IdempotencyKey{Hash: []byte(key), Fingerprint: []byte(request)},
		Action: &webhooksv1.Command_CreateConnection{CreateConnection: &webhooksv1.CreateConnection{Connection: &webhooksv1.Connection{
			Id: id.New(id.Connection), Source: "stripe", Account: "cus_1", SealedAccessToken: []byte("sealed token"),
		}}},
	}
}

// concluded is what the account's owner makes of a command that it was handed.
func concluded(cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome) *webhooksv1.Command {
	outcome.CommandId = cmd.Id
	return &webhooksv1.Command{
		Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_ConcludeCommand{ConcludeCommand: &webhooksv1.ConcludeCommand{
			KeyHash: cmd.IdempotencyKey.Hash, Outcome: outcome,
		}},
	}
}

// give processes commands and returns their outcomes.
func (r rig) give(cmds ...*webhooksv1.Command) []*webhooksv1.CommandOutcome {
	r.t.Helper()
	var records []*kgo.Record
	for _, cmd := range cmds {
		records = append(records, command(r.t, cmd))
	}
	return outcomes(r.t, r.Process(records...))
}

// endpoints is how many there are.
func (r rig) endpoints() uint32 {
	set := &webhooksv1.EndpointSet{}
	require.NoError(r.t, proto.Unmarshal(r.Get(schemas.Endpoints, []byte(org)), set))
	return set.Endpoints
}

func (r rig) idempotent(result string) float64 {
	return metric(r.t, r.reg, "webhooks_idempotent_answers_total", result)
}

func TestARequestThatIsSentAgainIsAnsweredAgain(t *testing.T) {
	r := newRig(t)
	first := guardedEndpoint("k", "r", "shop")
	out := r.give(first)
	require.Equal(t, first.GetCreateEndpoint().Endpoint.Id, out[0].GetEndpoint().GetId())
	require.False(t, out[0].Replayed)
	require.NotEmpty(t, out[0].GetEndpoint().Secrets, "the table's own record is whole")

	again := guardedEndpoint("k", "r", "shop")
	out = r.give(again)
	require.Equal(t, again.Id, out[0].CommandId)
	require.True(t, out[0].Replayed)
	require.Equal(t, first.GetCreateEndpoint().Endpoint.Id, out[0].GetEndpoint().GetId())
	require.EqualValues(t, 1, r.endpoints())

	other := guardedEndpoint("k", "another request", "shop 2")
	out = r.give(other)
	require.EqualValues(t, 422, out[0].GetRefusal().GetStatus())
	require.Equal(t, "idempotency_key_reused", out[0].GetRefusal().GetCode())
	require.False(t, out[0].Replayed)
	require.EqualValues(t, 1, r.endpoints())

	require.EqualValues(t, 1, r.idempotent("replayed"))
	require.EqualValues(t, 1, r.idempotent("reused"))
	require.EqualValues(t, 0, r.idempotent("in_progress"))
	require.EqualValues(t, 1, counter(t, r.reg, schemas.TypeCommand, "processed"))
	require.EqualValues(t, 1, counter(t, r.reg, schemas.TypeCommand, "duplicate"))
	require.EqualValues(t, 1, counter(t, r.reg, schemas.TypeCommand, "refused"))
	for _, key := range r.Keys(schemas.Idempotency) {
		require.NotContains(t, string(r.Get(schemas.Idempotency, []byte(key))), "sealed")
	}
}

func TestARefusalIsAnsweredAgainToo(t *testing.T) {
	r := newRig(t)
	r.give(guardedEndpoint("k1", "r", "shop"))
	require.Equal(t, "uid_taken", r.give(guardedEndpoint("k2", "r", "shop"))[0].GetRefusal().GetCode())
	held := r.Keys(schemas.Endpoints)[1][len(org)+1:]
	r.give(&webhooksv1.Command{Id: id.New(id.Command), OrganizationId: org, Action: &webhooksv1.Command_DeleteEndpoint{
		DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: held},
	}})
	again := r.give(guardedEndpoint("k2", "r", "shop"))[0]
	require.Equal(t, "uid_taken", again.GetRefusal().GetCode(), "although it is free now")
	require.True(t, again.Replayed)
	require.NotNil(t, r.give(guardedEndpoint("k3", "r", "shop"))[0].GetEndpoint())
}

func TestTwoInOneTransactionAreOneEndpoint(t *testing.T) {
	r := newRig(t)
	out := r.give(guardedEndpoint("k", "r", "shop"), guardedEndpoint("k", "r", "shop"), guardedEndpoint("k", "x", "shop"))
	require.Equal(t, out[0].GetEndpoint().GetId(), out[1].GetEndpoint().GetId())
	require.EqualValues(t, 422, out[2].GetRefusal().GetStatus())
	require.EqualValues(t, 1, r.endpoints())
}

func TestAKeyIsRememberedWithItsEffectOnly(t *testing.T) {
	r := newRig(t)
	first := command(t, guardedEndpoint("k", "r", "shop"))
	r.Abort(first)
	r.Crash()
	out := outcomes(t, r.Redeliver())
	require.Len(t, out, 1)
	require.False(t, out[0].Replayed, "the aborted one did not happen")
	r.Crash()
	require.True(t, r.give(guardedEndpoint("k", "r", "shop"))[0].Replayed)
	require.EqualValues(t, 1, r.endpoints())
	require.EqualValues(t, 1, r.idempotent("replayed"))
}

func TestAKeyIsForgottenAfterADay(t *testing.T) {
	r := newRig(t)
	start := r.Now.Add(7 * time.Hour)
	r.Now = start
	first := r.give(guardedEndpoint("k", "r", "a"))[0].GetEndpoint().GetId()
	r.Now = start.Add(day - time.Millisecond)
	require.Equal(t, first, r.give(guardedEndpoint("k", "r", "a"))[0].GetEndpoint().GetId())
	r.Now = start.Add(day)
	second := r.give(guardedEndpoint("k", "x", "b"))[0]
	require.NotEqual(t, first, second.GetEndpoint().GetId(), "the key is as good as new, for any request")
	require.False(t, second.Replayed)
	require.True(t, r.give(guardedEndpoint("k", "x", "b"))[0].Replayed)
	require.EqualValues(t, 2, r.endpoints())

	// What has expired leaves the store when its day is over, whether or not a command comes.
	require.Len(t, r.Keys(schemas.Idempotency), 2)
	r.Now = start.Add(2 * day).Truncate(day)
	r.WaitWoken()
	r.Advance(r.Now)
	r.give(guardedEndpoint("k3", "r", "c"))
	require.Len(t, r.Keys(schemas.Idempotency), 2)
	r.Advance(r.Now.Add(2 * day))
	r.give(guardedEndpoint("k4", "r", "d"))
	require.Len(t, r.Keys(schemas.Idempotency), 1)
}

func TestAConnectionIsHandedOnAndConcluded(t *testing.T) {
	r := newRig(t)
	first := guardedConnection("k", "r")
	out := r.Process(command(t, first))
	require.Empty(t, out.Topic(schemas.CommandOutcomes), "nobody has decided yet")
	handed := out.Topic(schemas.InboundUnrouted)
	require.Len(t, handed, 1)
	cmd := &webhooksv1.Command{}
	require.NoError(t, proto.Unmarshal(handed[0].Value, cmd))
	require.True(t, proto.Equal(first, cmd))
	require.Equal(t, schemas.TypeCommand, kafka.ReadHeader(handed[0].Headers, schemas.HeaderType))
	for _, p := range out {
		if p.Topic == schemas.InboundUnrouted {
			require.Equal(t, "stripe/cus_1", p.Key, "to its account's owner")
		}
	}

	r.Crash()
	running := r.give(guardedConnection("k", "r"))
	require.Equal(t, "idempotency_in_progress", running[0].GetRefusal().GetCode())
	require.EqualValues(t, 409, running[0].GetRefusal().GetStatus())
	require.Equal(t, "idempotency_key_reused", r.give(guardedConnection("k", "x"))[0].GetRefusal().GetCode())
	require.EqualValues(t, 1, r.idempotent("in_progress"))
	require.Empty(t, r.give(first), "the same command is not answered as if it were another, nor handed on again")

	made := first.GetCreateConnection().Connection
	answer := r.give(concluded(first, &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Connection{Connection: made}}))
	require.Equal(t, first.Id, answer[0].CommandId, "answered where it is remembered")
	require.Equal(t, made.Id, answer[0].GetConnection().GetId())
	require.False(t, answer[0].Replayed)

	again := r.give(guardedConnection("k", "r"))
	require.True(t, again[0].Replayed)
	require.Equal(t, made.Id, again[0].GetConnection().GetId())
	require.Empty(t, again[0].GetConnection().GetSealedAccessToken())
}

func TestACommandOnDeliveriesIsHandedOnAndConcluded(t *testing.T) {
	ep, dlv := id.Derive(id.Endpoint, "1"), id.Derive(id.Delivery, "1")
	retry := &webhooksv1.Command_RetryDelivery{RetryDelivery: &webhooksv1.RetryDelivery{DeliveryId: dlv, EndpointId: ep}}
	test := &webhooksv1.Command_TestEndpoint{TestEndpoint: &webhooksv1.TestEndpoint{EndpointId: ep}}
	cancel := &webhooksv1.Command_CancelDelivery{CancelDelivery: &webhooksv1.CancelDelivery{DeliveryId: dlv, EndpointId: ep}}
	replay := &webhooksv1.Command_StartReplay{StartReplay: &webhooksv1.StartReplay{Replay: &webhooksv1.Replay{EndpointId: ep}}}
	pause := &webhooksv1.Command_ChangeReplay{ChangeReplay: &webhooksv1.ChangeReplay{EndpointId: ep, Status: schemas.ReplayPaused}}
	guarded := func(set func(*webhooksv1.Command)) *webhooksv1.Command {
		cmd := &webhooksv1.Command{
			Id: id.New(id.Command), OrganizationId: org,
			IdempotencyKey: &webhooksv1.IdempotencyKey{Hash: []byte("k"), Fingerprint: []byte("r")},
		}
		set(cmd)
		return cmd
	}
	for name, set := range map[string]func(*webhooksv1.Command){
		"retry":  func(cmd *webhooksv1.Command) { cmd.Action = retry },
		"test":   func(cmd *webhooksv1.Command) { cmd.Action = test },
		"cancel": func(cmd *webhooksv1.Command) { cmd.Action = cancel },
		"replay": func(cmd *webhooksv1.Command) { cmd.Action = replay },
		"pause":  func(cmd *webhooksv1.Command) { cmd.Action = pause },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			first := guarded(set)
			out := r.Process(command(t, first))
			require.Empty(t, out.Topic(schemas.CommandOutcomes), "nobody has carried it out yet")
			require.Len(t, out.Topic(schemas.Deliveries), 1)
			require.True(t, cloudevent.IsCommandRecord(out.Topic(schemas.Deliveries)[0]))
			for _, p := range out {
				if p.Topic == schemas.Deliveries {
					require.Equal(t, ep, p.Key, "to its endpoint's owner")
				}
			}
			require.Equal(t, "idempotency_in_progress", r.give(guarded(set))[0].GetRefusal().GetCode())

			answer := r.give(concluded(first, &webhooksv1.CommandOutcome{
				Result: &webhooksv1.CommandOutcome_Delivery{Delivery: &webhooksv1.Delivery{Id: dlv}},
			}))
			require.Equal(t, first.Id, answer[0].CommandId)
			again := r.give(guarded(set))
			require.True(t, again[0].Replayed)
			require.Equal(t, dlv, again[0].GetDelivery().GetId())
		})
	}
}

func TestARefusedConnectionIsConcludedToo(t *testing.T) {
	r := newRig(t)
	first := guardedConnection("k", "r")
	r.give(first)
	taken := &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Refusal{
		Refusal: &webhooksv1.Refusal{Status: 409, Code: "account_taken"},
	}}
	require.Equal(t, "account_taken", r.give(concluded(first, taken))[0].GetRefusal().GetCode())
	again := r.give(guardedConnection("k", "r"))[0]
	require.Equal(t, "account_taken", again.GetRefusal().GetCode())
	require.True(t, again.Replayed)
}

func TestAConclusionNobodyWaitsFor(t *testing.T) {
	r := newRig(t)
	start := r.Now
	first := guardedConnection("k", "r")
	r.give(first)
	r.Now = start.Add(day)
	late := r.give(concluded(first, &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Deleted{Deleted: &webhooksv1.Deleted{}}}))
	require.Len(t, late, 1, "answered all the same")
	require.Len(t, r.Process(command(t, guardedConnection("k", "r"))).Topic(schemas.InboundUnrouted), 1, "and not remembered")

	of := concluded(first, &webhooksv1.CommandOutcome{})
	of.GetConcludeCommand().Outcome.CommandId = ""
	require.Equal(t, reasonCommand, inboundRows(t, r.Process(command(t, of)))[0].Reason)
}

// TestOneEndpointAKeyWhateverHappens: requests come several times, with the same keys, in transactions that abort and
// under owners that crash. Each request has one outcome, each key one endpoint.
func TestOneEndpointAKeyWhateverHappens(t *testing.T) {
	keyring, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		applier, err := commands.New(commands.Config{EndpointsPerOrg: 100}, keyring)
		require.NoError(t, err)
		inbound, err := New(Config{Plans: plans.Builtin(), DedupeRetention: 8 * day}, applier, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.NoError(t, err)
		h := streamtest.New(t, inbound.Spec())
		keyOf, of := map[string]string{}, map[string]*webhooksv1.CommandOutcome{}
		for range rapid.IntRange(1, 10).Draw(t, "transactions") {
			var records []*kgo.Record
			for range rapid.IntRange(1, 4).Draw(t, "records") {
				key := fmt.Sprint("key ", rapid.IntRange(0, 3).Draw(t, "key"))
				cmd := guardedEndpoint(key, "r", key)
				keyOf[cmd.Id] = key
				value, err := proto.Marshal(cmd)
				require.NoError(t, err)
				records = append(records, &kgo.Record{Key: []byte(org), Value: value, Headers: headers(
					schemas.HeaderSource, schemas.SourceManagement, schemas.HeaderType, schemas.TypeCommand, schemas.HeaderOrganization, org,
				)})
			}
			var out streamtest.Outputs
			switch rapid.SampledFrom([]string{"commit", "commit", "abort", "abort and crash"}).Draw(t, "end") {
			case "commit":
				out = h.Process(records...)
			case "abort":
				h.Abort(records...)
				out = h.Redeliver()
			case "abort and crash":
				h.Abort(records...)
				h.Crash()
				out = h.Redeliver()
			}
			for _, r := range out.Topic(schemas.CommandOutcomes) {
				outcome := &webhooksv1.CommandOutcome{}
				require.NoError(t, proto.Unmarshal(r.Value, outcome))
				require.Nil(t, of[outcome.CommandId], "answered twice")
				of[outcome.CommandId] = outcome
			}
		}
		first, fresh := map[string]string{}, map[string]int{}
		for cmd, key := range keyOf {
			require.NotNil(t, of[cmd].GetEndpoint(), "%v", of[cmd])
			if first[key] == "" {
				first[key] = of[cmd].GetEndpoint().Id
			}
			require.Equal(t, first[key], of[cmd].GetEndpoint().Id)
			if !of[cmd].Replayed {
				fresh[key]++
			}
		}
		for key := range first {
			require.Equal(t, 1, fresh[key], "one was carried out with %s", key)
		}
		require.Len(t, h.Keys(schemas.Endpoints), 1+len(first))
	})
}
