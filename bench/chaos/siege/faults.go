package siege

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

// fault is a way to break something.
type fault int

const (
	kill fault = iota
	comeOrGo
	freeze
	freezeTimer
	breakBroker
)

// deck is what happens in a round, in an order that is drawn: everything, and kills most.
var deck = []fault{kill, kill, kill, kill, comeOrGo, comeOrGo, freeze, freezeTimer, breakBroker}

// Counts are what was done.
type Counts struct {
	Kills, Forgotten, Added, Removed, BrokerKills int
	// Frozen instances; of these InTransaction with one open, InTimer with the output of a timer in it; Expelled were members
	// of every group before and of none when they were woken.
	Frozen, InTransaction, InTimer, Expelled int
}

// faults breaks things, one after the other; what takes long goes on beside the others.
type faults struct {
	herd     *herd
	watch    *watch
	brokers  *testenv.KafkaCluster
	rng      *rand.Rand
	interval time.Duration
	// killsOnly leaves it at SIGKILLs of instances that keep what they had on disk.
	killsOnly bool
	out       io.Writer
	began     time.Time

	beside         sync.WaitGroup
	frozen, broken slot

	mu     sync.Mutex
	counts Counts
	errs   []error
}

// slot is taken by one at a time.
type slot struct {
	mu    sync.Mutex
	taken bool
}

func (s *slot) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.taken
	s.taken = true
	return !was
}

func (s *slot) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = false
}

// run breaks things for a time, everything at least once, and returns when all of them work again.
func (f *faults) run(ctx context.Context, d time.Duration) error {
	end := time.Now().Add(d)
	for first := true; ctx.Err() == nil && (first || time.Now().Before(end)); first = false {
		round := slices.Clone(deck)
		if f.killsOnly {
			round = []fault{kill}
		}
		f.rng.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		for _, what := range round {
			select {
			case <-ctx.Done():
			case <-time.After(f.interval/2 + time.Duration(f.rng.Int64N(int64(f.interval)))):
			}
			if ctx.Err() != nil || !first && time.Now().After(end) {
				break
			}
			// What has begun is brought to its end.
			f.note(f.do(context.WithoutCancel(ctx), what))
		}
	}
	f.beside.Wait()
	return errors.Join(f.errs...)
}

func (f *faults) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
	}
}

func (f *faults) count(fn func(*Counts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(&f.counts)
}

func (f *faults) say(format string, args ...any) {
	fmt.Fprintf(f.out, "%7.1f s  %s\n", time.Since(f.began).Seconds(), fmt.Sprintf(format, args...))
}

func (f *faults) do(ctx context.Context, what fault) error {
	switch {
	case what == comeOrGo:
		return f.comeOrGo(ctx)
	case what == breakBroker && f.broken.take():
		n := f.rng.IntN(len(f.brokers.Brokers))
		f.aside(&f.broken, func() error { return f.breakBroker(ctx, n) })
		return nil
	}
	in := f.herd.take(f.rng.IntN)
	switch {
	case in == nil:
		return nil
	case (what == freeze || what == freezeTimer) && f.frozen.take():
		f.aside(&f.frozen, func() error { return f.freeze(ctx, in, what == freezeTimer) })
		return nil
	}
	return f.kill(ctx, in)
}

func (f *faults) aside(s *slot, fn func() error) {
	f.beside.Go(func() {
		defer s.free()
		f.note(fn())
	})
}

// kill ends an instance at once and starts it again, one time in three without what it had on disk.
func (f *faults) kill(ctx context.Context, in *instance) error {
	forget := !f.killsOnly && f.rng.IntN(3) == 0
	f.count(func(c *Counts) {
		if c.Kills++; forget {
			c.Forgotten++
		}
	})
	f.say("%s killed%s", in.name, map[bool]string{true: ", its state folder deleted"}[forget])
	return f.herd.kill(ctx, in, forget)
}

// comeOrGo stops one of the instances if one was added, else adds one.
func (f *faults) comeOrGo(ctx context.Context) error {
	f.mu.Lock()
	more := f.counts.Added > f.counts.Removed
	f.mu.Unlock()
	if !more {
		f.count(func(c *Counts) { c.Added++ })
		f.say("one more instance")
		return f.herd.add(ctx)
	}
	in := f.herd.take(f.rng.IntN)
	if in == nil {
		return nil
	}
	f.count(func(c *Counts) { c.Removed++ })
	f.say("%s told to stop, for good", in.name)
	return f.herd.remove(in)
}

// breakBroker kills a broker and starts it again.
func (f *faults) breakBroker(ctx context.Context, n int) error {
	f.count(func(c *Counts) { c.BrokerKills++ })
	f.say("broker %d killed", n+1)
	b := f.brokers.Brokers[n]
	if err := b.Kill(); err != nil {
		return fmt.Errorf("broker %d: %w", n+1, err)
	}
	time.Sleep(time.Second)
	if err := b.Start(ctx); err != nil {
		return fmt.Errorf("broker %d: %w", n+1, err)
	}
	f.say("broker %d is back", n+1)
	return nil
}

const (
	// aimFor bounds the tries to stop an instance in a timer's transaction.
	aimFor = 60
	// joinWithin bounds the wait for an instance to be a member of every group before it is frozen.
	joinWithin = 30 * time.Second
	// An instance is frozen past the session time-out, which is 10 s, and until the groups have given it up.
	frozenAtLeast = 12 * time.Second
	frozenAtMost  = 90 * time.Second
)

// freeze stops an instance until the groups have given it up and the transaction that it had open is ended by the
// cluster, and lets it go on: a zombie that is about to commit.
func (f *faults) freeze(ctx context.Context, in *instance, timer bool) error {
	defer f.herd.release(in)
	ids, err := in.awaitMembers()
	if err != nil {
		return err
	}
	joined := f.waitFor(ctx, joinWithin, func(ctx context.Context) (bool, error) { return f.joined(ctx, ids) })
	open, timers, err := f.stop(ctx, in, ids, timer)
	if err != nil {
		return err
	}
	f.count(func(c *Counts) {
		c.Frozen++
		c.InTransaction += one(open)
		c.InTimer += one(timers)
	})
	f.say("%s frozen%s", in.name, map[bool]string{true: " in the middle of a timer's transaction"}[timers])
	time.Sleep(frozenAtLeast)
	expelled := f.waitFor(ctx, frozenAtMost-frozenAtLeast, func(ctx context.Context) (bool, error) { return f.expelled(ctx, ids) })
	f.count(func(c *Counts) { c.Expelled += one(joined && expelled) })
	f.say("%s goes on", in.name)
	return f.herd.failed(in, in.Cont())
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// stop stops an instance. One that is to be stopped in a timer's transaction is stopped again and again, just after the
// full second, when timers are due, until it has the output of a timer in a transaction that is not decided.
func (f *faults) stop(ctx context.Context, in *instance, ids []string, timer bool) (open, timers bool, err error) {
	id := ids[slices.Index(groups, schemas.GroupInbound)]
	for try := 0; ; try++ {
		if timer {
			now := time.Now()
			time.Sleep(now.Truncate(time.Second).Add(time.Second + time.Duration(try%12)*5*time.Millisecond).Sub(now))
		}
		if err := in.Stop(); err != nil {
			return false, false, f.herd.failed(in, err)
		}
		// A moment for what it has sent to be seen.
		time.Sleep(60 * time.Millisecond)
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		open, timers, _ = f.watch.undecided(ask, id)
		cancel()
		if !timer || timers || try == aimFor {
			return open, timers, nil // of a broker that is away nothing is known to be open
		}
		if err := in.Cont(); err != nil {
			return false, false, f.herd.failed(in, err)
		}
	}
}

// waitFor asks until the answer is yes, and gives up after a time.
func (f *faults) waitFor(ctx context.Context, atMost time.Duration, ask func(context.Context) (bool, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for ctx.Err() == nil {
		if yes, err := ask(ctx); yes && err == nil {
			return true
		}
		time.Sleep(200 * time.Millisecond)
	}
	return false
}

// memberships counts the groups that have one of the ids for a member.
func (f *faults) memberships(ctx context.Context, ids []string) (n int, err error) {
	for _, group := range groups {
		members, err := f.watch.members(ctx, group)
		if err != nil {
			return 0, err
		}
		n += one(slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(members, id) }))
	}
	return n, nil
}

func (f *faults) joined(ctx context.Context, ids []string) (bool, error) {
	n, err := f.memberships(ctx, ids)
	return n == len(groups), err
}

// expelled reports that no group has one of the ids for a member, and that none has a transaction open.
func (f *faults) expelled(ctx context.Context, ids []string) (bool, error) {
	if n, err := f.memberships(ctx, ids); n > 0 || err != nil {
		return false, err
	}
	for _, id := range ids {
		if open, _, err := f.watch.undecided(ctx, id); open || err != nil {
			return false, err
		}
	}
	return true, nil
}
