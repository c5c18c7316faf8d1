// Package lifecycle starts the parts of a process in the order they depend on each other, tells whether the process is
// useful, and stops it in the order that work flows.
//
// Stages are given in order of dependency: what others need comes first (a broker, then who consumes from it, then who
// accepts from outside). Each starts once those before it are ready, unless it is eager. They stop last to first, one after the other: so
// the process stops accepting, then finishes what it accepted, then records it, and what all of them need ends last. A
// stage that fails, or ends by itself, stops the process with its name in the error.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Stage is one part of the process.
type Stage struct {
	// Name stands in logs, errors and /readyz.
	Name string
	// Run works until ctx ends and returns nil once everything it holds is drained; by when, Deadline tells.
	Run func(ctx context.Context) error
	// Check returns nil while the stage does useful work; a stage without one is ready at once.
	Check func(ctx context.Context) error
	// Eager stages start while the ones before them are not ready yet, and cope with that themselves.
	Eager bool
}

// Stopping is the cause that a stage's context ends with: the process stops, and all of its stages together must have
// ended by then.
type Stopping struct{ By time.Time }

func (s *Stopping) Error() string {
	return "stopping; all must have ended by " + s.By.Format(time.RFC3339)
}

// Deadline is until when there is time to drain, once ctx has ended; ok is false when nobody has said. Those who stop after
// the one that asks have no other time than what it leaves.
func Deadline(ctx context.Context) (by time.Time, ok bool) {
	if s, ok := errors.AsType[*Stopping](context.Cause(ctx)); ok {
		return s.By, true
	}
	return time.Time{}, false
}

const (
	// checkInterval is how often a starting stage is asked whether it is ready.
	checkInterval = 25 * time.Millisecond
	// patience is how long a stage may take to become ready before a line says what is waited for.
	patience = 10 * time.Second
)

// Process is the stages of one process. Use New.
type Process struct {
	log     *slog.Logger
	timeout time.Duration
	stages  []*running

	mu       sync.Mutex
	started  int
	stopping bool
}

// running is a stage and how it goes. Its err may be read once done is closed.
type running struct {
	Stage
	begun  time.Time
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error
}

// New prepares a process. timeout bounds its stop, all stages together.
func New(log *slog.Logger, timeout time.Duration, stages ...Stage) *Process {
	p := &Process{log: log, timeout: timeout}
	for _, s := range stages {
		p.stages = append(p.stages, &running{Stage: s, done: make(chan struct{})})
	}
	return p
}

// Run starts the stages and blocks until ctx ends or a stage fails, then stops them. It returns nil after a stop that
// was asked for and drained everything in time.
func (p *Process) Run(ctx context.Context) error {
	failed := make(chan *running, len(p.stages))
	failure := p.start(ctx, failed)
	if failure == nil {
		if ctx.Err() == nil {
			p.log.Info("ready")
		}
		select {
		case <-ctx.Done():
		case failure = <-failed:
		}
	}
	if failure != nil {
		p.log.Error("stage failed; stopping", "stage", failure.Name)
	}
	err := p.stop(ctx)
	if failure != nil {
		return errors.Join(failure.failure(), err)
	}
	return err
}

// start starts one stage after the other and waits until all are ready; it returns early, with the stage that failed if
// one did, when ctx ends.
func (p *Process) start(ctx context.Context, failed chan *running) *running {
	awaited := 0
	for i, r := range p.stages {
		for ; awaited < i && !r.Eager; awaited++ {
			if failure := p.await(ctx, p.stages[awaited], failed); failure != nil {
				return failure
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		p.begin(ctx, r, failed)
	}
	for ; awaited < len(p.stages); awaited++ {
		if failure := p.await(ctx, p.stages[awaited], failed); failure != nil {
			return failure
		}
	}
	return nil
}

// begin runs a stage, whose end is its own: the end of ctx alone does not reach it.
func (p *Process) begin(ctx context.Context, r *running, failed chan<- *running) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p.mu.Lock()
	r.cancel, r.begun = cancel, time.Now()
	p.started++
	p.mu.Unlock()
	go func() {
		r.err = r.Run(own)
		close(r.done)
		if own.Err() == nil {
			failed <- r
		}
	}()
}

// await returns when the stage is ready or ctx ends, or with the first stage that failed.
func (p *Process) await(ctx context.Context, r *running, failed chan *running) *running {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	impatient := time.NewTicker(patience)
	defer impatient.Stop()
	for ctx.Err() == nil {
		var err error
		if r.Check != nil {
			err = r.Check(ctx)
		}
		if err == nil {
			p.log.Info("stage ready", "stage", r.Name, "seconds", seconds(r.begun))
			return nil
		}
		select {
		case <-ctx.Done():
		case failure := <-failed:
			return failure
		case <-impatient.C:
			p.log.Warn("stage is not ready yet", "stage", r.Name, "error", err)
		case <-tick.C:
		}
	}
	return nil
}

// stop ends the started stages, last to first, within the time-out.
func (p *Process) stop(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	started := p.stages[:p.started]
	p.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.timeout)
	defer cancel()
	// Whatever happens, nothing is left running that could still write.
	defer func() {
		for _, r := range started {
			r.cancel(nil)
		}
	}()
	deadline, _ := ctx.Deadline()
	var errs []error
	for i := len(started) - 1; i >= 0; i-- {
		r := started[i]
		begun := time.Now()
		ended := r.ended()
		r.cancel(&Stopping{By: deadline})
		select {
		case <-r.done:
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("stage %s did not stop within SHUTDOWN_TIMEOUT %s", r.Name, p.timeout))...)
		}
		if r.err != nil && !ended {
			errs = append(errs, fmt.Errorf("stop stage %s: %w", r.Name, r.err))
		}
		p.log.Info("stage stopped", "stage", r.Name, "seconds", seconds(begun))
	}
	return errors.Join(errs...)
}

func (r *running) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// failure is why a stage ended before it was told to.
func (r *running) failure() error {
	if r.err == nil {
		return fmt.Errorf("stage %s ended by itself", r.Name)
	}
	return fmt.Errorf("stage %s: %w", r.Name, r.err)
}

func seconds(since time.Time) float64 {
	return time.Since(since).Round(time.Millisecond).Seconds()
}

// Status is what each stage says of itself: nil is good. ready is true when all are.
func (p *Process) Status(ctx context.Context) (checks map[string]error, ready bool) {
	p.mu.Lock()
	started, stopping := p.started, p.stopping
	p.mu.Unlock()
	checks = make(map[string]error, len(p.stages))
	ready = !stopping
	for i, r := range p.stages {
		var err error
		switch {
		case stopping:
			err = errStopping
		case i >= started:
			err = errNotStarted
		case r.Check != nil:
			err = r.Check(ctx)
		}
		checks[r.Name] = err
		ready = ready && err == nil
	}
	return checks, ready
}

var (
	errStopping   = errors.New("stopping")
	errNotStarted = errors.New("not started: waits for the stage before it")
)

// OnSignal returns a context that ends at the first SIGINT, SIGTERM or, unless it is ignored as nohup has it, SIGHUP. The
// second one calls exit, with 128 and the signal's number as shells have it. stop gives the signals back.
func OnSignal(parent context.Context, exit func(code int)) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case <-signals:
			cancel()
		}
		select {
		case <-done:
		case s := <-signals:
			code := 1
			if number, ok := s.(syscall.Signal); ok {
				code = 128 + int(number)
			}
			exit(code)
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
		cancel()
	})
}
