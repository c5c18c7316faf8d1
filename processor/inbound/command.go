package inbound

import (
	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/cloudevent"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/processor/commands"
	"github.com/betterdata/webhooks/processor/idempotency"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// command applies a command, or has it applied, and answers it. Its outcome is written in the same transaction, so that
// whoever asked may tell the merchant that the change holds.
func (t *task) command(tx *stream.Tx, e *event) (result, error) {
	cmd := &webhooksv1.Command{}
	if err := proto.Unmarshal(e.body, cmd); err != nil || cmd.Id == "" {
		return t.bury(tx, e, reasonCommand), nil
	}
	if !id.ValidOrg(cmd.OrganizationId) || e.organization != "" && e.organization != cmd.OrganizationId {
		return t.bury(tx, e, reasonNoOrganization), nil
	}
	switch action := cmd.Action.(type) {
	case *webhooksv1.Command_ReleaseAccount:
		return t.release(tx, e, cmd, action.ReleaseAccount)
	case *webhooksv1.Command_AdoptAccount:
		return t.adopt(tx, e, cmd, action.AdoptAccount)
	case *webhooksv1.Command_RememberEvents:
		return t.remember(tx, e, cmd, action.RememberEvents)
	case *webhooksv1.Command_ReleaseSubscription:
		return t.releaseSubscription(tx, e, cmd, action.ReleaseSubscription)
	case *webhooksv1.Command_AdoptSubscription:
		return t.adoptSubscription(tx, e, cmd, action.AdoptSubscription)
	case *webhooksv1.Command_SettleInvoice:
		return t.settleInvoice(tx, e, cmd, action.SettleInvoice)
	case *webhooksv1.Command_ConcludeCommand:
		return t.conclude(tx, e, cmd, action.ConcludeCommand)
	}
	if cmd.IdempotencyKey != nil {
		if what, known, err := t.recall(tx, cmd); known || err != nil {
			return what, err
		}
		if to, ok := ownerOf(cmd); ok {
			return t.passOn(tx, cmd, to)
		}
	}
	return t.apply(tx, cmd)
}

// apply applies a command on endpoints.
func (t *task) apply(tx *stream.Tx, cmd *webhooksv1.Command) (result, error) {
	t.sets.forget(cmd.OrganizationId)
	r, err := t.commands.Apply(endpointState{tx}, cmd, tx.Now())
	if err != nil {
		return 0, err
	}
	if cmd.IdempotencyKey != nil {
		if err := idempotency.Remember(idempotencyState{tx}, cmd, r.Outcome, tx.Now()); err != nil {
			return 0, err
		}
	}
	emit(tx, schemas.CommandOutcomes, cmd.OrganizationId, cmd.Id, r.Outcome)
	if r.Event != nil {
		set, err := t.sets.version(tx, cmd.OrganizationId)
		if err != nil {
			return 0, err
		}
		now := tx.Now().UnixMilli()
		tx.Emit(schemas.Events, cmd.OrganizationId, (&cloudevent.Event{
			ID:             r.Event.ID,
			Type:           r.Event.Type,
			Source:         "/endpoints",
			Subject:        r.Event.Subject,
			Organization:   cmd.OrganizationId,
			OccurredUnixMS: now,
			AcceptedUnixMS: now,
			CauseSource:    schemas.SourceManagement,
			CauseEventID:   cmd.Id,
			EndpointSet:    set,
			Data:           r.Event.Data,
		}).Record())
	}
	if r.Outcome.GetRefusal() != nil {
		return refused, nil
	}
	return processed, nil
}

// endpointState is the store `endpoints` as package commands sees it.
type endpointState struct{ tx *stream.Tx }

func (s endpointState) Get(key []byte) ([]byte, bool, error) { return s.tx.Get(schemas.Endpoints, key) }
func (s endpointState) Put(key, value []byte)                { s.tx.Put(schemas.Endpoints, key, value) }
func (s endpointState) Delete(key []byte)                    { s.tx.Delete(schemas.Endpoints, key) }
func (s endpointState) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	return s.tx.Scan(schemas.Endpoints, prefix, nil, fn)
}

// sets remembers the versions of organizations' endpoint sets: every event that is sent on carries one, and most
// organizations have no endpoints, which a store takes longest to find out. The zero value knows none.
type sets struct{ versions map[string]uint64 }

// maxSets bounds it; an entry takes about 100 bytes.
const maxSets = 4096

func (s *sets) version(tx *stream.Tx, organization string) (uint64, error) {
	if version, ok := s.versions[organization]; ok {
		return version, nil
	}
	version, err := commands.SetVersion(endpointState{tx}, organization)
	if err != nil {
		return 0, err
	}
	if s.versions == nil || len(s.versions) == maxSets {
		s.versions = map[string]uint64{}
	}
	s.versions[organization] = version
	return version, nil
}

func (s *sets) known(organization []byte) bool {
	_, known := s.versions[string(organization)]
	return known
}

// forget is called before a set may change. After an abort all are forgotten.
func (s *sets) forget(organization string) { delete(s.versions, organization) }
