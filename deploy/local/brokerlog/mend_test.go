package brokerlog_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/betterdata/webhooks/deploy/local/brokerlog"
)

// The end of a transaction is a row of writes. Whichever of them was the last, the transaction is aborted as one; when
// also its end was noted, it is committed.
func TestATransactionWhoseEndWasCutOffIsAbortedInAllItsPartitions(t *testing.T) {
	before, after := endOfATransaction(t)
	steps := endSteps(t, before, after)
	require.Greater(t, len(steps), 2*parts)
	for done := range len(steps) + 1 {
		t.Run(fmt.Sprintf("%d of %d writes", done, len(steps)), func(t *testing.T) {
			folder := t.TempDir()
			require.NoError(t, os.CopyFS(folder, os.DirFS(before)))
			for _, s := range steps[:done] {
				s.write(t, folder)
			}
			last, _ := requireWhole(t, folder, "w")
			if done == len(steps) {
				require.EqualValues(t, 3, last["w"])
			} else {
				require.EqualValues(t, 2, last["w"])
			}
		})
	}
}

func TestMendingTwiceChangesNothingMore(t *testing.T) {
	before, after := endOfATransaction(t)
	steps := endSteps(t, before, after)
	for _, s := range steps[:len(steps)*3/4] {
		s.write(t, before)
	}
	first, err := brokerlog.Mend(filepath.Join(before, "log"))
	require.NoError(t, err)
	require.Equal(t, 1, first.Transactions)
	require.Equal(t, 1, first.HalfCommitted)
	require.Equal(t, 2*parts, first.Markers)
	second, err := brokerlog.Mend(filepath.Join(before, "log"))
	require.NoError(t, err)
	require.True(t, second.Whole(), "%+v", second)
}

func TestWhatWasWrittenInPartIsCutOff(t *testing.T) {
	_, after := endOfATransaction(t)
	for _, name := range []string{"log/pids.log", "log/groups.log", "log/partitions/journal-0/0.dat"} {
		appendTo(t, filepath.Join(after, name), []byte{0, 0, 0, 1, 2, 3})
	}
	index := filepath.Join(after, "log/partitions/journal-1/0.idx")
	info, err := os.Stat(index)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(index, info.Size()-20))

	report, err := brokerlog.Mend(filepath.Join(after, "log"))
	require.NoError(t, err)
	require.Equal(t, brokerlog.Report{CutBytes: 18}, report)
	mended, err := os.Stat(index)
	require.NoError(t, err)
	require.Equal(t, info.Size(), mended.Size())
	last, _ := requireWhole(t, after, "w")
	require.EqualValues(t, 3, last["w"])
}

func TestACompactionThatWasKilledIsUndone(t *testing.T) {
	_, folder := endOfATransaction(t)
	log := filepath.Join(folder, "log")
	partition := filepath.Join(log, "partitions", "table-0")
	whole, err := os.ReadFile(filepath.Join(partition, "0.dat"))
	require.NoError(t, err)
	require.Panics(t, func() {
		_ = brokerlog.Compact(log, func() {
			require.NoError(t, os.RemoveAll(partition))
			panic("killed")
		})
	})
	undone, err := brokerlog.Restore(log)
	require.NoError(t, err)
	require.True(t, undone)
	restored, err := os.ReadFile(filepath.Join(partition, "0.dat"))
	require.NoError(t, err)
	require.Equal(t, whole, restored)
	undone, err = brokerlog.Restore(log)
	require.NoError(t, err)
	require.False(t, undone)
}

func TestAFolderThatIsNotThereIsWhole(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "log")
	report, err := brokerlog.Mend(folder)
	require.NoError(t, err)
	require.True(t, report.Whole())
	undone, err := brokerlog.Restore(folder)
	require.NoError(t, err)
	require.False(t, undone)
}

// endOfATransaction returns copies of a broker's folder from before and after a third transaction, as a SIGKILL would
// leave them.
func endOfATransaction(t *testing.T) (before, after string) {
	t.Helper()
	folder := t.TempDir()
	b, err := start(t.Context(), folder)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Stop()) }()
	require.NoError(t, makeTopics(t.Context(), b.Addr()))
	w, err := newWriter(t.Context(), b.Addr(), "w")
	require.NoError(t, err)
	defer w.c.Close()
	before, after = t.TempDir(), t.TempDir()
	for n := range int64(3) {
		if n == 2 {
			require.NoError(t, os.CopyFS(before, os.DirFS(folder)))
		}
		require.NoError(t, w.write(t.Context(), n+1))
	}
	require.NoError(t, os.CopyFS(after, os.DirFS(folder)))
	return before, after
}

// step is one write that kfake does to a file of its log.
type step struct {
	file string
	add  []byte
}

func (s step) write(t *testing.T, folder string) { appendTo(t, filepath.Join(folder, s.file), s.add) }

func appendTo(t *testing.T, path string, raw []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = f.Write(raw)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// endSteps are kfake's writes of one transaction, in its order: records, markers, offsets, the end.
func endSteps(t *testing.T, before, after string) []step {
	t.Helper()
	var data, markers []step
	for p := range parts {
		for _, topic := range []string{table, journal} {
			segment := fmt.Sprintf("log/partitions/%s-%d/0", topic, p)
			batches, entries := added(t, before, after, segment+".dat"), added(t, before, after, segment+".idx")
			size := 12 + int(batches[10])<<8 + int(batches[11])
			data = append(data, step{segment + ".dat", batches[:size]}, step{segment + ".idx", entries[:15]})
			markers = append(markers, step{segment + ".dat", batches[size:]}, step{segment + ".idx", entries[15:]})
		}
	}
	steps := append(data, markers...)
	commits := added(t, before, after, "log/groups.log")
	for len(commits) > 0 {
		size := 8 + int(commits[0])
		steps, commits = append(steps, step{"log/groups.log", commits[:size]}), commits[size:]
	}
	ends := added(t, before, after, "log/pids.log")
	return append(steps, step{"log/pids.log", ends[:8+int(ends[0])]})
}

func added(t *testing.T, before, after, file string) []byte {
	t.Helper()
	was, err := os.ReadFile(filepath.Join(before, file))
	require.NoError(t, err)
	is, err := os.ReadFile(filepath.Join(after, file))
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(is, was))
	return bytes.Clone(is[len(was):])
}
