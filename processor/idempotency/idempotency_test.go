package idempotency_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/processor/idempotency"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const (
	org  = "org_1"
	kept = 24 * time.Hour
)

var start = time.UnixMilli(1_700_000_000_000)

// memory is a State.
type memory struct {
	data   map[string][]byte
	broken error
}

func newMemory() *memory { return &memory{data: map[string][]byte{}} }

func (m *memory) Get(key []byte) ([]byte, bool, error) {
	value, ok := m.data[string(key)]
	return value, ok, m.broken
}
func (m *memory) Put(key, value []byte) { m.data[string(key)] = value }
func (m *memory) Delete(key []byte)     { delete(m.data, string(key)) }

func command(commandID, organization, key, request string) *webhooksv1.Command {
	return &webhooksv1.Command{Id: commandID, OrganizationId: organization, IdempotencyKey: &webhooksv1.IdempotencyKey{
		Hash: []byte(key), Fingerprint: []byte(request),
	}}
}

func made(commandID string) *webhooksv1.CommandOutcome {
	return &webhooksv1.CommandOutcome{CommandId: commandID, Result: &webhooksv1.CommandOutcome_Endpoint{
		Endpoint: &webhooksv1.Endpoint{Id: "ep_of_" + commandID, Version: 1},
	}}
}

func refusal(commandID string, status uint32) *webhooksv1.CommandOutcome {
	return &webhooksv1.CommandOutcome{CommandId: commandID, Result: &webhooksv1.CommandOutcome_Refusal{
		Refusal: &webhooksv1.Refusal{Status: status, Code: "because"},
	}}
}

func TestRecall(t *testing.T) {
	// What came before: cmd_1 of org_1 with the key k for the request r.
	remembered := func(t *testing.T, s *memory) {
		require.NoError(t, idempotency.Remember(s, command("cmd_1", org, "k", "r"), made("cmd_1"), start))
	}
	refused := func(t *testing.T, s *memory) {
		require.NoError(t, idempotency.Remember(s, command("cmd_1", org, "k", "r"), refusal("cmd_1", 409), start))
	}
	reserved := func(t *testing.T, s *memory) {
		require.NoError(t, idempotency.Reserve(s, command("cmd_1", org, "k", "r"), start))
	}
	nothing := func(*testing.T, *memory) {}
	same := command("cmd_2", org, "k", "r")
	another := command("cmd_2", org, "k", "x")
	const reused, running = "idempotency_key_reused", "idempotency_in_progress"
	for name, c := range map[string]struct {
		before func(*testing.T, *memory)
		cmd    *webhooksv1.Command
		later  time.Duration
		want   idempotency.Verdict
		// endpoint or refusal is in the outcome; without either there is none.
		endpoint, refusal string
	}{
		"a key nobody sent":               {nothing, same, 0, idempotency.New, "", ""},
		"the same request":                {remembered, same, time.Second, idempotency.Replayed, "ep_of_cmd_1", ""},
		"the same refused request":        {refused, same, time.Second, idempotency.Replayed, "", "because"},
		"another request":                 {remembered, another, time.Second, idempotency.Reused, "", reused},
		"another key":                     {remembered, command("cmd_2", org, "k2", "r"), time.Second, idempotency.New, "", ""},
		"another organization":            {remembered, command("cmd_2", "org_2", "k", "r"), time.Second, idempotency.New, "", ""},
		"at the last moment":              {remembered, same, kept - time.Millisecond, idempotency.Replayed, "ep_of_cmd_1", ""},
		"another one, at the last moment": {remembered, another, kept - time.Millisecond, idempotency.Reused, "", reused},
		"a day later":                     {remembered, same, kept, idempotency.New, "", ""},
		"another one, a day later":        {remembered, another, kept, idempotency.New, "", ""},
		"while the first runs":            {reserved, same, time.Second, idempotency.InProgress, "", running},
		"another one, while it runs":      {reserved, another, time.Second, idempotency.Reused, "", reused},
		"one that ran for a day":          {reserved, same, kept, idempotency.New, "", ""},
		"the same command":                {remembered, command("cmd_1", org, "k", "r"), time.Second, idempotency.Given, "ep_of_cmd_1", ""},
		"the same command, while it runs": {reserved, command("cmd_1", org, "k", "r"), time.Second, idempotency.Given, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newMemory()
			c.before(t, s)
			verdict, outcome, err := idempotency.Recall(s, c.cmd, start.Add(c.later))
			require.NoError(t, err)
			require.Equal(t, c.want, verdict)
			require.Equal(t, c.endpoint, outcome.GetEndpoint().GetId())
			require.Equal(t, c.refusal, outcome.GetRefusal().GetCode())
			if c.endpoint == "" && c.refusal == "" {
				require.Nil(t, outcome)
				return
			}
			require.Equal(t, c.cmd.Id, outcome.CommandId, "it answers this request")
			require.Equal(t, c.want == idempotency.Replayed, outcome.Replayed)
		})
	}
}

func TestOnlyAJudgementIsRemembered(t *testing.T) {
	for name, c := range map[string]struct {
		outcome *webhooksv1.CommandOutcome
		want    idempotency.Verdict
	}{
		"carried out":                   {made("cmd_1"), idempotency.Replayed},
		"not found":                     {refusal("cmd_1", 404), idempotency.Replayed},
		"a conflict":                    {refusal("cmd_1", 409), idempotency.Replayed},
		"another version":               {refusal("cmd_1", 412), idempotency.Replayed},
		"over the limit":                {refusal("cmd_1", 422), idempotency.Replayed},
		"a command that is not known":   {refusal("cmd_1", 400), idempotency.New},
		"keys that the owner has lost":  {refusal("cmd_1", 500), idempotency.New},
		"something that is away for it": {refusal("cmd_1", 503), idempotency.New},
	} {
		for how, keep := range map[string]func(s *memory, cmd *webhooksv1.Command) error{
			"at once": func(s *memory, cmd *webhooksv1.Command) error {
				return idempotency.Remember(s, cmd, c.outcome, start)
			},
			"by its conclusion": func(s *memory, cmd *webhooksv1.Command) error {
				return errors.Join(idempotency.Reserve(s, cmd, start),
					idempotency.Conclude(s, org, cmd.IdempotencyKey.Hash, c.outcome, start.Add(time.Minute)))
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				s := newMemory()
				require.NoError(t, keep(s, command("cmd_1", org, "k", "r")))
				verdict, outcome, err := idempotency.Recall(s, command("cmd_2", org, "k", "r"), start.Add(time.Hour))
				require.NoError(t, err)
				require.Equal(t, c.want, verdict)
				if c.want == idempotency.New {
					require.Empty(t, s.data)
					return
				}
				require.Equal(t, c.outcome.GetRefusal().GetStatus(), outcome.GetRefusal().GetStatus())
				verdict, _, err = idempotency.Recall(s, command("cmd_3", org, "k", "r"), start.Add(kept))
				require.NoError(t, err)
				require.Equal(t, idempotency.New, verdict, "the time runs from the first request")
			})
		}
	}
}

func TestAConclusionThatComesTooLate(t *testing.T) {
	for name, c := range map[string]struct {
		again bool
		later time.Duration
	}{
		"a day later": {false, kept},
		"when the key belongs to another command": {true, kept + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			s := newMemory()
			require.NoError(t, idempotency.Reserve(s, command("cmd_1", org, "k", "r"), start))
			if c.again {
				require.NoError(t, idempotency.Reserve(s, command("cmd_2", org, "k", "r"), start.Add(kept)))
			}
			before := len(s.data)
			require.NoError(t, idempotency.Conclude(s, org, []byte("k"), made("cmd_1"), start.Add(c.later)))
			require.Len(t, s.data, before)
			verdict, _, err := idempotency.Recall(s, command("cmd_3", org, "k", "r"), start.Add(c.later))
			require.NoError(t, err)
			require.NotEqual(t, idempotency.Replayed, verdict)
		})
	}
}

func TestNoSecretIsRemembered(t *testing.T) {
	s := newMemory()
	endpoint, connection := made("cmd_1"), &webhooksv1.CommandOutcome{CommandId: "cmd_2", Result: &webhooksv1.CommandOutcome_Connection{
		Connection: &webhooksv1.Connection{Id: "con_1", SealedAccessToken: []byte("sealed token")},
	}}
	endpoint.GetEndpoint().Secrets = []*webhooksv1.SigningSecret{{SealedSecret: []byte("sealed secret"), SealedPrivateKey: []byte("sealed key")}}
	endpoint.GetEndpoint().SealedHeaders = []byte("sealed headers")
	before := proto.CloneOf(endpoint)
	require.NoError(t, idempotency.Remember(s, command("cmd_1", org, "k1", "r"), endpoint, start))
	require.NoError(t, idempotency.Reserve(s, command("cmd_2", org, "k2", "r"), start))
	require.NoError(t, idempotency.Conclude(s, org, []byte("k2"), connection, start))
	require.Len(t, s.data, 2)
	for _, value := range s.data {
		require.NotContains(t, string(value), "sealed")
	}
	require.True(t, proto.Equal(before, endpoint), "what is written elsewhere is left as it is")
}

// TestWhatIsNotCurrentHasExpired: who drops everything below Current loses nothing that counts, and keeps nothing that
// has long expired.
func TestWhatIsNotCurrentHasExpired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newMemory()
		at := start.Add(time.Duration(rapid.Int64Range(0, int64(10*kept)).Draw(t, "remembered")))
		now := at.Add(time.Duration(rapid.Int64Range(0, int64(3*kept)).Draw(t, "later")))
		require.NoError(t, idempotency.Remember(s, command("cmd_1", org, "k", "r"), made("cmd_1"), at))
		dropped := 0
		for key := range s.data {
			if bytes.Compare([]byte(key), idempotency.Current(now)) < 0 {
				dropped++
			}
		}
		verdict, _, err := idempotency.Recall(s, command("cmd_2", org, "k", "r"), now)
		require.NoError(t, err)
		expired := now.UnixMilli() >= at.Add(kept).UnixMilli()
		require.Equal(t, expired, verdict == idempotency.New)
		require.False(t, dropped > 0 && !expired, "dropped while it counted")
		require.False(t, dropped == 0 && now.Sub(at) >= 2*kept, "kept for ever")
	})
}

// Owners' clocks differ: the next one's may be before a midnight that was over for the one that remembered.
func TestAKeyIsKnownToAClockThatIsBehind(t *testing.T) {
	s, midnight := newMemory(), start.Truncate(kept)
	require.NoError(t, idempotency.Remember(s, command("cmd_1", org, "k", "r"), made("cmd_1"), midnight.Add(time.Second)))
	verdict, _, err := idempotency.Recall(s, command("cmd_2", org, "k", "r"), midnight.Add(-time.Second))
	require.NoError(t, err)
	require.Equal(t, idempotency.Replayed, verdict)
}

func TestUnreadableStateIsAnError(t *testing.T) {
	s := newMemory()
	cmd := command("cmd_1", org, "k", "r")
	require.NoError(t, idempotency.Reserve(s, cmd, start))
	for key := range s.data {
		s.data[key] = []byte{0xff}
	}
	_, _, err := idempotency.Recall(s, cmd, start)
	require.ErrorContains(t, err, org)
	require.Error(t, idempotency.Conclude(s, org, []byte("k"), made("cmd_1"), start))
	s.broken = errors.New("disk")
	_, _, err = idempotency.Recall(s, cmd, start)
	require.ErrorIs(t, err, s.broken)
}
