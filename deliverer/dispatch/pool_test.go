package dispatch

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A job given to the pool at the moment its only goroutine has nothing more to do is run at once, not after the time that
// goroutine would stay idle.
func TestPoolStrandsNoJob(t *testing.T) {
	p := newPool(1)
	defer p.close(t.Context())
	for range 20_000 {
		done := make(chan struct{})
		p.submit(func() { close(done) })
		select {
		case <-done:
		case <-time.After(idleWorker / 2):
			require.FailNow(t, "a job is not run")
		}
	}
}

func TestPoolRunsAtMostSoManyAtOnceAndAll(t *testing.T) {
	const size, jobs, givers = 4, 2000, 4
	p := newPool(size)
	var mu sync.Mutex
	running, most, ran := 0, 0, 0
	var all sync.WaitGroup
	all.Add(jobs * givers)
	for range givers {
		go func() {
			for range jobs {
				p.submit(func() {
					mu.Lock()
					running, ran = running+1, ran+1
					most = max(most, running)
					mu.Unlock()
					mu.Lock()
					running--
					mu.Unlock()
					all.Done()
				})
			}
		}()
	}
	all.Wait()
	p.close(t.Context())
	require.Equal(t, jobs*givers, ran)
	require.LessOrEqual(t, most, size)
	require.Zero(t, p.workers)
}

func TestPoolCloseIsBounded(t *testing.T) {
	p := newPool(2)
	hold := make(chan struct{})
	p.submit(func() { <-hold })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.close(ctx)
	close(hold)
	p.close(t.Context())
	require.Zero(t, p.workers)
}
