// Package replay is the state of replays: which range of events an endpoint is sent again, how far that is, and what of
// it is under way.
//
// A replay is a cursor. Nothing of its range is enqueued: events are read from the record page by page, in order of
// acceptance, and taken as the endpoint has room to spare. A taken event stands in the replay until its delivery has ended
// or begun to wait in the retry schedule, where it is a delivery as any other. So each event of the range is delivered
// at least once whatever crashes when: a new owner finds what was taken and begins where the cursor stands.
//
// The package is the rules and the records; what is read, sent and when is dispatch's. It has no clock.
package replay

import (
	"slices"

	"github.com/betterdata/webhooks/internal/id"
	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// Bounds.
const (
	// MaxTaken is how many events a replay has in hand: its record is written with each transaction that moves it.
	MaxTaken = 256
	// MaxActive is how many replays of an endpoint may be active. They go one after the other.
	MaxActive = 10
	// keepEnded is how many replays of an endpoint that have ended are kept.
	keepEnded = 50
)

// Active reports that a replay has not ended.
func Active(r *webhooksv1.Replay) bool {
	return r.GetStatus() == schemas.ReplayRunning || r.GetStatus() == schemas.ReplayPaused
}

// Open reports that there is something left to do: for one that was canceled, what is under way.
func Open(r *webhooksv1.Replay) bool { return Active(r) || len(r.GetTaken()) > 0 }

// DeliveryID is the delivery of an event by a replay: taken again, it is the same one.
func DeliveryID(r *webhooksv1.Replay, event string) string {
	return id.Derive(id.Delivery, event, r.GetEndpointId(), r.GetId())
}

// Take moves the cursor past an event and takes the event in hand.
func Take(r *webhooksv1.Replay, e *webhooksv1.TakenEvent) {
	Pass(r, e.GetAcceptedUnixMs(), e.GetEventId())
	r.Taken = append(r.Taken, e)
}

// Pass moves the cursor past an event that is not to be delivered.
func Pass(r *webhooksv1.Replay, acceptedUnixMS int64, event string) {
	r.CursorUnixMs, r.CursorEventId = acceptedUnixMS, event
}

// Taken is the event if it is in hand, or nil.
func Taken(r *webhooksv1.Replay, event string) *webhooksv1.TakenEvent {
	if i := index(r, event); i >= 0 {
		return r.Taken[i]
	}
	return nil
}

// Settle ends what the replay has to do with an event: its delivery has ended or waits in the schedule.
func Settle(r *webhooksv1.Replay, event string) {
	if drop(r, event) {
		r.Done++
	}
}

func drop(r *webhooksv1.Replay, event string) bool {
	i := index(r, event)
	if i >= 0 {
		r.Taken = slices.Delete(r.Taken, i, i+1)
	}
	return i >= 0
}

func index(r *webhooksv1.Replay, event string) int {
	return slices.IndexFunc(r.GetTaken(), func(e *webhooksv1.TakenEvent) bool { return e.GetEventId() == event })
}

// Finish ends a replay whose range is through, and reports whether it did. What was counted in advance gives way to what
// there was: deliveries come and go while a replay runs.
func Finish(r *webhooksv1.Replay, nowUnixMS int64) bool {
	if !Active(r) || !r.GetExhausted() || len(r.GetTaken()) > 0 {
		return false
	}
	r.Status, r.EndedUnixMs = schemas.ReplayDone, nowUnixMS
	r.Total = &r.Done
	return true
}

// Cancel ends a replay early. What may be under way stays in hand until it has ended; the rest of what was taken is let
// go: nobody has been told of it.
func Cancel(r *webhooksv1.Replay, nowUnixMS int64) {
	r.Status, r.EndedUnixMs = schemas.ReplayCanceled, nowUnixMS
	r.Taken = slices.DeleteFunc(r.Taken, func(e *webhooksv1.TakenEvent) bool { return !e.GetStarted() })
}
