package dispatch

import (
	"sync"
	"time"
)

// pool runs jobs in at most max goroutines. A job that finds none free waits in a queue, in order. Goroutines are kept
// for a while, because a fresh one has to grow its stack anew.
type pool struct {
	max  int
	idle chan func()

	mu      sync.Mutex
	workers int
	queue   []func()
	// waiting are the tasks that found the pool full, to be woken when it no longer is.
	waiting map[*task]struct{}
	ended   sync.WaitGroup
}

// idleWorker is how long a goroutine waits for more to do.
const idleWorker = 5 * time.Second

func newPool(size int) *pool {
	return &pool{max: size, idle: make(chan func()), waiting: map[*task]struct{}{}}
}

// submit runs job now or as soon as a goroutine is free. It does not block.
func (p *pool) submit(job func()) {
	select {
	case p.idle <- job:
		return
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.workers == p.max {
		p.queue = append(p.queue, job)
		return
	}
	p.workers++
	p.ended.Go(func() { p.work(job) })
}

func (p *pool) work(job func()) {
	timer := time.NewTimer(idleWorker)
	defer timer.Stop()
	for job != nil {
		job()
		if job = p.next(); job != nil {
			continue
		}
		timer.Reset(idleWorker)
		select {
		case job = <-p.idle:
		case <-timer.C:
			job = p.leave()
		}
	}
}

// next takes a job off the queue.
func (p *pool) next() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil
	}
	job := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	if len(p.queue) == 0 {
		p.queue = nil
		for t := range p.waiting {
			t.part.Wake()
		}
		clear(p.waiting)
	}
	return job
}

// leave gives the goroutine up, unless a job was queued meanwhile.
func (p *pool) leave() func() {
	if job := p.next(); job != nil {
		return job
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		job := p.queue[0]
		p.queue = p.queue[1:]
		return job
	}
	p.workers--
	return nil
}

// full reports that jobs wait for a goroutine; t is woken when none does.
func (p *pool) full(t *task) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return false
	}
	p.waiting[t] = struct{}{}
	return true
}

func (p *pool) forget(t *task) {
	p.mu.Lock()
	delete(p.waiting, t)
	p.mu.Unlock()
}

// close waits for the jobs that run, and ends the idle goroutines.
func (p *pool) close() {
	done := make(chan struct{})
	go func() { p.ended.Wait(); close(done) }()
	for {
		select {
		case p.idle <- nil:
		case <-done:
			return
		}
	}
}
