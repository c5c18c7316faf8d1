package alerts

import (
	"context"
	"errors"
	"slices"
)

const (
	// maxRefusals bounds the requests of a round that are refused: ten find one alert among maxAlerts. Where more are to be
	// found, rounds that follow find them: those found no longer stand among others.
	maxRefusals = 100
	// maxRemembered bounds the alerts that are remembered to have been refused. Those forgotten are found again.
	maxRemembered = 10_000
)

// identity is which alert one is.
type identity struct{ organization, customer, invoice string }

func (a *alert) identity() identity {
	return identity{a.Labels["organization_id"], a.Labels["customer_id"], a.Labels["invoice_id"]}
}

// round is one sending to one Alertmanager.
type round struct {
	*manager
	ctx context.Context
	// left counts the alerts that were neither taken nor refused for their own sake.
	left     int
	refusals int
}

// run ends with the first error that is not a refusal.
func (r *round) run(alerts []alert) error {
	var sound, doubtful []alert
	for _, a := range alerts {
		if r.refused[a.identity()] {
			doubtful = append(doubtful, a)
		} else {
			sound = append(sound, a)
		}
	}
	for chunk := range slices.Chunk(sound, maxAlerts) {
		if err := r.tell(chunk); err != nil {
			return err
		}
	}
	for one := range slices.Chunk(doubtful, 1) {
		if r.refusals >= maxRefusals {
			return nil
		}
		if err := r.tell(one); err != nil {
			return err
		}
	}
	return nil
}

// tell posts alerts. Where they are refused each half is told by itself, until what is refused is one alert: that one is
// not told, and only that one.
func (r *round) tell(alerts []alert) error {
	err := r.post(r.ctx, alerts)
	if err == nil {
		r.take(alerts)
		return nil
	}
	refused, ok := errors.AsType[*refusal](err)
	if !ok {
		return err
	}
	r.refusals++
	if len(alerts) == 1 {
		r.refuse(&alerts[0], refused)
		return nil
	}
	if r.refusals >= maxRefusals {
		return nil
	}
	half := len(alerts) / 2
	if err := r.tell(alerts[:half]); err != nil {
		return err
	}
	return r.tell(alerts[half:])
}

func (r *round) take(alerts []alert) {
	r.left -= len(alerts)
	r.metrics.sent.Add(float64(len(alerts)))
	if len(r.refused) > 0 {
		for i := range alerts {
			delete(r.refused, alerts[i].identity())
		}
	}
}

func (r *round) refuse(a *alert, why *refusal) {
	r.left--
	r.metrics.refused.Inc()
	id := a.identity()
	if r.refused[id] {
		return
	}
	if len(r.refused) == maxRemembered {
		clear(r.refused)
	}
	r.refused[id] = true
	r.log.Warn("Alertmanager refuses an alert; the others are told", "org", id.organization,
		"invoice", id.invoice, "error", why)
}
