package dispatch

import (
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/deliverer/replay"
	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/internal/stream"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// startReplay begins a replay. Whether the endpoint exists and is enabled is not asked: the edge knew, and ours may be an
// older copy.
func (t *task) startReplay(tx *stream.Tx, cmd *webhooksv1.Command) error {
	asked := cmd.GetStartReplay().GetReplay()
	switch {
	case !id.Valid(id.Replay, asked.GetId()), !id.Valid(id.Endpoint, asked.GetEndpointId()),
		asked.GetOrganizationId() != cmd.GetOrganizationId():
		return t.refuse(tx, cmd, httpapi.NewProblem(http.StatusBadRequest, "malformed_command", "The command names no replay of the organization."))
	}
	if err := t.knowWaiting(tx); err != nil {
		return err
	}
	found, err := replay.Get(tx, asked.GetOrganizationId(), asked.GetId())
	switch {
	case err != nil:
		return err
	case found != nil:
		return t.answer(tx, cmd, replayOutcome(found))
	}
	begun, err := replay.Begin(tx, asked)
	switch {
	case err != nil:
		return err
	case !begun:
		return t.refuse(tx, cmd, httpapi.NewProblem(http.StatusConflict, "too_many_replays",
			"The endpoint has %d replays that have not ended. Cancel one, or wait.", replay.MaxActive))
	}
	t.follow(asked, tx.Now())
	t.tell("replay begun", asked)
	return t.answer(tx, cmd, replayOutcome(asked))
}

// changeReplay pauses, resumes or cancels a replay.
func (t *task) changeReplay(tx *stream.Tx, cmd *webhooksv1.Command) error {
	change := cmd.GetChangeReplay()
	switch change.GetStatus() {
	case schemas.ReplayRunning, schemas.ReplayPaused, schemas.ReplayCanceled:
	default:
		return t.refuse(tx, cmd, httpapi.NewProblem(http.StatusBadRequest, "malformed_command", "A replay cannot be made %q.", change.GetStatus()))
	}
	if err := t.knowWaiting(tx); err != nil {
		return err
	}
	state, err := replay.Get(tx, cmd.GetOrganizationId(), change.GetReplayId())
	if err != nil {
		return err
	}
	if state == nil || state.GetEndpointId() != change.GetEndpointId() {
		return t.refuse(tx, cmd, httpapi.NotFound())
	}
	r := t.endpoint(state.GetEndpointId(), state.GetOrganizationId(), tx.Now()).replay(state.GetId())
	if r != nil {
		state = r.state
	}
	if state.GetStatus() != change.GetStatus() {
		if r == nil || !replay.Active(state) {
			return t.refuse(tx, cmd, httpapi.NewProblem(http.StatusConflict, "replay_ended", "The replay has ended."))
		}
		t.change(r, change.GetStatus(), tx.Now())
	}
	return t.answer(tx, cmd, replayOutcome(state))
}

// knowWaiting makes sure that what an earlier owner left is known: after an abort it is found again.
func (t *task) knowWaiting(tx *stream.Tx) error {
	if t.knowsWaiting {
		return nil
	}
	return t.findWaiting(tx, tx.Now())
}

func replayOutcome(state *webhooksv1.Replay) *webhooksv1.CommandOutcome {
	return &webhooksv1.CommandOutcome{Result: &webhooksv1.CommandOutcome_Replay{Replay: proto.CloneOf(state)}}
}

// change makes an active replay go on, or no further.
func (t *task) change(r *replaying, status string, now time.Time) {
	if status == schemas.ReplayCanceled {
		t.cancelReplay(r, now)
	} else {
		t.putDown(r)
		t.dropPage(r)
		r.state.Status = status
		t.moved(r)
		t.tell("replay changed", r.state)
	}
	t.touch(r.ep, now)
}
