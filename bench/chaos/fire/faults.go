package fire

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
)

// Fault breaks something. What it has begun it brings to its end, or leaves to Aside.
type Fault func(ctx context.Context) error

// Counts are what was done.
type Counts struct {
	Kills, Forgotten, Added, Removed, BrokerKills int
	// Frozen instances; of these InTransaction with one open; Expelled were members of every group before and of none when
	// they were woken.
	Frozen, InTransaction, Expelled int
}

// Strike is when something was broken, until it worked again or was let go on.
type Strike struct {
	// Instance is the name of the one that was struck, "" when it was something else.
	Instance string
	From, To time.Time
}

// Faults breaks things, one after the other; what takes long goes on beside the others.
type Faults struct {
	Herd    *Herd
	Cluster *Cluster
	Brokers *testenv.KafkaCluster
	Rand    *rand.Rand
	// Interval is the mean time between two faults.
	Interval time.Duration
	// KeepState lets killed instances keep what they had on disk, always.
	KeepState bool
	// Out is told of each fault, with the time since Began.
	Out   io.Writer
	Began time.Time

	beside         sync.WaitGroup
	frozen, broken Slot

	mu      sync.Mutex
	counts  Counts
	strikes []Strike
	errs    []error
}

// Slot is taken by one at a time.
type Slot struct {
	mu    sync.Mutex
	taken bool
}

// Take reports whether the slot was free. Aside frees it.
func (s *Slot) Take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.taken
	s.taken = true
	return !was
}

func (s *Slot) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = false
}

// Run breaks things for a time, everything in the deck at least once, in an order that is drawn, and returns when all of
// them work again.
func (f *Faults) Run(ctx context.Context, d time.Duration, deck []Fault) error {
	end := time.Now().Add(d)
	for first := true; ctx.Err() == nil && (first || time.Now().Before(end)); first = false {
		round := slices.Clone(deck)
		f.Rand.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		for _, do := range round {
			select {
			case <-ctx.Done():
			case <-time.After(f.Interval/2 + time.Duration(f.Rand.Int64N(int64(f.Interval)))):
			}
			if ctx.Err() != nil || !first && time.Now().After(end) {
				break
			}
			// What has begun is brought to its end.
			f.note(do(context.WithoutCancel(ctx)))
		}
	}
	f.beside.Wait()
	return errors.Join(f.errs...)
}

func (f *Faults) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
	}
}

func (f *Faults) count(fn func(*Counts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(&f.counts)
}

// Counts are what was done so far.
func (f *Faults) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// struck notes what was broken from then until now.
func (f *Faults) struck(instance string, from time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.strikes = append(f.strikes, Strike{instance, from, time.Now()})
}

// Strikes are when instances and brokers were broken.
func (f *Faults) Strikes() []Strike {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.strikes)
}

// Say tells of a fault.
func (f *Faults) Say(format string, args ...any) {
	fmt.Fprintf(f.Out, "%7.1f s  %s\n", time.Since(f.Began).Seconds(), fmt.Sprintf(format, args...))
}

// Aside does what takes long beside the other faults, and frees the slot that was taken for it.
func (f *Faults) Aside(s *Slot, fn func() error) {
	f.beside.Go(func() {
		defer s.free()
		f.note(fn())
	})
}

// Kill ends an instance at once and starts it again, one time in three without what it had on disk.
func (f *Faults) Kill(ctx context.Context) error {
	in := f.Herd.take(f.Rand.IntN)
	if in == nil {
		return nil
	}
	return f.kill(ctx, in)
}

func (f *Faults) kill(ctx context.Context, in *Instance) error {
	forget := !f.KeepState && f.Rand.IntN(3) == 0
	f.count(func(c *Counts) {
		if c.Kills++; forget {
			c.Forgotten++
		}
	})
	f.Say("%s killed%s", in.Name, map[bool]string{true: ", its state folder deleted"}[forget])
	defer f.struck(in.Name, time.Now())
	return f.Herd.kill(ctx, in, forget)
}

// ComeOrGo stops one of the instances if one was added, else adds one.
func (f *Faults) ComeOrGo(ctx context.Context) error {
	if counts := f.Counts(); counts.Added <= counts.Removed {
		f.count(func(c *Counts) { c.Added++ })
		f.Say("one more instance")
		return f.Herd.Add(ctx)
	}
	in := f.Herd.take(f.Rand.IntN)
	if in == nil {
		return nil
	}
	f.count(func(c *Counts) { c.Removed++ })
	f.Say("%s told to stop, for good", in.Name)
	return f.Herd.remove(in)
}

// BreakBroker kills a broker and starts it again. While one is broken it kills an instance instead.
func (f *Faults) BreakBroker(ctx context.Context) error {
	if !f.broken.Take() {
		return f.Kill(ctx)
	}
	n := f.Rand.IntN(len(f.Brokers.Brokers))
	f.Aside(&f.broken, func() error { return f.breakBroker(ctx, n) })
	return nil
}

func (f *Faults) breakBroker(ctx context.Context, n int) error {
	f.count(func(c *Counts) { c.BrokerKills++ })
	f.Say("broker %d killed", n+1)
	defer f.struck("", time.Now())
	b := f.Brokers.Brokers[n]
	if err := b.Kill(); err != nil {
		return fmt.Errorf("broker %d: %w", n+1, err)
	}
	time.Sleep(time.Second)
	if err := b.Start(ctx); err != nil {
		return fmt.Errorf("broker %d: %w", n+1, err)
	}
	f.Say("broker %d is back", n+1)
	return nil
}

const (
	// joinWithin bounds the wait for an instance to be a member of every group before it is frozen.
	joinWithin = 30 * time.Second
	// An instance is frozen past the session time-out, which is 10 s, and until the groups have given it up.
	frozenAtLeast = 12 * time.Second
	frozenAtMost  = 90 * time.Second
)

// Freezer stops an instance whose ids, as many as it has groups, are those by which the groups know it and which are its
// transactional ids too. It tells whether a transaction was open, and what to say beside.
type Freezer func(ctx context.Context, in *Instance, ids []string) (open bool, note string, err error)

// Freeze stops an instance until the groups have given it up and the transaction that it had open is ended by the cluster,
// and lets it go on: a zombie that is about to commit. While one is frozen it kills an instance instead.
func (f *Faults) Freeze(ctx context.Context) error { return f.FreezeAs(ctx, f.stop) }

// FreezeAs is Freeze with a way of its own to stop an instance.
func (f *Faults) FreezeAs(ctx context.Context, stop Freezer) error {
	in := f.Herd.take(f.Rand.IntN)
	switch {
	case in == nil:
		return nil
	case !f.frozen.Take():
		return f.kill(ctx, in)
	}
	f.Aside(&f.frozen, func() error { return f.freeze(ctx, in, stop) })
	return nil
}

func (f *Faults) freeze(ctx context.Context, in *Instance, stop Freezer) error {
	defer f.Herd.release(in)
	ids, err := f.Herd.awaitMembers(in)
	if err != nil {
		return err
	}
	joined := f.waitFor(ctx, joinWithin, func(ctx context.Context) (bool, error) { return f.joined(ctx, ids) })
	defer f.struck(in.Name, time.Now())
	open, note, err := stop(ctx, in, ids)
	if err != nil {
		return err
	}
	f.count(func(c *Counts) {
		c.Frozen++
		c.InTransaction += one(open)
	})
	f.Say("%s frozen%s", in.Name, note)
	time.Sleep(frozenAtLeast)
	expelled := f.waitFor(ctx, frozenAtMost-frozenAtLeast, func(ctx context.Context) (bool, error) { return f.expelled(ctx, ids) })
	f.count(func(c *Counts) { c.Expelled += one(joined && expelled) })
	f.Say("%s goes on", in.Name)
	return f.Herd.Failed(in, in.Cont())
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Seen is a moment for what a stopped instance has sent to be seen; AskWithin bounds the question after it.
const (
	Seen      = 60 * time.Millisecond
	AskWithin = 5 * time.Second
)

// stop stops an instance, whatever it is at.
func (f *Faults) stop(ctx context.Context, in *Instance, ids []string) (open bool, note string, err error) {
	if err := in.Stop(); err != nil {
		return false, "", f.Herd.Failed(in, err)
	}
	time.Sleep(Seen)
	ctx, cancel := context.WithTimeout(ctx, AskWithin)
	defer cancel()
	for _, id := range ids {
		is, _, _ := f.Cluster.OpenTransaction(ctx, id)
		open = open || is // of a broker that is away nothing is known to be open
	}
	return open, "", nil
}

// waitFor asks until the answer is yes, and gives up after a time.
func (f *Faults) waitFor(ctx context.Context, atMost time.Duration, ask func(context.Context) (bool, error)) bool {
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
func (f *Faults) memberships(ctx context.Context, ids []string) (n int, err error) {
	for _, group := range f.Herd.Groups {
		members, err := f.Cluster.members(ctx, group)
		if err != nil {
			return 0, err
		}
		n += one(slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(members, id) }))
	}
	return n, nil
}

func (f *Faults) joined(ctx context.Context, ids []string) (bool, error) {
	n, err := f.memberships(ctx, ids)
	return n == len(f.Herd.Groups), err
}

// expelled reports that no group has one of the ids for a member, and that none has a transaction open.
func (f *Faults) expelled(ctx context.Context, ids []string) (bool, error) {
	if n, err := f.memberships(ctx, ids); n > 0 || err != nil {
		return false, err
	}
	for _, id := range ids {
		if open, _, err := f.Cluster.OpenTransaction(ctx, id); open || err != nil {
			return false, err
		}
	}
	return true, nil
}
