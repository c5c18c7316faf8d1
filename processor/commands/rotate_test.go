package commands_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/id"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

func rotation(endpointID, secret string, overlap time.Duration) *webhooksv1.Command {
	return &webhooksv1.Command{Action: &webhooksv1.Command_RotateSecret{RotateSecret: &webhooksv1.RotateSecret{
		EndpointId: endpointID, OverlapMs: uint64(overlap.Milliseconds()), PublicKey: "whpk_" + secret,
		Secret: &webhooksv1.SigningSecret{SealedSecret: []byte(secret), SealedPrivateKey: []byte("whsk_" + secret)},
	}}}
}

// signing says which secrets sign, newest first, and until when after now.
func signing(e *webhooksv1.Endpoint) (list []string) {
	for _, s := range e.Secrets {
		text := string(s.SealedSecret)
		if s.ExpiresUnixMs != 0 {
			text += fmt.Sprint(" for ", time.Duration(s.ExpiresUnixMs-now.UnixMilli())*time.Millisecond)
		}
		list = append(list, text)
	}
	return list
}

func TestRotate(t *testing.T) {
	type step struct {
		secret  string
		overlap time.Duration
	}
	for name, c := range map[string]struct {
		steps []step
		want  []string
	}{
		"the one before signs for the overlap":   {[]step{{"b", time.Hour}}, []string{"b", "sealed for 1h0m0s"}},
		"without overlap it ends":                {[]step{{"b", 0}}, []string{"b"}},
		"twice":                                  {[]step{{"b", time.Hour}, {"c", 2 * time.Hour}}, []string{"c", "b for 2h0m0s", "sealed for 1h0m0s"}},
		"a shorter overlap is for all":           {[]step{{"b", 2 * time.Hour}, {"c", time.Hour}}, []string{"c", "b for 1h0m0s", "sealed for 1h0m0s"}},
		"without overlap all end, however many":  {[]step{{"b", time.Hour}, {"c", time.Hour}, {"d", 0}}, []string{"d"}},
		"five sign":                              {[]step{{"b", 1e9}, {"c", 1e9}, {"d", 1e9}, {"e", 1e9}}, []string{"e", "d for 1s", "c for 1s", "b for 1s", "sealed for 1s"}},
		"five sign already, but end at once now": {[]step{{"b", 1e9}, {"c", 1e9}, {"d", 1e9}, {"e", 1e9}, {"f", 0}}, []string{"f"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 10)
			e := w.create(nil).GetEndpoint()
			for i, s := range c.steps {
				rotated := w.do(rotation(e.Id, s.secret, s.overlap)).Outcome.GetEndpoint()
				require.EqualValues(t, i+2, rotated.GetVersion())
				require.True(t, proto.Equal(rotated, w.stored(e.Id)))
				require.EqualValues(t, i+2, w.set().Version)
			}
			require.Equal(t, c.want, signing(w.stored(e.Id)))
		})
	}
}

func TestRotationIsRefused(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	for _, secret := range []string{"b", "c", "d", "e"} {
		w.do(rotation(e.Id, secret, time.Hour))
	}
	before := w.stored(e.Id)
	tooMany := w.do(rotation(e.Id, "f", time.Hour)).Outcome.GetRefusal()
	require.EqualValues(t, 409, tooMany.GetStatus())
	require.Equal(t, "rotation_limit_reached", tooMany.Code)
	stale := rotation(e.Id, "f", 0)
	stale.Precondition = &webhooksv1.Precondition{Versions: []uint64{1}}
	require.EqualValues(t, 412, w.do(stale).Outcome.GetRefusal().GetStatus())
	require.EqualValues(t, 404, w.do(rotation(id.New(id.Endpoint), "f", 0)).Outcome.GetRefusal().GetStatus())
	require.EqualValues(t, 400, w.do(rotation(e.Id, "", 0)).Outcome.GetRefusal().GetStatus())
	require.True(t, proto.Equal(before, w.stored(e.Id)), "a refusal changes nothing")
}

func TestRotationOfTheKeyPairIsForWhoHasOne(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	plain := w.do(rotation(e.Id, "b", time.Hour)).Outcome.GetEndpoint()
	require.Empty(t, plain.PublicKey)
	require.Empty(t, plain.Secrets[0].SealedPrivateKey)

	w.update(e.Id, `{"signatures":["v1","v1a"]}`, func(u *webhooksv1.UpdateEndpoint) {
		u.PublicKey, u.PrivateKey = "whpk_1", &webhooksv1.SigningSecret{SealedPrivateKey: []byte("whsk_1")}
	})
	both := w.do(rotation(e.Id, "c", time.Hour)).Outcome.GetEndpoint()
	require.Equal(t, "whpk_c", both.PublicKey)
	require.Equal(t, "whsk_c", string(both.Secrets[0].SealedPrivateKey))
	require.Equal(t, "whsk_1", string(both.Secrets[1].SealedPrivateKey), "it signs beside the new one")
}

// Whatever is rotated when, there is one current secret, no other signs for longer than any overlap since allowed, and
// those whose time is over are not kept.
func TestSecretsAfterAnyRotations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 10)
		e := w.create(nil).GetEndpoint()
		started := now
		defer func() { now = started }()
		ends := map[string]int64{}
		current := "sealed"
		for i := range rapid.IntRange(1, 12).Draw(t, "rotations") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
			overlap := time.Duration(rapid.IntRange(0, 5000).Draw(t, "overlap")) * time.Millisecond
			secret := fmt.Sprint("secret ", i)
			if w.do(rotation(e.Id, secret, overlap)).Outcome.GetRefusal() != nil {
				continue
			}
			until := now.Add(overlap).UnixMilli()
			for earlier := range ends {
				ends[earlier] = min(ends[earlier], until)
			}
			ends[current], current = until, secret
			want := map[string]int64{current: 0}
			for earlier, end := range ends {
				if end > now.UnixMilli() {
					want[earlier] = end
				}
			}
			have := map[string]int64{}
			for _, s := range w.stored(e.Id).Secrets {
				have[string(s.SealedSecret)] = s.ExpiresUnixMs
			}
			require.Equal(t, want, have)
			require.LessOrEqual(t, len(have), 5)
			require.Equal(t, current, string(w.stored(e.Id).Secrets[0].SealedSecret))
		}
	})
}
