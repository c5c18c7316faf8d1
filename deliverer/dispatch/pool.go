package dispatch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// pool runs jobs in at most max goroutines. A job that finds none free waits in a queue, in order. Goroutines are kept
// for a while, because a fresh one has to grow its stack anew.
//
// A job is handed to an idle goroutine, and a goroutine becomes idle, under the one lock. With a bare channel between
// them a job was stranded: the goroutine found the queue empty and had not begun to receive; submit found no receiver
// and no room for another goroutine, and queued the job; then the goroutine received, from a channel to which nobody
// would send, until its idle time was over. Now the goroutine either stands in idle when submit looks, or finds the job
// in the queue when it looks.
type pool struct {
	max int

	mu      sync.Mutex
	workers int
	// idle are the goroutines that wait for a job, each at its own channel; the last one is taken first, so that those
	// which are not needed grow old.
	idle   []chan func()
	queue  []func()
	closed bool
	// waiting are the tasks that found no room, to be woken when there is some.
	waiting map[*task]struct{}
	ended   sync.WaitGroup
}

// idleWorker is how long a goroutine waits for more to do.
const idleWorker = 5 * time.Second

func newPool(size int) *pool {
	return &pool{max: size, waiting: map[*task]struct{}{}}
}

// submit runs job now or as soon as a goroutine is free. It does not block.
func (p *pool) submit(job func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch last := len(p.idle) - 1; {
	case last >= 0:
		p.idle[last] <- job // never blocks: it has room for one, and its goroutine is in idle once
		p.idle[last] = nil
		p.idle = p.idle[:last]
	case p.workers < p.max:
		p.workers++
		p.ended.Go(func() { p.work(job) })
	default:
		p.queue = append(p.queue, job)
	}
}

func (p *pool) work(job func()) {
	mine := make(chan func(), 1)
	timer := time.NewTimer(idleWorker)
	defer timer.Stop()
	for job != nil {
		job()
		var more bool
		if job, more = p.next(mine); job != nil || !more {
			continue
		}
		timer.Reset(idleWorker)
		select {
		case job = <-mine:
		case <-timer.C:
			job = p.leave(mine)
		}
	}
}

// next takes a job off the queue. When there is none the goroutine is idle from here on, or, once the pool is closed,
// has left.
func (p *pool) next(mine chan func()) (job func(), more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case len(p.queue) > 0:
		job, p.queue[0] = p.queue[0], nil
		p.queue = p.queue[1:]
		if len(p.queue) == 0 {
			p.queue = nil
			p.wakeWaiting()
		}
		return job, true
	case p.closed:
		p.workers--
		return nil, false
	}
	p.idle = append(p.idle, mine)
	return nil, true
}

// leave gives an idle goroutine up, unless a job was handed to it meanwhile.
func (p *pool) leave(mine chan func()) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := slices.Index(p.idle, mine)
	if at < 0 {
		return <-mine // put there before the goroutine was taken out of idle
	}
	p.idle = slices.Delete(p.idle, at, at+1)
	p.workers--
	return nil
}

// full reports that jobs wait for a goroutine, or that over says so; t is woken when that may have changed. A task is
// among those to be woken before over is asked: whoever makes room after that finds it there.
func (p *pool) full(t *task, over func() bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting[t] = struct{}{}
	if len(p.queue) > 0 || over() {
		return true
	}
	delete(p.waiting, t)
	return false
}

// roomAgain wakes the tasks that found no room.
func (p *pool) roomAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakeWaiting()
}

func (p *pool) wakeWaiting() {
	for t := range p.waiting {
		t.part.Wake()
	}
	clear(p.waiting)
}

func (p *pool) forget(t *task) {
	p.mu.Lock()
	delete(p.waiting, t)
	p.mu.Unlock()
}

// close lets the idle goroutines go, and returns when the jobs that run have ended, or when ctx ends: then the rest end
// by themselves.
func (p *pool) close(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	for _, worker := range p.idle {
		worker <- nil
	}
	p.workers -= len(p.idle)
	p.idle = nil
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { p.ended.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
