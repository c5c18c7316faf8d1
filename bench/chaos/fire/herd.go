// Package fire is what sieges are made of: instances of a service, each a process of its own, what breaks them and the
// brokers while they work, and what is seen of the cluster from outside.
//
// It knows nothing of what the instances do. A siege says how one is started, draws its faults from a deck of these and its
// own, and judges.
package fire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/betterdata/webhooks/internal/testenv"
)

// Instance is one process of the service, which may be broken. Its state folder outlives it.
type Instance struct {
	*testenv.Server
	// Name tells it from others, State is its folder.
	Name, State string
	// busy is set while somebody breaks it.
	busy bool
}

// Herd is the instances of a run.
type Herd struct {
	// Groups are the task groups that each instance is a member of, in the order that events flow.
	Groups []string
	// Variable names the environment variable that makes a process of this program an instance, and Tell is what one is
	// told by it.
	Variable string
	Tell     func(in *Instance) any
	// Logs is the folder that what they wrote is kept in, or "".
	Logs string

	mu   sync.Mutex
	made int
	all  []*Instance
}

// Add starts one more.
func (h *Herd) Add(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	in := &Instance{Name: fmt.Sprint("instance ", h.made)}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in.Server, err = testenv.Process(func(folder string) (env, command []string) {
		in.State = filepath.Join(folder, "state")
		told, _ := json.Marshal(h.Tell(in))
		return append(os.Environ(), h.Variable+"="+string(told)), []string{self}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", in.Name, err)
	}
	h.all = append(h.all, in)
	return h.Failed(in, in.Start(ctx))
}

// take gives one that nobody breaks, and keeps others from it until release; nil when there is none.
func (h *Herd) take(choose func(n int) int) *Instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	free := slices.DeleteFunc(slices.Clone(h.all), func(in *Instance) bool { return in.busy })
	if len(free) == 0 {
		return nil
	}
	in := free[choose(len(free))]
	in.busy = true
	return in
}

func (h *Herd) release(in *Instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	in.busy = false
}

func (h *Herd) Size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// kill is SIGKILL and a start, without what was on disk if so wished.
func (h *Herd) kill(ctx context.Context, in *Instance, forget bool) error {
	defer h.release(in)
	if err := in.Kill(); err != nil {
		return h.Failed(in, err)
	}
	if forget {
		if err := os.RemoveAll(in.State); err != nil {
			return err
		}
	}
	return h.Failed(in, in.Start(ctx))
}

// remove is SIGTERM, for good.
func (h *Herd) remove(in *Instance) error {
	if err := in.End(); err != nil {
		return h.Failed(in, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = slices.DeleteFunc(h.all, func(o *Instance) bool { return o == in })
	return h.bury(in)
}

// bury ends an instance, at once if it runs, and keeps what it wrote.
func (h *Herd) bury(in *Instance) error {
	var err error
	if h.Logs != "" {
		err = os.WriteFile(filepath.Join(h.Logs, strings.ReplaceAll(in.Name, " ", "-")+".log"), []byte(in.Output()), 0o600)
	}
	in.Close()
	return err
}

// End stops all, each with SIGTERM, side by side.
func (h *Herd) End() error {
	var ending sync.WaitGroup
	errs := make([]error, h.Size())
	for i, in := range slices.Clone(h.all) {
		ending.Go(func() { errs[i] = h.remove(in) })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// Close ends what is left, at once.
func (h *Herd) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	for _, in := range h.all {
		err = errors.Join(err, h.bury(in))
	}
	h.all = nil
	return err
}

// Failed says what an instance did that it should not have done, with the end of what it wrote.
func (h *Herd) Failed(in *Instance, err error) error {
	if err == nil {
		return nil
	}
	out := in.Output()
	return fmt.Errorf("%s: %w\n%s", in.Name, err, out[max(0, len(out)-8000):])
}

// LastWords are the ends of what the instances wrote, as an error.
func (h *Herd) LastWords() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, in := range h.all {
		errs = append(errs, h.Failed(in, errors.New("what it wrote last")))
	}
	return errors.Join(errs...)
}

// members are the ids by which an instance is known to the groups, which are its transactional ids too.
func (h *Herd) members(in *Instance) (ids []string, err error) {
	for _, group := range h.Groups {
		content, err := os.ReadFile(filepath.Join(in.State, group, "member-ids"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", in.Name, err)
		}
		ids = append(ids, strings.Fields(string(content))...)
	}
	return ids, nil
}

// awaitMembers is members of an instance that may have been started anew a moment ago, without a folder.
func (h *Herd) awaitMembers(in *Instance) (ids []string, err error) {
	for range 300 {
		if ids, err = h.members(in); err == nil {
			return ids, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
}

// Each calls fn for every instance.
func (h *Herd) Each(fn func(*Instance)) {
	h.mu.Lock()
	all := slices.Clone(h.all)
	h.mu.Unlock()
	for _, in := range all {
		fn(in)
	}
}

// Await asks again and again until nothing is missing; within bounds it. What the instances wrote last is in its error.
func (h *Herd) Await(ctx context.Context, within time.Duration, what string, missing func(context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		left, err := missing(ctx)
		if left == "" && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited %s for %s: %s", within, what, left), err, h.LastWords())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
