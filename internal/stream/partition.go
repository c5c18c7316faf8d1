package stream

import (
	"context"
	"sync"
	"time"

	"github.com/betterdata/webhooks/internal/kafka"
)

// Partition is a task's handle on its runtime. Its methods may be called from any goroutine, also from the task's own
// calls, but where they say otherwise.
type Partition struct {
	o      *owned
	ctx    context.Context
	cancel context.CancelFunc
	wake   func() // tells the session's loop to look

	mu     sync.Mutex
	woken  bool
	wakeAt time.Time
}

// ID is the partition's number.
func (p *Partition) ID() int32 { return p.o.id }

// PartitionOf is the partition of a routing key in every keyed topic.
func (p *Partition) PartitionOf(routingKey string) int32 {
	return kafka.PartitionOf(routingKey, p.o.partitions)
}

// Next is the offset of the next record that the task is given: all before it were given, to this task or, being done, to
// an earlier owner's. Unlike the other methods it is for the task's own calls.
func (p *Partition) Next() int64 { return p.o.track.next.offset }

// Wake asks for a call of Advance soon.
func (p *Partition) Wake() {
	p.mu.Lock()
	already := p.woken
	p.woken = true
	p.mu.Unlock()
	if !already {
		p.wake()
	}
}

// WakeAt asks for a call of Advance at t; an earlier time replaces a later one. The call uses it up.
func (p *Partition) WakeAt(t time.Time) {
	p.mu.Lock()
	earlier := p.wakeAt.IsZero() || t.Before(p.wakeAt)
	if earlier {
		p.wakeAt = t
	}
	p.mu.Unlock()
	if earlier {
		p.wake()
	}
}

// due reports whether Advance is to be called, and if not, when.
func (p *Partition) due(now time.Time) (due bool, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.woken || (!p.wakeAt.IsZero() && !p.wakeAt.After(now)), p.wakeAt
}

// advancing uses up what asked for the call of Advance that comes now.
func (p *Partition) advancing(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.woken = false
	if !p.wakeAt.After(now) {
		p.wakeAt = time.Time{}
	}
}

// Context ends when the partition is given up.
func (p *Partition) Context() context.Context { return p.ctx }

// Read gives access to the committed state outside of a transaction, for reads only. The value is the caller's.
func (p *Partition) Read(store string, key []byte) (value []byte, ok bool, err error) {
	i, err := p.o.storeIndex(store)
	if err != nil {
		return nil, false, err
	}
	return p.o.store.AppendGet(nil, i, key)
}

// ReadScan calls fn for the committed records of a store whose key starts with prefix and is not below from, in order,
// until fn returns false. Key and value hold during the call of fn only.
func (p *Partition) ReadScan(store string, prefix, from []byte, fn func(key, value []byte) bool) error {
	i, err := p.o.storeIndex(store)
	if err != nil {
		return err
	}
	it, err := p.o.store.Scan(i, prefix, from)
	if err != nil {
		return err
	}
	for ; it.Valid() && fn(it.Key(), it.Value()); it.Next() {
	}
	return it.Close()
}
