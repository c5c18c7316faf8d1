package stream

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/betterdata/webhooks/internal/testenv"
	"github.com/betterdata/webhooks/schemas"
)

const (
	senderIn  = schemas.Deliveries
	senderOut = schemas.Attempts
)

// sender is a task whose records take their time: each has some units, each unit is started once, ends in any order, and
// is one row on senderOut. Starts are noted in a file, as the world would: no transaction takes them back.
type sender struct {
	p      *Partition
	starts *os.File

	mu       sync.Mutex
	pending  map[int64]*Pending
	results  []sent
	handed   int
	inFlight int
	idle     chan struct{} // closed when Drain has nothing to wait for
}

type sent struct {
	p    *Pending
	unit int
	row  *kgo.Record
}

func senderSpec(starts string, window int) Spec {
	return Spec{
		Group: "sender", Input: senderIn, Window: window,
		NewTask: func(p *Partition) (Task, error) {
			f, err := os.OpenFile(starts, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			return &sender{p: p, starts: f, pending: map[int64]*Pending{}}, err
		},
	}
}

func (s *sender) Process(tx *Tx, in *kgo.Record) error {
	units, err := strconv.Atoi(string(in.Value))
	if err != nil {
		return err
	}
	p := tx.Track(units)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[in.Offset] == p {
		return nil // still in flight, given again after an abort
	}
	s.pending[in.Offset] = p
	for u := range units {
		if !p.Done(u) {
			s.start(p, u, string(in.Key))
		}
	}
	return nil
}

func (s *sender) start(p *Pending, unit int, id string) {
	name := fmt.Sprintf("%s/%d", id, unit)
	row := &kgo.Record{Key: []byte(name), Value: fmt.Appendf(nil, "maybe=%t", p.MaybeStarted())}
	_, _ = s.starts.WriteString(name + "\n")
	s.inFlight++
	time.AfterFunc(time.Duration(rand.IntN(30))*time.Millisecond, func() {
		s.mu.Lock()
		s.inFlight--
		s.results = append(s.results, sent{p, unit, row})
		if s.inFlight == 0 && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
		s.mu.Unlock()
		s.p.Wake()
	})
}

func (s *sender) Advance(tx *Tx, _ time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.results {
		tx.Emit(senderOut, string(r.row.Key), &kgo.Record{Key: r.row.Key, Value: r.row.Value})
		tx.Finish(r.p, r.unit)
	}
	s.handed = len(s.results)
	return nil
}

func (s *sender) Settled(committed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if committed {
		for _, r := range s.results[:s.handed] {
			if r.p.Ended() {
				delete(s.pending, r.p.Offset())
			}
		}
		s.results = s.results[s.handed:]
	}
	s.handed = 0
}

func (s *sender) Full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight > 200
}
func (s *sender) Close() { _ = s.starts.Close() }
func (s *sender) Drain(ctx context.Context) {
	s.mu.Lock()
	idle := make(chan struct{})
	if s.inFlight == 0 {
		close(idle)
	} else {
		s.idle = idle
	}
	s.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// parcels are n records of 1 to 5 units each.
func parcels(from, n int) (records []*kgo.Record, units int) {
	for i := range n {
		u := 1 + (from+i)%5
		units += u
		records = append(records, &kgo.Record{Key: fmt.Appendf(nil, "d%d", from+i), Value: []byte(strconv.Itoa(u))})
	}
	return records, units
}

// requireRows waits for a row of every unit and checks: one row each; what was started more than once says maybe; and
// returns how many rows say it.
func (c *client) requireRows(units int, starts string) (maybe int) {
	c.t.Helper()
	var rows map[string][]string
	testenv.Eventually(c.t, effectsWithin, func() bool {
		rows = c.committed(senderOut)
		return len(rows) >= units
	}, "all rows")
	content, err := os.ReadFile(starts)
	require.NoError(c.t, err)
	started := map[string]int{}
	for _, line := range strings.Fields(string(bytes.TrimSpace(content))) {
		started[line]++
	}
	require.Len(c.t, rows, units)
	for name, r := range rows {
		require.Len(c.t, r, 1, "rows of %s", name)
		require.Positive(c.t, started[name])
		if r[0] == "maybe=true" {
			maybe++
		} else {
			require.Equal(c.t, 1, started[name], "%s was started again and its row does not say so", name)
		}
	}
	return maybe
}

func shortTimeouts(c Config) Config {
	c.SessionTimeout, c.TransactionTimeout = 6*time.Second, 5*time.Second
	return c
}

func startsFile(t *testing.T) string { return t.TempDir() + "/starts" }
