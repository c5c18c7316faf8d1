package api

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/betterdata/webhooks/schemas"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// A delivery's row says when its next attempt was due as of its last change, and is not written again when its endpoint is
// paused or its breaker opens: thousands may wait there. What its endpoint's owner knows of that is in two tables, of which
// this process has copies; they say when the attempt may be made as things are now.

// Table is the local copy of a table; *table.Copy is one.
type Table interface {
	Get(key []byte) (value []byte, ok bool, err error)
}

// hold is what keeps an endpoint from being sent to; the zero value where nothing is known to.
type hold struct {
	paused bool
	// until is when an open breaker lets the next probe; zero where it is closed.
	until time.Time
}

// showWaiting shows of the deliveries that wait when they may be sent.
func (a *API) showWaiting(found []delivery, now time.Time) error {
	holds := map[string]hold{}
	for i := range found {
		d := &found[i]
		if d.next.IsZero() || d.Test {
			continue
		}
		h, known := holds[d.EndpointID]
		if !known {
			var err error
			if h, err = a.holdOf(d.OrganizationID, d.EndpointID); err != nil {
				return err
			}
			holds[d.EndpointID] = h
		}
		next := h.apply(d.next, now)
		d.NextAttemptAt = timeOrNull(&next)
	}
	return nil
}

// apply says when what was due at a time may be sent: once the endpoint is resumed, at the breaker's next probe, or as it
// has a slot.
func (h hold) apply(due, now time.Time) time.Time {
	if h.paused || !h.until.IsZero() {
		return slices.MaxFunc([]time.Time{due, h.until, now}, time.Time.Compare)
	}
	return due
}

// holdOf reads what keeps an endpoint from being sent to. To one that is disabled or deleted nothing is sent any more: what
// waits there ends when it is due.
func (a *API) holdOf(org, endpointID string) (h hold, err error) {
	var endpoint webhooksv1.Endpoint
	known, err := read(a.tables.Endpoints, schemas.EndpointKey(org, endpointID), &endpoint)
	if err != nil || !known || !endpoint.GetEnabled() {
		return hold{}, err
	}
	var health webhooksv1.EndpointHealth
	if _, err := read(a.tables.Health, []byte(endpointID), &health); err != nil {
		return hold{}, err
	}
	h.paused = endpoint.GetPaused()
	if health.GetBreakerWaitMs() > 0 {
		h.until = time.UnixMilli(health.GetBreakerUntilUnixMs())
	}
	return h, nil
}

// read decodes a record of a table.
func read(from Table, key []byte, into proto.Message) (known bool, err error) {
	value, known, err := from.Get(key)
	if err == nil && known {
		err = proto.Unmarshal(value, into)
	}
	if err != nil {
		return false, fmt.Errorf("read %s of its table: %w", key, err)
	}
	return known, nil
}
