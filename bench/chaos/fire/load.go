package fire

import (
	"context"
	"sync"
	"time"
)

// AsTaken has one thing after the other sent, as fast as they are taken, until ctx ends. send tells whether there was room
// for its thing; while there mostly is none it is not asked for a moment.
func AsTaken(ctx context.Context, send func() (room bool)) {
	const once, mostly = 200, 100
	for ctx.Err() == nil {
		full := 0
		for range once {
			if !send() {
				full++
			}
		}
		if full > mostly {
			time.Sleep(2 * time.Millisecond)
		}
	}
}

// WarmUp loads until every partition has been worked on for a while: until cold says nothing any more.
func (h *Herd) WarmUp(ctx context.Context, within time.Duration, load func(context.Context), cold func() string) error {
	loading, stop := context.WithCancel(ctx)
	var loaded sync.WaitGroup
	loaded.Go(func() { load(loading) })
	defer loaded.Wait()
	defer stop()
	return h.Await(ctx, within, "every partition to be worked on", func(context.Context) (string, error) { return cold(), nil })
}
