package dispatch

import "slices"

// NewBounded makes a Dispatcher that runs so many attempts at once and holds so many bytes.
func NewBounded(cfg Config, attempts int, bytes int64, deps Deps) (*Dispatcher, error) {
	return newBounded(cfg, bounds{attempts, bytes}, deps)
}

// InFlight is the number of attempts begun and not ended, and how many of them wait for a goroutine.
func (d *Dispatcher) InFlight() (begun, queued int) {
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	return int(d.room.begun.Load()), len(d.pool.queue)
}

// Searching is how many searches in the archive are under way.
func (d *Dispatcher) Searching() (n int) {
	d.eachTask(func(t *task) {
		t.mu.Lock()
		defer t.mu.Unlock()
		n += len(t.searching) - len(t.searched)
	})
	return n
}

// ToSearch is how many deliveries wait for a search in the archive.
func (d *Dispatcher) ToSearch() (n int) {
	d.eachTask(func(t *task) {
		t.mu.Lock()
		defer t.mu.Unlock()
		n += len(t.toSearch.order)
	})
	return n
}

// HeldBytes is the memory of what is in hand.
func (d *Dispatcher) HeldBytes() int64 { return d.room.held.Load() }

// Window is the bound of units that a partition may have unfinished beyond its watermark.
const Window = window

// Reading is the number of reads of the record under way.
func (d *Dispatcher) Reading() (n int) {
	d.eachTask(func(t *task) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, e := range t.endpoints {
			for _, r := range e.replays {
				if r.busy {
					n++
				}
			}
		}
	})
	return n
}

// Stranded are endpoints that have something to do that nothing will have them looked at for: no time, no attempt and no
// read under way. There are none when a task is at rest.
func (d *Dispatcher) Stranded() (ids []string) {
	d.eachTask(func(t *task) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for id, e := range t.endpoints {
			if e.place < 0 && e.control.Running() == 0 && !t.draining.Load() && e.couldGoOn() {
				ids = append(ids, id)
			}
		}
	})
	return ids
}

func (e *endpoint) couldGoOn() bool {
	if e.mode() != sending {
		return e.off() && !e.head.IsZero()
	}
	for _, f := range slices.Concat(e.queue, e.spare, e.tests) {
		if !f.detached {
			return true
		}
	}
	for _, r := range e.replays {
		if r.busy {
			return false
		}
		if r.working() {
			return true
		}
	}
	return !e.head.IsZero()
}
