package stream

import (
	"context"
	"sync"
	"time"

	webhooksv1 "github.com/betterdata/webhooks/schemas/webhooks/v1"
)

// mailbox is how everything beside a session's loop speaks to it: the client's callbacks, restores that end, tasks that
// want to be woken. Nothing here blocks the sender.
type mailbox struct {
	mu       sync.Mutex
	letters  []letter
	yield    bool           // a rebalance waits at the gate
	assigned map[int32]bool // as of the last sync
	isJoined bool
	woken    bool
	cancel   context.CancelFunc // ends the poll that the loop is in
}

// letter is one of: offsets fetched for new partitions, partitions gone, a restore ended.
type letter struct {
	fetched  map[int32]fetched
	gone     []int32
	restored *owned
	start    int64 // with restored: the first offset of its input
	err      error
}

// fetched is what was committed for a partition.
type fetched struct {
	at   position // -1: nothing
	meta *webhooksv1.CommitMetadata
}

// reset forgets an earlier client. Letters of its that are still under way name partitions by pointer, or are taken
// for what they say, which then is nothing this client owns.
func (m *mailbox) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.letters, m.yield, m.assigned, m.isJoined = nil, false, nil, false
}

func (m *mailbox) put(l letter) {
	m.mu.Lock()
	m.letters = append(m.letters, l)
	m.mu.Unlock()
	m.wake()
}

func (m *mailbox) gone(ids []int32) {
	if len(ids) > 0 {
		m.put(letter{gone: ids})
	}
}

// lost is gone without a hand-over: this is no member of the group any more.
func (m *mailbox) lost(ids []int32) {
	m.mu.Lock()
	m.isJoined = false
	m.mu.Unlock()
	m.gone(ids)
}

func (m *mailbox) blocked() {
	m.mu.Lock()
	m.yield = true
	m.mu.Unlock()
	m.wake()
}

// wantsGate reports that a rebalance waits at the gate, unheard so far.
func (m *mailbox) wantsGate() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.yield
}

func (m *mailbox) synced(assigned map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.assigned, m.isJoined = map[int32]bool{}, true
	for _, ids := range assigned { // of the one topic
		for _, id := range ids {
			m.assigned[id] = true
		}
	}
}

func (m *mailbox) isSynced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isJoined
}

// awaited is how many partitions are assigned whose offsets have not come yet.
func (m *mailbox) awaited(owned map[int32]*owned) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.assigned {
		if owned[id] == nil {
			n++
		}
	}
	return n
}

// take empties the box.
func (m *mailbox) take() (letters []letter, yield bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	letters, yield = m.letters, m.yield
	m.letters, m.yield = nil, false
	return letters, yield
}

// stays reports whether a partition is still assigned as of the last sync.
func (m *mailbox) stays(id int32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.assigned[id]
}

// wake makes the loop look around; it ends the poll the loop is in, or the next one at once.
func (m *mailbox) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.woken = true
	if m.cancel != nil {
		m.cancel()
	}
}

// pollContext bounds a poll by ctx, d, and wake. It is nil when the poll must not wait at all; done is called after it.
func (m *mailbox) pollContext(ctx context.Context, d time.Duration) (pctx context.Context, done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.woken || d <= 0 {
		m.woken = false
		return nil, func() {}
	}
	pctx, cancel := context.WithTimeout(ctx, d)
	m.cancel = cancel
	return pctx, func() {
		m.mu.Lock()
		m.cancel, m.woken = nil, false
		m.mu.Unlock()
		cancel()
	}
}
