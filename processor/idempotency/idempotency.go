// Package idempotency makes one command of all that a client sends with one Idempotency-Key: the first is carried out, and
// what came of it is the answer to the rest. It is pure: a function of the state, the command and the time.
//
// The state is the store `idempotency` of the organization's partition, so a key is the organization's. A record is
// written in the transaction that carries its command out, with the outcome; where another owner has to carry it out,
// without one, until that owner's conclusion comes (Reserve, Conclude). So whatever dies in between, a command is
// remembered exactly when it takes effect.
//
// What is remembered has no secret in it, sealed or not: it is for answers, and a repeated one gives none out. It counts
// for a day, to the millisecond. Records lie in segments by the day on which they expire, and whoever owns the store drops
// the segments that are over (Current): nothing is ever searched for what has expired.
package idempotency

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/internal/httpapi"
	"github.com/betterdata/webhooks/internal/resource"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// State is the store `idempotency` as the open transaction sees it.
type State interface {
	// Get returns a value that is neither kept nor changed.
	Get(key []byte) (value []byte, ok bool, err error)
	Put(key, value []byte)
	Delete(key []byte)
}

// Verdict is what a command's key says of it.
type Verdict int

const (
	// New is to be carried out, and remembered.
	New Verdict = iota
	// Replayed has the outcome of the first command with its key.
	Replayed
	// Reused is refused: its key belongs to another request.
	Reused
	// InProgress is refused: the first command with its key has no outcome yet.
	InProgress
	// Given is the first command itself, given twice. It has that command's outcome, or none so far.
	Given
)

// Recall judges a command with an Idempotency-Key. What it returns beside the verdict is the command's outcome: nil for a
// New one, and for a Given one that is still to be concluded.
func Recall(state State, cmd *webhooksv1.Command, now time.Time) (Verdict, *webhooksv1.CommandOutcome, error) {
	_, first, err := find(state, cmd.OrganizationId, cmd.IdempotencyKey.GetHash(), now)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case first == nil:
		return New, nil, nil
	case first.CommandId == cmd.Id:
		return Given, first.Outcome, nil
	case !bytes.Equal(first.Fingerprint, cmd.IdempotencyKey.GetFingerprint()):
		return Reused, refused(cmd, httpapi.NewProblem(http.StatusUnprocessableEntity, "idempotency_key_reused",
			"This Idempotency-Key was sent with another request. Give each change a key of its own.")), nil
	case first.Outcome == nil:
		return InProgress, refused(cmd, httpapi.NewProblem(http.StatusConflict, "idempotency_in_progress",
			"The first request with this Idempotency-Key is being carried out. Send this one again in a moment.")), nil
	}
	outcome := first.Outcome
	outcome.CommandId, outcome.Replayed = cmd.Id, true
	return Replayed, outcome, nil
}

func refused(cmd *webhooksv1.Command, problem *httpapi.Problem) *webhooksv1.CommandOutcome {
	return &webhooksv1.CommandOutcome{
		CommandId: cmd.Id, Result: &webhooksv1.CommandOutcome_Refusal{Refusal: resource.Refusal(problem)},
	}
}

// Reserve remembers a new command that another owner carries out.
func Reserve(state State, cmd *webhooksv1.Command, now time.Time) error {
	return remember(state, cmd, nil, now)
}

// Remember remembers a new command with its outcome, unless the outcome does not judge the request.
func Remember(state State, cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome, now time.Time) error {
	if !judges(outcome) {
		return nil
	}
	return remember(state, cmd, outcome, now)
}

// Conclude gives a reserved command its outcome. One that has expired meanwhile is not remembered again, and one whose
// outcome does not judge the request no longer.
func Conclude(state State, organization string, keyHash []byte, outcome *webhooksv1.CommandOutcome, now time.Time) error {
	key, first, err := find(state, organization, keyHash, now)
	if err != nil || first == nil || first.CommandId != outcome.CommandId {
		return err
	}
	if !judges(outcome) {
		state.Delete(key)
		return nil
	}
	first.Outcome = withoutSecrets(outcome)
	return put(state, key, first)
}

// judges reports whether an outcome is the owner's word on the request. A version that does not know the command, or lost
// the keys to carry it out, says nothing about it: sent again later it may succeed.
func judges(outcome *webhooksv1.CommandOutcome) bool {
	refusal := outcome.GetRefusal()
	return refusal == nil || refusal.Status != http.StatusBadRequest && refusal.Status < http.StatusInternalServerError
}

func remember(state State, cmd *webhooksv1.Command, outcome *webhooksv1.CommandOutcome, now time.Time) error {
	expires := now.Add(schemas.IdempotencyRetention)
	return put(state, keyOf(dayOf(expires), cmd.OrganizationId, cmd.IdempotencyKey.GetHash()), &webhooksv1.RememberedCommand{
		CommandId: cmd.Id, Fingerprint: cmd.IdempotencyKey.GetFingerprint(), ExpiresUnixMs: expires.UnixMilli(),
		Outcome: withoutSecrets(outcome),
	})
}

func put(state State, key []byte, remembered *webhooksv1.RememberedCommand) error {
	value, err := proto.Marshal(remembered)
	if err != nil {
		return fmt.Errorf("encode the outcome of command %s: %w", remembered.CommandId, err)
	}
	state.Put(key, value)
	return nil
}

// withoutSecrets is an outcome as far as an answer shows it.
func withoutSecrets(outcome *webhooksv1.CommandOutcome) *webhooksv1.CommandOutcome {
	if outcome == nil {
		return nil
	}
	outcome = proto.CloneOf(outcome)
	if e := outcome.GetEndpoint(); e != nil {
		e.Secrets, e.SealedHeaders = nil, nil
	}
	if c := outcome.GetConnection(); c != nil {
		c.SealedAccessToken = nil
	}
	return outcome
}

// find looks for a command that counts at now, nil where there is none. It expires today, or on the day of one that
// begins now, or on the day after that: an earlier owner's clock may have been past a midnight that this one's is not.
func find(state State, organization string, keyHash []byte, now time.Time) ([]byte, *webhooksv1.RememberedCommand, error) {
	for day := dayOf(now.Add(schemas.IdempotencyRetention)) + 1; day >= dayOf(now); day-- {
		key := keyOf(day, organization, keyHash)
		value, ok, err := state.Get(key)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			continue
		}
		first := &webhooksv1.RememberedCommand{}
		if err := proto.Unmarshal(value, first); err != nil {
			return nil, nil, fmt.Errorf("decode what is remembered of a command of %s: %w", organization, err)
		}
		if now.UnixMilli() < first.ExpiresUnixMs {
			return key, first, nil
		}
	}
	return nil, nil, nil
}

// A record's key is the day it expires, <organization>/ and the hash of the Idempotency-Key.
const dayBytes = 4

// dayOf counts days since the epoch, UTC.
func dayOf(t time.Time) uint32 { return uint32(t.Unix() / (24 * 60 * 60)) }

func keyOf(day uint32, organization string, keyHash []byte) []byte {
	key := binary.BigEndian.AppendUint32(make([]byte, 0, dayBytes+len(organization)+1+len(keyHash)), day)
	key = append(append(key, organization...), '/')
	return append(key, keyHash...)
}

// Current is the key below which every record has expired at now.
func Current(now time.Time) []byte { return binary.BigEndian.AppendUint32(nil, dayOf(now)) }
