// Package brokerlog makes the log folder of the embedded broker (franz-go's kfake) whole again after a SIGKILL.
//
// kfake ends a transaction in one uninterrupted step: it writes the marker to each partition, then the offsets to
// groups.log, then the end to pids.log, and answers nobody in between. A SIGKILL may fall anywhere into it, and into
// the writing of a transaction's records. kfake by itself hides records without a marker for as long as it runs, but
// writes no marker: a log then ends in offsets that a read committed reader never sees, and the producer's next marker
// decides about the old records too.
//
// Mend, run before kfake opens the folder, promises that each transaction is afterwards committed in all its
// partitions with its offsets, or aborted in all without them, and that each log ends in something readers see. A
// transaction whose end is not in pids.log is aborted: nobody was told that it was committed, nor can anyone have read
// it. Records that were acknowledged outside transactions are never touched. Mend may be killed, and run again.
//
// What it must not do: run while a broker has the folder open, or know what the records mean.
package brokerlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Report says what was torn.
type Report struct {
	// Transactions were aborted; of them HalfCommitted had been committed in some partitions and not in all.
	Transactions, HalfCommitted int
	// Markers were written, and Offsets of groups taken back.
	Markers, Offsets int
	// CutBytes of records and log entries were written in part only.
	CutBytes int64
}

// Whole tells that nothing was torn.
func (r Report) Whole() bool { return r == Report{} }

// transaction is one of a producer: since KIP-890 each has its own epoch.
type transaction struct {
	producer int64
	epoch    int16
}

// Mend makes the log in dir whole; a folder that is not there is.
func Mend(dir string) (Report, error) {
	var r Report
	ended, err := readProducers(filepath.Join(dir, "pids.log"), &r)
	if err != nil {
		return r, err
	}
	parts, err := readPartitions(filepath.Join(dir, "partitions"), &r)
	if err != nil {
		return r, err
	}
	torn := map[transaction]bool{}
	half, begun := halfCommitted(parts, ended)
	if len(half) > 0 {
		// First, because only the markers tell that there is something to take back.
		if r.Offsets, err = takeBack(filepath.Join(dir, "groups.log"), begun); err != nil {
			return r, err
		}
		torn[half[0].of] = true
		r.HalfCommitted = 1
	} else if _, err := cut(filepath.Join(dir, "groups.log"), &r); err != nil {
		return r, err
	}
	for _, m := range half {
		if err := m.abort(); err != nil {
			return r, err
		}
		r.Markers++
	}
	for _, p := range parts {
		for producer, batches := range p.open {
			of := transaction{producer, batches[len(batches)-1].epoch}
			torn[of] = true
			if err := p.appendAbort(of, batches); err != nil {
				return r, err
			}
			r.Markers++
		}
	}
	r.Transactions = len(torn)
	return r, nil
}

// halfCommitted finds the commit markers of the one transaction whose end was cut off, and when the end began (Unix
// ms). The broker ends one at a time; should there seem to be more, the epochs are not one a transaction (a client
// older than KIP-890) and nothing can be told.
func halfCommitted(parts []*partition, ended map[int64]int16) (markers []marker, begun int64) {
	for _, p := range parts {
		for _, m := range p.commits {
			last, known := ended[m.of.producer]
			if !known || m.of.epoch <= last {
				continue
			}
			if len(markers) > 0 && markers[0].of != m.of {
				return nil, 0
			}
			markers = append(markers, m)
			begun = m.time
		}
	}
	return markers, begun
}

func readPartitions(dir string, r *Report) ([]*partition, error) {
	folders, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	var parts []*partition
	for _, f := range folders {
		if !f.IsDir() {
			continue
		}
		p, err := readPartition(filepath.Join(dir, f.Name()), r)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}
