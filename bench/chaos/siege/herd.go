package siege

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

	"github.com/betterdata/webhooks/internal/kafka"
	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

// instance is one process of the processor, which may be broken. Its state folder outlives it.
type instance struct {
	*testenv.Server
	name, state string
	// busy is set while somebody breaks it.
	busy bool
}

// herd is the instances of a run.
type herd struct {
	cluster    kafka.Config
	secretsKey string
	logs       string // folder that what they wrote is kept in, or ""

	mu   sync.Mutex
	made int
	all  []*instance
}

// add starts one more.
func (h *herd) add(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	in := &instance{name: fmt.Sprint("instance ", h.made)}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in.Server, err = testenv.Process(func(folder string) (env, command []string) {
		in.state = filepath.Join(folder, "state")
		encoded, _ := json.Marshal(child{Kafka: h.cluster, StateDir: in.state, SecretsKey: h.secretsKey})
		return append(os.Environ(), childVariable+"="+string(encoded)), []string{self}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	h.all = append(h.all, in)
	return h.failed(in, in.Start(ctx))
}

// take gives one that nobody breaks, and keeps others from it until release; nil when there is none.
func (h *herd) take(choose func(n int) int) *instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	free := slices.DeleteFunc(slices.Clone(h.all), func(in *instance) bool { return in.busy })
	if len(free) == 0 {
		return nil
	}
	in := free[choose(len(free))]
	in.busy = true
	return in
}

func (h *herd) release(in *instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	in.busy = false
}

func (h *herd) size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// kill is SIGKILL and a start, without what was on disk if so wished.
func (h *herd) kill(ctx context.Context, in *instance, forget bool) error {
	defer h.release(in)
	if err := in.Kill(); err != nil {
		return h.failed(in, err)
	}
	if forget {
		if err := os.RemoveAll(in.state); err != nil {
			return err
		}
	}
	return h.failed(in, in.Start(ctx))
}

// remove is SIGTERM, for good.
func (h *herd) remove(in *instance) error {
	if err := in.End(); err != nil {
		return h.failed(in, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = slices.DeleteFunc(h.all, func(o *instance) bool { return o == in })
	return h.bury(in)
}

// bury ends an instance, at once if it runs, and keeps what it wrote.
func (h *herd) bury(in *instance) error {
	var err error
	if h.logs != "" {
		err = os.WriteFile(filepath.Join(h.logs, strings.ReplaceAll(in.name, " ", "-")+".log"), []byte(in.Output()), 0o600)
	}
	in.Close()
	return err
}

// end stops all, each with SIGTERM, side by side.
func (h *herd) end() error {
	var ending sync.WaitGroup
	errs := make([]error, h.size())
	for i, in := range slices.Clone(h.all) {
		ending.Go(func() { errs[i] = h.remove(in) })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// close ends what is left, at once.
func (h *herd) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	for _, in := range h.all {
		err = errors.Join(err, h.bury(in))
	}
	h.all = nil
	return err
}

// failed says what an instance did that it should not have done, with the end of what it wrote.
func (h *herd) failed(in *instance, err error) error {
	if err == nil {
		return nil
	}
	out := in.Output()
	return fmt.Errorf("%s: %w\n%s", in.name, err, out[max(0, len(out)-8000):])
}

// lastWords are the ends of what the instances wrote, as an error.
func (h *herd) lastWords() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, in := range h.all {
		errs = append(errs, h.failed(in, errors.New("what it wrote last")))
	}
	return errors.Join(errs...)
}

// members are the ids by which an instance is known to the groups, which are its transactional ids too.
func (in *instance) members() (ids []string, err error) {
	for _, group := range groups {
		content, err := os.ReadFile(filepath.Join(in.state, group, "member-ids"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", in.name, err)
		}
		ids = append(ids, strings.Fields(string(content))...)
	}
	return ids, nil
}

// awaitMembers is members of an instance that may have been started anew a moment ago, without a folder.
func (in *instance) awaitMembers() (ids []string, err error) {
	for range 300 {
		if ids, err = in.members(); err == nil {
			return ids, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
}

// groups are the task groups under fire, in the order that events flow.
var groups = []string{schemas.GroupRouter, schemas.GroupInbound, schemas.GroupFanOut}
