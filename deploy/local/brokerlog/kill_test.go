package brokerlog_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// childFolder names the folder in the environment of a child process that runs a broker under load until it is killed.
const childFolder = "BROKERLOG_CHILD_FOLDER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(childFolder); folder != "" {
		fmt.Fprintln(os.Stderr, load(context.Background(), folder))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var loadWriters = []string{"w0", "w1", "w2"}

func TestABrokerKilledUnderLoadStartsAgainWithAllThatWasAcknowledged(t *testing.T) {
	folder := t.TempDir()
	kills := 20
	if testing.Short() {
		kills = 5
	}
	acked := map[string]int64{}
	for k := range kills {
		// Some fall into the start; the others into the load, however slow the machine.
		acks, after := 3+rand.N(40), rand.N(20*time.Millisecond)
		if k%5 == 4 {
			acks, after = 0, rand.N(150*time.Millisecond)
		}
		runAndKill(t, folder, acked, acks, after)
		last, plainRecords := requireWhole(t, folder, loadWriters...)
		for _, w := range loadWriters {
			require.GreaterOrEqual(t, last[w], acked[w], "kill %d: acknowledged transactions of %s", k, w)
			acked[w] = last[w]
		}
		require.GreaterOrEqual(t, int64(plainRecords), acked[plain], "kill %d: acknowledged records", k)
		acked[plain] = int64(plainRecords)
	}
	require.Greater(t, acked["w0"], int64(kills), "too little was written to prove anything")
}

// runAndKill kills a child some time after its start, or after that many acknowledgements, and notes what was
// acknowledged until it died.
func runAndKill(t *testing.T, folder string, acked map[string]int64, acks int, after time.Duration) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childFolder+"="+folder)
	for w, n := range acked {
		child.Env = append(child.Env, fmt.Sprintf("LAST_%s=%d", w, n))
	}
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewReader(out)
	kill := func() { time.AfterFunc(after, func() { _ = child.Process.Kill() }) }
	if acks == 0 {
		kill()
	}
	count := acked[plain]
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		var w string
		var n int64
		if _, err := fmt.Sscan(line, &w, &n); err != nil {
			continue // that it runs
		}
		if acks--; acks == 0 {
			kill()
		}
		if w == plain {
			count++
			continue
		}
		acked[w] = n
	}
	acked[plain] = count
	require.ErrorContains(t, child.Wait(), "killed")
}

// load writes until it is killed, and prints what is acknowledged.
func load(ctx context.Context, folder string) error {
	b, err := start(ctx, folder)
	if err != nil {
		return err
	}
	if err := makeTopics(ctx, b.Addr()); err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(parts ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(strings.TrimSuffix(fmt.Sprintln(parts...), "\n"))
	}
	failed := make(chan error)
	for _, name := range loadWriters {
		w, err := newWriter(ctx, b.Addr(), name)
		if err != nil {
			return err
		}
		var n int64
		_, _ = fmt.Sscan(os.Getenv("LAST_"+name), &n)
		go func() {
			for {
				n++
				if err := w.write(ctx, n); err != nil {
					failed <- fmt.Errorf("transaction %d of %s: %w", n, name, err)
				}
				say(name, n)
			}
		}()
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.DefaultProduceTopic(plain))
	if err != nil {
		return err
	}
	go func() {
		for n := uint64(1); ; n++ {
			r := &kgo.Record{Key: []byte(plain), Value: binary.BigEndian.AppendUint64(nil, n)}
			if err := c.ProduceSync(ctx, r).FirstErr(); err != nil {
				failed <- fmt.Errorf("plain record: %w", err)
			}
			say(plain, n)
		}
	}()
	say("running")
	return <-failed
}
