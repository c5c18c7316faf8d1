package commands_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/internal/seal"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

const org = "org_1"

var now = time.UnixMilli(1_700_000_000_000)

// memory is a State, and remembers in which order it was written.
type memory struct {
	data    map[string][]byte
	written []string
	broken  error
}

func (m *memory) Get(key []byte) ([]byte, bool, error) {
	value, ok := m.data[string(key)]
	return value, ok, m.broken
}
func (m *memory) Put(key, value []byte) {
	m.data[string(key)] = value
	m.written = append(m.written, string(key))
}
func (m *memory) Delete(key []byte) {
	delete(m.data, string(key))
	m.written = append(m.written, string(key))
}
func (m *memory) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	for _, key := range slices.Sorted(maps.Keys(m.data)) {
		if strings.HasPrefix(key, string(prefix)) && !fn([]byte(key), m.data[key]) {
			break
		}
	}
	return m.broken
}

// world is an organization's state and the applier over it.
type world struct {
	t     require.TestingT
	state *memory
	apply *commands.Applier
	keys  *seal.Keyring
}

func newWorld(t require.TestingT, limit int) *world {
	keys, err := seal.NewKeyring(seal.NewKey())
	require.NoError(t, err)
	apply, err := commands.New(commands.Config{EndpointsPerOrg: limit}, keys)
	require.NoError(t, err)
	return &world{t: t, state: &memory{data: map[string][]byte{}}, apply: apply, keys: keys}
}

func (w *world) do(cmd *webhooksv1.Command) commands.Result {
	cmd.Id, cmd.OrganizationId = id.New(id.Command), org
	result, err := w.apply.Apply(w.state, cmd, now)
	require.NoError(w.t, err)
	require.Equal(w.t, cmd.Id, result.Outcome.CommandId)
	return result
}

func (w *world) create(change func(*webhooksv1.Endpoint)) *webhooksv1.CommandOutcome {
	e := &webhooksv1.Endpoint{
		Id: id.New(id.Endpoint), Url: "https://example.com/", Enabled: true, EventTypes: []string{"*"}, Concurrency: 16, TimeoutMs: 15000,
		Signatures: []string{"v1"}, Secrets: []*webhooksv1.SigningSecret{{SealedSecret: []byte("sealed")}},
	}
	if change != nil {
		change(e)
	}
	return w.do(&webhooksv1.Command{Action: &webhooksv1.Command_CreateEndpoint{CreateEndpoint: &webhooksv1.CreateEndpoint{Endpoint: e}}}).Outcome
}

func (w *world) update(endpointID, patch string, more func(*webhooksv1.UpdateEndpoint)) *webhooksv1.CommandOutcome {
	update := &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: []byte(patch)}
	if more != nil {
		more(update)
	}
	return w.do(&webhooksv1.Command{Action: &webhooksv1.Command_UpdateEndpoint{UpdateEndpoint: update}}).Outcome
}

func (w *world) delete(endpointID string) *webhooksv1.CommandOutcome {
	return w.do(&webhooksv1.Command{Action: &webhooksv1.Command_DeleteEndpoint{
		DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: endpointID},
	}}).Outcome
}

func (w *world) disable(endpointID string, version uint64, reason string) commands.Result {
	return w.do(&webhooksv1.Command{Action: &webhooksv1.Command_DisableEndpoint{
		DisableEndpoint: &webhooksv1.DisableEndpoint{EndpointId: endpointID, JudgedVersion: version, Reason: reason},
	}})
}

func (w *world) set() *webhooksv1.EndpointSet {
	set := &webhooksv1.EndpointSet{}
	require.NoError(w.t, proto.Unmarshal(w.state.data[org], set))
	return set
}

func (w *world) stored(endpointID string) *webhooksv1.Endpoint {
	e := &webhooksv1.Endpoint{}
	require.NoError(w.t, proto.Unmarshal(w.state.data[org+"/"+endpointID], e))
	return e
}

func TestCreate(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	require.NotNil(t, e)
	require.Equal(t, org, e.OrganizationId)
	require.EqualValues(t, 1, e.Version)
	require.Equal(t, now.UnixMilli(), e.CreatedUnixMs)
	require.Equal(t, now.UnixMilli(), e.UpdatedUnixMs)
	require.Empty(t, e.DisabledReason)
	require.True(t, proto.Equal(e, w.stored(e.Id)))
	require.True(t, proto.Equal(&webhooksv1.EndpointSet{Version: 1, Endpoints: 1}, w.set()))
	require.Equal(t, []string{org + "/" + e.Id, org}, w.state.written, "the set is written after what it counts")

	version, err := commands.SetVersion(w.state, org)
	require.NoError(t, err)
	require.EqualValues(t, 1, version)
}

func TestCreateDisabled(t *testing.T) {
	e := newWorld(t, 10).create(func(e *webhooksv1.Endpoint) { e.Enabled, e.DisabledReason = false, "manual" }).GetEndpoint()
	require.Equal(t, "manual", e.DisabledReason)
	require.Equal(t, now.UnixMilli(), e.DisabledUnixMs)
}

func TestCreateTwiceIsOneEndpoint(t *testing.T) {
	w := newWorld(t, 10)
	first := w.create(nil).GetEndpoint()
	again := w.create(func(e *webhooksv1.Endpoint) { e.Id = first.Id }).GetEndpoint()
	require.True(t, proto.Equal(first, again))
	require.EqualValues(t, 1, w.set().Version)
}

func TestLimitAndUID(t *testing.T) {
	w := newWorld(t, 2)
	first := w.create(func(e *webhooksv1.Endpoint) { e.Uid = proto.String("shop") }).GetEndpoint()

	taken := w.create(func(e *webhooksv1.Endpoint) { e.Uid = proto.String("shop") }).GetRefusal()
	require.EqualValues(t, 409, taken.GetStatus())
	require.Equal(t, "uid_taken", taken.GetCode())

	second := w.create(nil).GetEndpoint()
	require.NotNil(t, second)
	require.EqualValues(t, 409, w.update(second.Id, `{"uid":"shop"}`, nil).GetRefusal().GetStatus())
	require.NotNil(t, w.update(first.Id, `{"uid":"shop","paused":true}`, nil).GetEndpoint(), "one's own uid is not taken")

	full := w.create(nil).GetRefusal()
	require.EqualValues(t, 422, full.GetStatus())
	require.Equal(t, "endpoint_limit_reached", full.GetCode())

	require.NotNil(t, w.delete(second.Id).GetDeleted())
	require.NotNil(t, w.create(nil).GetEndpoint(), "a deleted endpoint makes room")
}

func TestUpdate(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	updated := w.update(e.Id, `{"enabled":false,"description":"off"}`, nil).GetEndpoint()
	require.EqualValues(t, 2, updated.GetVersion())
	require.Equal(t, "manual", updated.DisabledReason)
	require.True(t, proto.Equal(updated, w.stored(e.Id)))
	require.EqualValues(t, 2, w.set().Version)

	same := w.update(e.Id, `{"description":"off"}`, nil).GetEndpoint()
	require.EqualValues(t, 2, same.GetVersion(), "a patch that changes nothing makes no version")
	require.EqualValues(t, 2, w.set().Version)

	require.EqualValues(t, 422, w.update(e.Id, `{"version":1}`, nil).GetRefusal().GetStatus())
	require.EqualValues(t, 404, w.update(id.New(id.Endpoint), `{}`, nil).GetRefusal().GetStatus())
}

func TestUpdateMergesSealedHeaders(t *testing.T) {
	w := newWorld(t, 10)
	endpointID := id.New(id.Endpoint)
	sealed := func(headers map[string]string) []byte {
		s, err := w.keys.Seal(resource.HeadersJSON(headers), seal.EndpointHeaders(endpointID))
		require.NoError(t, err)
		return s
	}
	w.create(func(e *webhooksv1.Endpoint) {
		e.Id, e.HeaderNames, e.SealedHeaders = endpointID, []string{"X-A", "X-B"}, sealed(map[string]string{"X-A": "a", "X-B": "b"})
	})
	patch := func(h *webhooksv1.SealedHeaders) *webhooksv1.CommandOutcome {
		return w.update(endpointID, `{}`, func(u *webhooksv1.UpdateEndpoint) { u.Headers = h })
	}

	e := patch(&webhooksv1.SealedHeaders{Names: []string{"X-A", "X-C"}, Sealed: sealed(map[string]string{"X-C": "c"}), Removed: []string{"X-B"}}).GetEndpoint()
	require.Equal(t, []string{"X-A", "X-C"}, e.GetHeaderNames())
	plain, err := w.keys.Open(e.SealedHeaders, seal.EndpointHeaders(endpointID))
	require.NoError(t, err)
	require.JSONEq(t, `{"X-A":"a","X-C":"c"}`, string(plain))

	kept := patch(&webhooksv1.SealedHeaders{Names: []string{"X-A"}}).GetEndpoint()
	require.Equal(t, e.Version, kept.GetVersion(), "masks alone change nothing")

	unknown := patch(&webhooksv1.SealedHeaders{Names: []string{"X-Z"}}).GetRefusal()
	require.EqualValues(t, 422, unknown.GetStatus())

	lost := patch(&webhooksv1.SealedHeaders{Names: []string{"X-A"}, Sealed: []byte("no seal of ours, but long enough to be one")}).GetRefusal()
	require.EqualValues(t, 500, lost.GetStatus())

	none := w.update(endpointID, `{"headers":null}`, nil).GetEndpoint()
	require.Empty(t, none.GetHeaderNames())
	require.Empty(t, none.GetSealedHeaders())
}

func TestKeyPairIsTakenOnce(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	withKey := func(patch, public string) *webhooksv1.Endpoint {
		return w.update(e.Id, patch, func(u *webhooksv1.UpdateEndpoint) {
			u.PublicKey, u.PrivateKey = public, &webhooksv1.SigningSecret{SealedPrivateKey: []byte(public)}
		}).GetEndpoint()
	}
	on := withKey(`{"signatures":["v1a"]}`, "whpk_1")
	require.Equal(t, "whpk_1", on.GetPublicKey())
	require.Equal(t, "whpk_1", string(on.Secrets[0].SealedPrivateKey))

	off := w.update(e.Id, `{"signatures":["v1"]}`, nil).GetEndpoint()
	require.Nil(t, resource.EndpointView(off).PublicKey)
	again := withKey(`{"signatures":["v1","v1a"]}`, "whpk_2")
	require.Equal(t, "whpk_1", *resource.EndpointView(again).PublicKey, "who pinned the key is not broken")
}

func TestDelete(t *testing.T) {
	w := newWorld(t, 10)
	e := w.create(nil).GetEndpoint()
	require.NotNil(t, w.delete(e.Id).GetDeleted())
	require.NotContains(t, w.state.data, org+"/"+e.Id)
	require.True(t, proto.Equal(&webhooksv1.EndpointSet{Version: 2}, w.set()))
	require.EqualValues(t, 404, w.delete(e.Id).GetRefusal().GetStatus())
}

func TestIfMatch(t *testing.T) {
	update := func(endpointID string) *webhooksv1.Command {
		return &webhooksv1.Command{Action: &webhooksv1.Command_UpdateEndpoint{
			UpdateEndpoint: &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: []byte(`{"paused":true}`)},
		}}
	}
	unchanged := func(endpointID string) *webhooksv1.Command {
		return &webhooksv1.Command{Action: &webhooksv1.Command_UpdateEndpoint{
			UpdateEndpoint: &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: []byte(`{"paused":false}`)},
		}}
	}
	wrong := func(endpointID string) *webhooksv1.Command {
		return &webhooksv1.Command{Action: &webhooksv1.Command_UpdateEndpoint{
			UpdateEndpoint: &webhooksv1.UpdateEndpoint{EndpointId: endpointID, PatchJson: []byte(`{"version":1}`)},
		}}
	}
	remove := func(endpointID string) *webhooksv1.Command {
		return &webhooksv1.Command{Action: &webhooksv1.Command_DeleteEndpoint{
			DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: endpointID},
		}}
	}
	elsewhere := func(string) *webhooksv1.Command { return remove(id.New(id.Endpoint)) }
	is := func(versions ...uint64) *webhooksv1.Precondition { return &webhooksv1.Precondition{Versions: versions} }
	any := &webhooksv1.Precondition{Any: true}
	for name, c := range map[string]struct {
		command func(endpointID string) *webhooksv1.Command
		ifMatch *webhooksv1.Precondition
		// refusal is 0 where the command is carried out.
		refusal uint32
	}{
		"update of the version there is":         {update, is(2), 0},
		"update of one of several":               {update, is(1, 2, 3), 0},
		"update of any version":                  {update, any, 0},
		"update of an older version":             {update, is(1), 412},
		"update of a version to come":            {update, is(3), 412},
		"update of none of several":              {update, is(1, 3), 412},
		"update of what is no version":           {update, is(), 412},
		"update that would change nothing":       {unchanged, is(1), 412},
		"update that is wrong, of an older one":  {wrong, is(1), 412},
		"update that is wrong, of what there is": {wrong, is(2), 422},
		"deletion of the version there is":       {remove, is(2), 0},
		"deletion of any version":                {remove, any, 0},
		"deletion of an older version":           {remove, is(1), 412},
		"deletion of what is no version":         {remove, is(), 412},
		"of an endpoint that is not there":       {elsewhere, is(2), 404},
		"of any that is not there":               {elsewhere, any, 404},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 10)
			e := w.create(nil).GetEndpoint()
			w.update(e.Id, `{"description":"second"}`, nil)
			before := maps.Clone(w.state.data)
			cmd := c.command(e.Id)
			cmd.Precondition = c.ifMatch
			refusal := w.do(cmd).Outcome.GetRefusal()
			require.Equal(t, c.refusal, refusal.GetStatus())
			if c.refusal == 0 {
				require.EqualValues(t, 3, w.set().Version)
				return
			}
			require.Equal(t, before, w.state.data, "a refusal changes nothing")
			if c.refusal == 412 {
				require.Equal(t, "precondition_failed", refusal.Code)
				require.Contains(t, refusal.Detail, "version 2")
			}
		})
	}
}

func TestDisable(t *testing.T) {
	for _, reason := range []string{"gone", "failing"} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t, 10)
			e := w.create(nil).GetEndpoint()

			require.Nil(t, w.disable(e.Id, e.Version+1, reason).Event, "judged by another version")
			require.True(t, w.stored(e.Id).Enabled)

			result := w.disable(e.Id, e.Version, reason)
			require.Equal(t, reason, result.Outcome.GetEndpoint().GetDisabledReason())
			require.False(t, w.stored(e.Id).Enabled)
			require.Equal(t, now.UnixMilli(), w.stored(e.Id).DisabledUnixMs)
			require.Equal(t, schemas.TypeEndpointDisabled, result.Event.Type)
			require.True(t, id.Valid(id.Event, result.Event.ID))
			require.JSONEq(t, `{"endpointId":"`+e.Id+`","reason":"`+reason+`","disabledAt":"2023-11-14T22:13:20.000Z"}`, string(result.Event.Data))

			require.Nil(t, w.disable(e.Id, 2, "manual").Event, "disabled already")
			require.Equal(t, reason, w.stored(e.Id).DisabledReason)
			require.EqualValues(t, 404, w.disable(id.New(id.Endpoint), 1, reason).Outcome.GetRefusal().GetStatus())

			w.update(e.Id, `{"enabled":true}`, nil)
			require.Nil(t, w.disable(e.Id, e.Version, reason).Event, "the same command once more")
			require.True(t, w.stored(e.Id).Enabled)
		})
	}
}

func TestUnreadableStateIsAnError(t *testing.T) {
	w := newWorld(t, 10)
	w.state.broken = errors.New("disk")
	cmd := &webhooksv1.Command{OrganizationId: org, Action: &webhooksv1.Command_DeleteEndpoint{DeleteEndpoint: &webhooksv1.DeleteEndpoint{EndpointId: "x"}}}
	_, err := w.apply.Apply(w.state, cmd, now)
	require.ErrorIs(t, err, w.state.broken)
}

func TestUnknownCommandIsRefused(t *testing.T) {
	require.EqualValues(t, 400, newWorld(t, 1).do(&webhooksv1.Command{}).Outcome.GetRefusal().GetStatus())
	require.False(t, commands.Applies(&webhooksv1.Command{}))
}

// TestSetCountsEveryChange holds the set's promise under any sequence of commands: its version grows by one exactly
// when an endpoint changes, and it counts the endpoints there are.
func TestSetCountsEveryChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 4)
		var ids []string
		pick := func(t *rapid.T) string { return rapid.SampledFrom(append(ids, "ep_none")).Draw(t, "endpoint") }
		step := func(act func()) func(*rapid.T) {
			return func(t *rapid.T) {
				before, version := maps.Clone(w.state.data), w.version()
				act()
				delete(before, org)
				after := maps.Clone(w.state.data)
				delete(after, org)
				if maps.EqualFunc(before, after, slices.Equal[[]byte]) {
					require.Equal(t, version, w.version())
				} else {
					require.Equal(t, version+1, w.version())
					require.EqualValues(t, len(after), w.set().Endpoints)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				step(func() {
					if e := w.create(nil).GetEndpoint(); e != nil {
						ids = append(ids, e.Id)
					}
				})(t)
			},
			"update": func(t *rapid.T) { step(func() { w.update(pick(t), `{"paused":true}`, nil) })(t) },
			"enable": func(t *rapid.T) { step(func() { w.update(pick(t), `{"enabled":true}`, nil) })(t) },
			"disable": func(t *rapid.T) {
				step(func() { w.disable(pick(t), rapid.Uint64Range(1, 3).Draw(t, "version"), "gone") })(t)
			},
			"delete": func(t *rapid.T) { step(func() { w.delete(pick(t)) })(t) },
		})
	})
}

func (w *world) version() uint64 {
	version, err := commands.SetVersion(w.state, org)
	require.NoError(w.t, err)
	return version
}
