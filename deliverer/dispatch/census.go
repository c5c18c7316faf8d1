package dispatch

import (
	"sync/atomic"

	"github.com/betterdata/webhooks/deliverer/schedule"
	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// reasons is the number of values of WaitingReason.
const reasons = int(webhooksv1.WaitingReason_WAITING_REASON_PAUSED) + 1

// censusStep is how many states are counted in one call of Advance.
const censusStep = 2000

// census counts what waits, by reason. A new owner does not know the numbers: it walks over the store in steps, in order
// of id, and changes are counted where the walk has been. The counts are exact once it has ended.
type census struct {
	working, durable count
	published        [reasons]atomic.Int64
}

type count struct {
	by [reasons]int64
	// last is how far the walk has come.
	last string
	done bool
}

func (c *census) add(delivery string, reason webhooksv1.WaitingReason) { c.change(delivery, reason, 1) }
func (c *census) remove(delivery string, reason webhooksv1.WaitingReason) {
	c.change(delivery, reason, -1)
}

func (c *census) change(delivery string, reason webhooksv1.WaitingReason, by int64) {
	if !c.working.done && delivery > c.working.last {
		return // the walk will meet it
	}
	if int(reason) < reasons {
		c.working.by[reason] += by
	}
}

// step walks on and reports whether there is more.
func (c *census) step(tx schedule.Tx) (more bool, err error) {
	if c.working.done {
		return false, nil
	}
	met := 0
	err = schedule.ScanStates(tx, c.working.last, func(delivery string, s *webhooksv1.WaitingState) bool {
		if met == censusStep {
			return false
		}
		met++
		c.working.last = delivery
		if r := int(s.GetReason()); r < reasons {
			c.working.by[r]++
		}
		return true
	})
	c.working.done = err == nil && met < censusStep
	return !c.working.done, err
}

func (c *census) settle(committed bool) {
	if committed {
		c.durable = c.working
	} else {
		c.working = c.durable
	}
	for i := range c.published {
		c.published[i].Store(c.durable.by[i])
	}
}
